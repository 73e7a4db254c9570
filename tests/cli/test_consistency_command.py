"""`prunekit consistency`: two models of any kind, compared from the same noise."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Typed, done, listing, typed
from PIL import Image
from true_figures import figures

from prunekit.checkpoint import Base, ModelSpec, save_base
from prunekit.graph import PruningPlan, trace
from prunekit.groups import TimestepGroups
from prunekit.nets import save_experts
from prunekit.schedule import Parameterization
from prunekit.slim import SlimModel
from prunekit.steps.bases import open_base
from prunekit.steps.opening import open_model
from prunekit.steps.two_models import weights_hash

LINE = "prunekit consistency embedded:digits {} --count 4 --num-inference-steps 5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experts of the embedded base, the third damaged; the base with other weights, and as a bare state dict."""
    folder = tmp_path_factory.mktemp("models")
    base = open_base("embedded:digits")
    plan = PruningPlan({}, trace(base.model, base.spec.example_inputs()).fingerprint)
    groups = TimestepGroups.from_cuts(1000, [200, 400, 600, 800])
    told = figures(base.model, base.spec.example_inputs())
    slims = [
        SlimModel(copy.deepcopy(base.model), base.spec, plan, {}, group, 1000, *told, base.about()) for group in groups
    ]
    save_experts(slims, groups, folder / "whole")
    with torch.no_grad():
        slims[2].model.conv_out.bias += 0.5
    save_experts(slims, groups, folder / "experts")
    small = ModelSpec("UNet2DModel", {**base.spec.config, "block_out_channels": [16, 24]})
    save_base(Base(small.build(), small, Parameterization(base.schedule), data=base.data), folder / "small.pt")
    torch.save(base.model.state_dict(), folder / "bare.pt")
    (folder / "model.json").write_text(json.dumps({"_class_name": base.spec.class_name, **base.spec.config}))
    return folder


@pytest.fixture(scope="module")
def compared(folder: Path) -> Typed:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return done(LINE.format("experts"))


def test_a_folder_with_figures_and_pictures_is_written(folder, compared):
    assert sorted(listing(folder / "consistency")) == ["consistency.json", "curves.png", "pairs.png"]
    for name in ("curves.png", "pairs.png"):
        with Image.open(folder / "consistency" / name) as picture:
            picture.verify()
    data = json.loads((folder / "consistency" / "consistency.json").read_text())
    assert data["format"] == "prunekit-consistency/1"
    assert data["noise_schedule"]["num_timesteps"] == 1000
    assert data["models"]["a"]["name"] == "embedded:digits"
    assert data["models"]["a"]["groups"] is None
    assert data["models"]["b"]["groups"][4] == [800, 1000]
    assert data["models"]["a"]["weights_sha256"] == weights_hash(open_model("embedded:digits").model)
    assert data["models"]["b"]["weights_sha256"] == weights_hash(open_model(str(folder / "experts")).model)


def test_the_table_shows_steps_groups_and_seams(compared):
    lines = compared.out.splitlines()
    assert "5 of 5 evaluations: A = embedded:digits, B = experts" in lines[0]
    rows = [line.split() for line in lines[3:8]]
    assert [(row[0], row[1]) for row in rows] == [("800", "4"), ("600", "3"), ("400", "2"), ("200", "1"), ("0", "0")]
    seams = [line.split() for line in lines if line.startswith(" B ")]
    assert [row[1:3] for row in seams] == [["800", "3|4"], ["600", "2|3"], ["400", "1|2"], ["200", "0|1"]]
    assert [row[3] == "0.0000" for row in seams] == [True, False, False, True]
    assert lines[-2:] == ["Written to consistency", "Next: prunekit evaluate experts --base embedded:digits"]


@pytest.mark.slow
def test_json_is_the_file_and_equal_seeds_give_it_again(folder, compared, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    again = done(f"{LINE.format('experts')} --json --output {tmp_path}/again").json
    assert again == json.loads((folder / "consistency" / "consistency.json").read_text())
    other = done(f"{LINE.format('experts')} --json --output {tmp_path}/again --seed 1").json  # replaces the earlier
    assert other["images"] != again["images"]
    assert json.loads((tmp_path / "again" / "consistency.json").read_text()) == other


@pytest.mark.slow
def test_experts_of_unpruned_copies_are_the_base(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    told = done(f"{LINE.format('whole')} --json --output {tmp_path}/same").json
    assert told["images"]["same"]["mse"] == {"mean": 0.0, "se": 0.0, "undefined": 0}
    assert told["images"]["same"]["correlation"]["mean"] == 1.0
    assert [seam["jump"]["mean"] for seam in told["seams"]] == [0.0] * 4
    assert told["images"]["shuffled"]["ssim"]["mean"] < 0.9


@pytest.mark.slow
def test_architectures_may_differ_and_bare_state_dicts_come_with_theirs(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    line = f"--count 2 --num-inference-steps 2 --no-teacher-forced --json --output {tmp_path}/out"
    told = done(f"prunekit consistency bare.pt small.pt --config model.json {line}").json
    assert told["models"]["a"]["weights_sha256"] == weights_hash(open_model("embedded:digits").model)
    assert told["steps"][0]["forced"] is None
    other = done(f"prunekit consistency small.pt bare.pt --config-b model.json {line}").json
    for measure, value in told["images"]["same"].items():
        np.testing.assert_allclose(other["images"]["same"][measure]["mean"], value["mean"])


def test_a_folder_of_something_else_is_not_replaced(folder, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    result = typed(f"prunekit consistency embedded:digits embedded:digits --output {tmp_path}/mine")
    assert result.code == 2
    assert "holds no earlier comparison" in result.sentence
    assert list(listing(tmp_path / "mine")) == ["thesis.txt"]


def test_what_cannot_be_compared_leaves_an_earlier_result_as_it_is(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    line = f"--count 2 --num-inference-steps 2 --output {tmp_path}/out"
    done(f"prunekit consistency embedded:digits small.pt {line}")
    before = listing(tmp_path)
    assert typed(f"prunekit consistency embedded:digits nowhere.pt {line}").code == 2
    with monkeypatch.context() as patch:
        patch.setattr("prunekit.steps.two_models.curves_png", interrupted)
        assert typed(f"prunekit consistency embedded:digits small.pt {line} --seed 3").code == 130
    assert listing(tmp_path) == before


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_hash_is_of_weights_whatever_their_type():
    net = torch.nn.Linear(2, 3).to(torch.bfloat16)
    first = weights_hash(net)
    assert first == weights_hash(copy.deepcopy(net))
    with torch.no_grad():
        net.bias[0] += 1
    assert weights_hash(net) != first
    scalar = torch.nn.Module()
    scalar.register_buffer("count", torch.tensor(3))
    assert len(weights_hash(scalar)) == 64
