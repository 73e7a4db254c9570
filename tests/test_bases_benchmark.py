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
    for name in ("bases", "_bases_page", "_bases_figures", "_manifest"):
        sys.modules.pop(name, None)


@pytest.fixture
def figures(bases):
    return sys.modules["_bases_figures"]


def row(entry, fid, seed=0, *, error=None, paired=None):
    """What a manifest says of one network."""
    found = {
        "entry": entry,
        "seed": None if entry == "base" else seed,
        "fid": fid,
        "sampling_macs": 8.0,
        "params": 1000,
    }
    found |= {} if error is None else {"fid_sampling_error": error}
    return found | ({} if paired is None else {"fid_difference": {"mean": 0.1, "se": paired}})


def test_a_paired_interval_is_that_of_the_paired_t_test(figures):
    generator = np.random.default_rng(0)
    level = generator.normal(1.3, 0.2, 5)
    mine, other = level - 0.3 + generator.normal(0, 0.05, 5), level + generator.normal(0, 0.05, 5)
    fids = {f"base-{i}": {"a": {i: float(mine[i])}, "b": {i: float(other[i])}} for i in range(5)}
    found = figures.difference(fids, "a", "b")
    expected = ttest_rel(mine, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((mine - other).mean())
    assert found.relative == pytest.approx(((mine - other) / other).mean())
    assert (found.bases, found.pairs, found.better) == (5, 5, int((mine < other).sum()))
    rest = ttest_rel(mine[1:], other[1:]).confidence_interval(0.95)  # without the base on which the rates were chosen
    assert found.rest == pytest.approx(((mine - other)[1:].mean(), rest.low, rest.high))


def test_only_networks_with_the_same_seed_are_compared_and_a_base_counts_once(figures):
    rows = {
        "base-0": [row("base", 4.0), row("a", 1.0, 0), row("a", 2.0, 10), row("b", 3.0, 0), row("b", 5.0, 10)],
        "base-1": [row("base", 8.0), row("a", 1.5, 1), row("a", 9.0, 11), row("b", 2.0, 1), row("b", 7.0, 10)],
    }
    found = figures.Design.of(rows, True, [("a", "b"), ("a", "base")])
    assert found.fids == {"base-0": {"base": 4.0, "a": 1.5, "b": 4.0}, "base-1": {"base": 8.0, "a": 5.25, "b": 2.0}}
    assert found.seeds == {"base-0": {"base": 1, "a": 2, "b": 2}, "base-1": {"base": 1, "a": 2, "b": 1}}
    pair, from_base = found.differences
    assert (pair.bases, pair.pairs, pair.mean, pair.better) == (2, 3, pytest.approx((-2.5 - 0.5) / 2), 2)
    assert pair.relative == pytest.approx((-2.5 / 4 - 0.5 / 2) / 2)
    assert (from_base.pairs, from_base.mean) == (4, pytest.approx((-2.5 - 2.75) / 2))


def test_seeds_are_the_bases_own_or_0_and_bases_without_both_entries_are_left_out(bases, figures):
    rows = {
        "base-0": [row("base", 3.0), row("a", 1.0), row("b", 2.0)],
        "base-1": [row("base", 4.0), row("a", 1.5, 0), row("a", 2.5, 1)],
    }
    own, zero = (figures.Design.of(rows, chosen, [("a", "b"), ("a", "c")]) for chosen in (True, False))
    assert own.fids == {"base-0": {"base": 3.0, "a": 1.0, "b": 2.0}, "base-1": {"base": 4.0, "a": 2.5}}
    assert zero.fids == {"base-0": {"base": 3.0, "a": 1.0, "b": 2.0}, "base-1": {"base": 4.0, "a": 1.5}}
    (found,) = own.differences
    assert (found.bases, found.mean, found.low, found.high) == (1, -1.0, None, None)
    page = sys.modules["_bases_page"]._design(own, rows)
    assert "| a − b | 1 | 1 | -1.000 | – | -50.0 % | 1 of 1 | – |" in page
    assert "| b | 2.000 | – | 2.000 | 1.000 | 1,000 |" in page


def test_every_pair_is_of_entries_that_the_recipes_have(bases):
    recipes = {study: bases.recipe_of(study, 0, 0) for study in bases.STUDIES}
    names = {name for recipe in recipes.values() for name in recipe.evidence.entries} | {"base"}
    assert {name for pair in bases.PAIRS for name in pair} <= names
    assert recipes["fashion-sensitivity"].evidence.headline == bases.HEADLINE
    assert {recipe.name for recipe in recipes.values()} == set(bases.STUDIES)


def test_an_entry_belongs_to_one_study(bases):
    names = [name for study in bases.STUDIES for name in bases.recipe_of(study, 0, 0).evidence.entries]
    twice = {name for name in names if names.count(name) > 1}
    assert twice <= set(bases.recipe_of("fashion-cost", 0, 0).evidence.entries)  # its base is another


def test_single_entries_and_another_seed_can_be_run(bases):
    found = bases.recipe_of("fashion-bases", 1, 7, ["base trained on"]).evidence
    assert (found.seeds, list(found.entries), found.headline) == ((7,), ["base trained on"], "base trained on")


def test_a_base_is_a_trained_one_or_the_recipes_own_with_its_seed(bases):
    assert bases.recipe_of("fashion-bases", 2, 2).base.checkpoint.endswith("seed-2.safetensors")
    own, other = bases.recipe_of("fashion-cost", 1, 1).base, bases.recipe_of("fashion-cost", 2, 2).base
    assert (own.train.seed, other.train.seed, own.checkpoint) == (1, 2, None)
    assert own.train.steps == pytest.approx(0.7 * 24_000)


def test_all_five_bases_are_there(bases):
    assert all(Path(bases.checkpoint(base)).is_file() for base in bases.STUDIES["fashion-bases"] if base)


def test_bases_that_a_study_trains_are_no_base_of_others(figures):
    whole, early = [row("base", 1.3), row("a", 1.0)], [row("base", 1.6), row("b", 1.2)]
    manifests = {
        "fashion-bases": {"base-0": {"evidence": whole}},
        "fashion-two": {"base-0": {"evidence": [row("base", 1.3), row("c", 1.1)]}},
        "fashion-cost": {"base-0": {"evidence": early}},
    }
    found = figures.Design.of(figures.rows_of(manifests, ["fashion-cost"]), False, []).fids
    assert found == {"base-0": {"base": 1.3, "a": 1.0, "c": 1.1, "base of fashion-cost": 1.6, "b": 1.2}}


def test_spreads_are_told_apart(figures):
    rows = {
        "base-0": [
            row("a", 1.0, 0, error=0.1, paired=0.04),
            row("a", 1.2, 1, error=0.1, paired=0.06),
            row("a", 1.4, 2),
        ],
        "base-1": [row("a", 2.0, 1, error=0.4, paired=0.05)],
    }
    (found,) = figures.spreads_of(rows)
    assert found.bases == pytest.approx(np.std([1.0, 2.0], ddof=1))
    assert found.tuning == pytest.approx(np.std([1.0, 1.2, 1.4], ddof=1))
    assert (found.sampling, found.paired) == pytest.approx((0.2, 0.05))


def test_the_group_whose_loss_fid_follows_is_told(figures):
    def with_losses(entry, fid, *losses, seed=0):
        return {**row(entry, fid, seed), "losses": [{"mean": loss} for loss in losses]}

    rows = {
        "base-0": [
            with_losses("base", 1.0, 0.2, 0.1),
            with_losses("a", 1.1, 0.19, 0.11),
            with_losses("b", 1.2, 0.18, 0.12),
        ],
        "base-1": [with_losses("base", 2.0, 0.4, 0.2), with_losses("a", 1.8, 0.44, 0.16), with_losses("c", 1.0, 0.3)],
    }
    found = figures.following(rows, [500], [0.0, 1.0])
    assert found.pairs == 3
    assert found.ranks == pytest.approx([-1, 1])
    assert found.weighed == pytest.approx(1)
    assert found.changes == {"a": pytest.approx([2.5, -5]), "b": pytest.approx([-10, 20])}
    assert figures.following(rows, [500], None).weighed is None
    page = sys.modules["_bases_page"]._followed(found)
    assert "| a | +2.50 % | -5.00 % |" in page
    assert "over all 3 networks," in page
