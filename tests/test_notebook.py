"""The tutorial's notebook runs from its first cell to its last."""

import contextlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest

from prunekit.nets import load_experts
from prunekit.recipe import FinetuneOptions, PruneOptions
from prunekit.search import SearchOptions
from prunekit.training import TrainOptions

DOCS = Path(__file__).resolve().parents[1] / "docs"
NOTEBOOK = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
SHORT = {
    "pruning": PruneOptions(samples=8, batch_size=8, search=SearchOptions(rounds=1, shortlist=2)),
    "finetuning": FinetuneOptions(train=TrainOptions(steps=1, batch_size=4)),
    "sampling_steps": 2,
}


@pytest.mark.slow
def test_the_notebook_makes_experts_at_the_budget_and_samples_from_them(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path), mpl.rc_context({"backend": "agg"}):
        for number, cell in enumerate(CELLS):
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)  # noqa: S102 - the cells are the test
            if "parameters" in cell["metadata"].get("tags", ()):
                assert set(SHORT) <= set(names)
                names |= SHORT
    assert names["samples"].shape == (8, 8, 8, 1)
    experts = load_experts(tmp_path / "experts")
    assert experts.mean_macs(list(range(0, 1000, 20))) <= 0.8 * names["bench"].macs


def test_the_notebook_is_stored_without_outputs_and_has_one_cell_of_options() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CELLS)
    assert [cell["metadata"].get("tags") for cell in CELLS].count(["parameters"]) == 1
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_the_notebook_makes_the_same_calls_as_the_tutorial() -> None:
    tutorial = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    source = "".join("".join(cell["source"]) for cell in CELLS)
    for call in (
        "pk.load_base(",
        "pk.load_images(",
        "pk.make_groups(base.schedule, count=5)",
        "pk.allocate(groups, base.schedule, budget=",
        "pk.save_experts(experts, groups, ",
        "Bench.of(base)",
        "prune_group(bench, images, scores, group, macs, ",
    ):
        assert call in tutorial
        assert call in source
