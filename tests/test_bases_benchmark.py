"""The paired figures of benchmarks/bases.py."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def bases(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bases

    yield bases
    for name in ("bases", "_manifest"):
        sys.modules.pop(name, None)


def test_a_paired_interval_is_that_of_the_paired_t_test(bases):
    generator = np.random.default_rng(0)
    level = generator.normal(1.3, 0.2, 5)
    mine, other = level - 0.3 + generator.normal(0, 0.05, 5), level + generator.normal(0, 0.05, 5)
    fids = {f"base-{i}": {"a": float(mine[i]), "b": float(other[i])} for i in range(5)}
    found = bases.difference(fids, "a", "b")
    expected = ttest_rel(mine, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((mine - other).mean())
    assert found.relative == pytest.approx(((mine - other) / other).mean())
    assert (found.bases, found.better) == (5, int((mine < other).sum()))


def test_bases_without_both_entries_are_left_out(bases):
    fids = {"base-0": {"a": 1.0, "b": 2.0}, "base-1": {"a": 1.0}}
    found = bases.difference(fids, "a", "b")
    assert (found.bases, found.mean, found.low, found.high) == (1, -1.0, None, None)
    assert bases.difference(fids, "a", "c") is None
    page = bases.markdown(fids, [found])
    assert "| a − b | 1 | -1.000 | – | -50.0 % | 1 of 1 |" in page
    assert "| b | 2.000 | – | 2.000 | – |" in page


def test_every_pair_is_of_entries_that_the_recipe_has(bases):
    from prunekit.recipe import load_recipe

    recipe = load_recipe(bases.RECIPE)
    names = set(recipe.evidence.entries)
    assert {name for pair in bases.PAIRS for name in pair} <= names
    assert recipe.evidence.headline == bases.HEADLINE
    assert all(Path(bases.checkpoint(base)).is_file() for base in (1, 2))


def test_fids_are_means_over_seeds(bases):
    rows = [{"entry": "a", "fid": 1.0}, {"entry": "a", "fid": 3.0}, {"entry": "base", "fid": 5.0}]
    assert bases.fids_of({"evidence": rows}) == {"a": 2.0, "base": 5.0}
