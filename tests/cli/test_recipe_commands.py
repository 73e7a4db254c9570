"""What commands do with a recipe: say what it will cost, train its base, run it on a base that is there."""

import pytest
import yaml
from command_line import done, typed

from prunekit._json import read_json
from prunekit.checkpoint import load_base

RECIPE = {
    "name": "small",
    "data": {"source": "digits", "labels": True},
    "base": {
        "model": {
            "class": "UNet2DModel",
            "config": {
                "sample_size": 8,
                "in_channels": 1,
                "out_channels": 1,
                "layers_per_block": 1,
                "block_out_channels": [8, 16],
                "down_block_types": ["DownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "UpBlock2D"],
                "norm_num_groups": 4,
                "num_class_embeds": 11,
            },
        },
        "noise_schedule": {"kind": "cosine", "num_timesteps": 400},
        "train": {"steps": 3, "batch_size": 8, "warmup_steps": 1, "label_dropout": 0.1},
    },
    "groups": {"count": 2},
    "allocation": {"budget": 0.9, "rule": "uniform", "steps": 3},
    "prune": {"samples": 8, "batch_size": 8, "search": {"rounds": 1, "shortlist": 2}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the recipe and the base that ``train --recipe`` makes of it."""
    place = tmp_path_factory.mktemp("recipes")
    (place / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        done("prunekit train --recipe small.yaml --output own.pt --json")
    return place


def test_the_base_of_a_recipe_is_trained_as_the_recipe_says(folder):
    base = load_base(folder / "own.pt")
    assert base.schedule.num_timesteps == 400
    assert base.spec.num_classes == 11
    assert base.data == {"source": "digits", "resolution": 8, "labels": True}
    assert (base.provenance["steps"], base.provenance["batch_size"]) == (3, 8)


@pytest.mark.slow
def test_a_recipe_runs_on_the_base_that_was_trained_apart(folder, monkeypatch):
    monkeypatch.chdir(folder)
    done("prunekit run small.yaml --base own.pt --output made")
    manifest = read_json(folder / "made" / "manifest.json")
    stages = manifest["seconds"]
    assert "prune group 1" in stages
    assert not (folder / "made" / "base.safetensors").exists()
    samples = done("prunekit sample own.pt --count 3 --num-inference-steps 2 --class 4 --output x.npz --json")
    assert samples.json["count"] == 3


def test_the_classes_of_samples_are_kept_with_them(folder, monkeypatch):
    import numpy as np

    monkeypatch.chdir(folder)
    done("prunekit sample own.pt --count 3 --num-inference-steps 2 --class 4 --output y.npz")
    with np.load("y.npz", allow_pickle=False) as found:
        assert found["labels"].tolist() == [4] * 3
        assert found["images"].shape == (3, 8, 8, 1)


def test_the_cost_of_a_recipe_is_said_before_it_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = done("prunekit estimate small.yaml").out.splitlines()
    assert "969 kMACs per sample and evaluation" in lines[0]
    data = done("prunekit estimate small.yaml --json --gpu H100 --gpus 2").json
    assert {"macs", "params", "by_module", "uncounted", "memory", "stages"} <= set(data)
    assert data["machine"] == {"gpu": "H100", "count": 2, "utilisation": 0.3}
    assert [stage["stage"] for stage in data["stages"]] == ["base", "importance", "search"]
    (base,) = (stage for stage in data["stages"] if stage["stage"] == "base")
    assert base["macs"] == 3 * 3 * 8 * data["macs"] + 3 * data["params"]  # and the moving average
    assert data["unknown"] == []
    assert data["macs"] == done("prunekit cost own.pt --json").json["macs"]


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"shrink": "both"}, "another 8 forward passes per timestep group for each residual branch."),
        ({"shrink": "depth", "samples": 64}, "another 32 forward passes per timestep group for each residual branch."),
        (
            {"shrink": "both", "samples": 64, "criterion": "proxy"},
            "another 64 forward passes per timestep group for each block of channels and for each residual branch.",
        ),
        ({"criterion": "proxy"}, "another 8 forward passes per timestep group for each block of channels."),
        ({"shrink": "both", "criterion": "magnitude"}, None),
        ({"shrink": "width"}, None),
    ],
)
def test_an_estimate_says_that_it_does_not_count_the_passes_of_single_branches(tmp_path, monkeypatch, prune, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**RECIPE, "prune": {**RECIPE["prune"], **prune}}))
    shown = " ".join(done("prunekit estimate r.yaml").out.split())
    assert ("Not counted" in shown) == (said is not None)
    assert said is None or f"Not counted: scoring takes {said}" in shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "train --recipe small.yaml --seed 3 --output new.pt",
            "Got --recipe with seed; expected the recipe to say them",
        ),
        ("train --recipe nowhere.yaml --output new.pt", "Recipe nowhere.yaml does not exist"),
        ("estimate nowhere.yaml", "Recipe nowhere.yaml does not exist"),
        ("cost small.yaml", "Got small.yaml, a recipe; expected a model. `prunekit estimate small.yaml`"),
        ("estimate small.yaml --gpu abacus", "Got GPU 'abacus'"),
        ("sample own.pt --class 11 --count 1", "Got class 11; expected 0 … 10"),
        ("consistency own.pt own.pt", "own.pt takes classes; expected models of plain pictures"),
        ("run small.yaml --base nothing.pt --output other", "nothing.pt"),
    ],
)
def test_mistakes_with_recipes_are_one_sentence(folder, monkeypatch, line, said):
    monkeypatch.chdir(folder)
    result = typed(f"prunekit {line}")
    assert result.code == 2
    assert said in result.err.splitlines()[-1]
    assert not (folder / "new.pt").exists()
