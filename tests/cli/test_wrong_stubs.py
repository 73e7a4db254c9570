"""Slim models whose file says something wrong of removed branches, with the right hashes: what commands say of them."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import TINY, done, listing, typed
from safetensors.torch import load_file, save_file

from prunekit._files import json_hash, sha256_file, write_json
from prunekit.checkpoint import Base, ModelSpec, save_base
from prunekit.graph import PruningPlan, apply, attributes
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.slim import SlimModel, save_slim
from prunekit.steps.bases import seeded_weights
from prunekit.steps.bench import Bench

REMOVED = ("branch:down_blocks.0.resnets.0", "branch:up_blocks.0.resnets.1")
GROUPS = TimestepGroups.from_cuts(1000, [400])
COMMANDS = (
    "cost slim/group-0",
    "sample slim/group-0 --count 1",
    "finetune slim/group-0",
    "finetune slim",
    "assemble slim",
)

Config = dict[str, Any]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and slim models of both groups that lost residual branches."""
    folder = tmp_path_factory.mktemp("desk")
    spec = ModelSpec("UNet2DModel", {key: value for key, value in TINY.items() if key != "_class_name"})
    with seeded_weights(0):
        model = spec.build().eval()
    data = {"source": "digits", "resolution": 8, "labels": False}
    base = Base(model, spec, Parameterization(NoiseSchedule.linear()), data=data)
    save_base(base, folder / "base.pt")
    bench = Bench.of(base, shrink="both")
    plan = PruningPlan({}, bench.graph.fingerprint, REMOVED)
    widths = plan.widths(bench.graph)
    macs, params = int(bench.cost.macs(widths)), int(bench.cost.params(widths))
    pruned, sizes = apply(model, bench.graph, plan), attributes(model, bench.graph, plan)
    for group in GROUPS:
        slim = SlimModel(pruned, spec, plan, sizes, group, 1000, macs, params, base.about())
        save_slim(slim, folder / "slim" / f"group-{group.index}")
    return folder


@pytest.fixture
def place(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, where the test stands."""
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def change(folder: Path, by: Callable[[Config], object]) -> None:
    """Change a slim model's config, and write the hashes anew, so that nothing but the content can be refused."""
    config, weights = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    by(config)
    del config["sha256"]
    save_file(load_file(weights), weights, {"config_sha256": json_hash(json.loads(json.dumps(config)))})
    write_json(folder / "config.json", {**config, "sha256": sha256_file(weights)})


def stub(**changes: Any) -> Callable[[Config], object]:
    return lambda config: config["stubs"][0].update(changes)


def output(**changes: Any) -> Callable[[Config], object]:
    return lambda config: config["stubs"][0]["outputs"][0].update(changes)


def another(**changes: Any) -> Callable[[Config], object]:
    """A stub in the place of one more module."""
    return lambda config: config["stubs"].append({**copy.deepcopy(config["stubs"][0]), **changes})


def shapes(config: Config) -> None:
    config["shapes"]["conv_in.weight"][0] += 1


WRONG = {
    "a layer that does not exist": (stub(module="down_blocks.0.resnets.7"), "no stub for it"),
    "one more that does not exist": (another(module="no.such.layer"), "has no such module"),
    "a layer without weights": (another(module="conv_act"), "conv_act, which no removed branch removes"),
    "zeros for a layer without weights": (another(module="conv_act", kind="void"), "which no removed branch removes"),
    "a layer in a kept branch": (another(module="mid_block.resnets.0.nonlinearity"), "which no removed branch removes"),
    "another factor": (output(scale=0.5), "does not return what the layer does without its branch"),
    "another sign": (output(scale=-1.0), "does not return what the layer does without its branch"),
    "zeros in place of the stream": (stub(kind="void"), ""),
    "no such kind": (stub(kind="eval"), "stubs"),
    "a path that is nested": (another(module="down_blocks.0.resnets.0.conv1"), ""),
    "a path of numbers": (stub(module="down_blocks.0.resnets.-1"), ""),
    "a path that leads out": (stub(module="../../etc"), ""),
    "the whole network": (stub(module=""), ""),
    "zeros of another shape": (output(shape=[7, 7]), "shape"),
    "an argument that is not there": (output(argument="nothing", place=9), "does not return"),
    "layers that are not there": (output(through=["conv1", "nothing"]), ""),
    "a number in place of a list": (lambda config: config.update(stubs=3), "stubs"),
    "a branch without a stub": (
        lambda config: config["plan"]["removed"].append("branch:mid_block.resnets.0"),
        "no stub",
    ),
    "no branch": (lambda config: config["plan"].pop("removed"), "0 branches, and 2 stubs"),
    "other shapes": (shapes, "other names or shapes"),
    "other MACs": (lambda config: config.update(macs=config["macs"] + 1), "MACs"),
}


@pytest.mark.slow
def test_what_is_changed_back_is_read(place):
    change(place / "slim" / "group-0", lambda config: None)
    done("prunekit cost slim/group-0 --json")
    done("prunekit assemble slim")


def test_a_folder_of_models_that_lost_branches_alone_is_fine_tuned(place):
    """They keep every channel, and are not the whole base all the same."""
    done("prunekit finetune slim --max-train-steps 1 --train-batch-size 2")
    for index in range(2):
        config = json.loads((place / "slim" / f"group-{index}" / "config.json").read_text())
        assert config["plan"]["removed"] == [*REMOVED]
        assert config["provenance"]["finetuned_steps"] == 1


@pytest.mark.slow_but("another factor")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence_by_every_command_and_nothing_is_written(place, wrong):
    by, said = WRONG[wrong]
    change(place / "slim" / "group-0", by)
    before = listing(place)
    for command in COMMANDS:
        result = typed(f"prunekit {command}")
        assert result.code == 2, command
        assert "Traceback" not in result.err
        assert said in result.sentence
        assert len(result.sentence) < 500
        assert listing(place) == before, command
