"""The names at the top: which they are, and that they cost nothing until one is used."""

import inspect
import subprocess
import sys

import pytest
from torch import nn

import prunekit

NAMES = [
    "Allocation",
    "Base",
    "BudgetError",
    "ChannelGraph",
    "Constraints",
    "CostModel",
    "FileFormatError",
    "GraphError",
    "ImportanceMap",
    "InputError",
    "MissingFileError",
    "MultiDecoderUNet",
    "NoiseSchedule",
    "PlanError",
    "Probe",
    "Pruned",
    "PrunekitError",
    "PruningPlan",
    "SlimModel",
    "TimestepExperts",
    "TimestepGroup",
    "TimestepGroups",
    "__version__",
    "allocate",
    "count_macs",
    "importance",
    "load_base",
    "load_experts",
    "load_images",
    "load_slim",
    "make_experts",
    "make_groups",
    "prune",
    "repair",
    "save_experts",
    "save_slim",
    "search",
    "trace",
    "watched",
]


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout  # noqa: S603 - code of this file


def test_the_names_at_the_top() -> None:
    assert sorted(NAMES) == NAMES == prunekit.__all__
    assert set(NAMES) <= set(dir(prunekit))
    for name in NAMES:
        found = getattr(prunekit, name)
        assert name == "__version__" or (callable(found) and inspect.signature(found))


def test_each_name_is_the_one_of_the_package_that_it_comes_from() -> None:
    from prunekit.api import prune
    from prunekit.graph import trace
    from prunekit.nets import MultiDecoderUNet

    assert prunekit.prune is prune
    assert prunekit.trace is trace
    assert prunekit.MultiDecoderUNet is MultiDecoderUNet
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = prunekit.prun  # type: ignore[attr-defined]


def test_packages_are_called_like_their_functions() -> None:
    from prunekit.importance import importance
    from prunekit.search import search

    assert inspect.signature(prunekit.importance) == inspect.signature(importance)
    assert inspect.signature(prunekit.search) == inspect.signature(search)
    with pytest.raises(prunekit.InputError, match="single timestep group 1"):
        prunekit.importance(nn.Identity(), (), None, prunekit.TimestepGroup(1, 0, 10))


def test_importing_prunekit_imports_neither_torch_nor_numpy_and_takes_a_tenth_of_a_second_at_most() -> None:
    code = "import sys, time; before = time.process_time(); import prunekit; spent = time.process_time() - before; "
    spent, heavy = run(code + "print(spent, 'torch' in sys.modules or 'numpy' in sys.modules)").split()
    assert heavy == "False"
    assert float(spent) < 0.1


def test_schedules_groups_and_allocations_come_without_torch() -> None:
    code = (
        "import sys, prunekit as pk; s = pk.NoiseSchedule.linear(); plan = pk.allocate(pk.make_groups(s), s, 0.8); "
        "print(sum(group.share * group.mac_ratio for group in plan.groups), 'torch' in sys.modules)"
    )
    budget, heavy = run(code).split()
    assert float(budget) == pytest.approx(0.8)
    assert heavy == "False"


@pytest.mark.parametrize("what", ["prunekit; prunekit.prune", "prunekit.runs.experts_run", "prunekit.evaluation"])
def test_neither_pruning_nor_a_worker_imports_what_only_bases_reports_and_metrics_need(what: str) -> None:
    heavy = (
        "diffusers",
        "torch._dynamo",
        "matplotlib",
        "pandas",
        "jinja2",
        "torchmetrics",
        "scipy",
        "sklearn",
        "accelerate",
    )
    assert run(f"import sys, {what}; print([name for name in {heavy} if name in sys.modules])").strip() == "[]"
