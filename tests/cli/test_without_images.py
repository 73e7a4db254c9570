"""Commands that read no images ask for none; a network of which nothing can be pruned is said to be one."""

import json
import sys
from pathlib import Path

import pytest
from command_line import TINY, done, typed

from prunekit.checkpoint import ModelSpec
from prunekit.slim import load_slim

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tiny_denoisers import tiny

ALONE = "--criterion magnitude --proposer oneshot --repair none"


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A folder with a network that says nothing of its images."""
    monkeypatch.chdir(tmp_path)
    ModelSpec.from_json(TINY).build().save_pretrained("bare")
    return tmp_path


@pytest.mark.slow_but("oneshot-magnitude")
@pytest.mark.parametrize("criterion", ["magnitude", "magnitude-l1", "fpgm", "random"])
@pytest.mark.parametrize("proposer", ["oneshot", "uniform"])
def test_pruning_by_the_weights_asks_for_no_images(bare, criterion, proposer):
    how = f"--criterion {criterion} --proposer {proposer} --repair none --target 0.7 --group 1 --json"
    facts = done(f"prunekit prune bare {how}").json
    assert facts["macs"] <= 0.7 * facts["base_macs"]
    assert facts["nothing_to_prune"] is None
    assert load_slim("slim/group-1").macs == facts["macs"]


def test_importance_by_the_weights_asks_for_no_images(bare):
    assert done("prunekit importance bare --criterion magnitude --json").json["channel_groups"] > 0
    assert done("prunekit cost bare --json").json["macs"] > 0


@pytest.mark.parametrize(
    "line",
    [
        "prunekit importance bare --criterion taylor",
        "prunekit prune bare --target 0.7 --criterion taylor --proposer oneshot --repair none",
        "prunekit prune bare --target 0.7 --criterion magnitude --proposer greedy --repair none",
        "prunekit prune bare --target 0.7 --criterion magnitude --proposer oneshot --repair bias",
    ],
)
def test_whatever_evaluates_the_network_asks_for_images(bare, line):
    result = typed(line)
    assert result.code == 2
    assert "name some by --data" in result.sentence


def test_a_network_that_is_told_more_than_images_give_is_refused_with_what_helps(bare):
    ModelSpec("SD3Transformer2DModel", tiny("SD3Transformer2DModel")).build().save_pretrained("sd3")
    result = typed("prunekit prune sd3 --target 0.8 --data digits")
    assert result.code == 2
    assert (
        "takes encoder_hidden_states, pooled_projections, which digits/train does not have; encode pictures"
        in result.sentence
    )


def test_a_slim_model_remembers_the_inputs_that_were_given(tmp_path):
    spec = ModelSpec("SD3Transformer2DModel", tiny("SD3Transformer2DModel"))
    spec.build().save_pretrained(tmp_path / "sd3")
    form = {
        "hidden_states": {"shape": [1, 16, 4, 4]},
        "encoder_hidden_states": {"shape": [1, 3, 32]},
        "pooled_projections": {"shape": [1, 32]},
        "timestep": {"shape": [1], "value": 5},
    }
    (tmp_path / "inputs.json").write_text(json.dumps(form))
    how = "--criterion magnitude --proposer oneshot --repair none --target 0.8 --group 0 --json"
    facts = done(f"prunekit prune {tmp_path}/sd3 --inputs {tmp_path}/inputs.json {how} --output {tmp_path}/slim").json
    assert facts["macs"] <= 0.8 * facts["base_macs"]
    slim = load_slim(tmp_path / "slim" / "group-0")
    assert slim.spec.to_json()["inputs"] == form
    assert slim.spec.example_inputs()["hidden_states"].shape == (1, 16, 4, 4)
    counted = done(f"prunekit cost {tmp_path}/slim/group-0 --json").json
    assert counted["macs"] == facts["macs"]


def test_a_target_of_a_network_of_which_nothing_can_be_pruned_is_refused_with_the_reasons(bare):
    result = typed(f"prunekit prune bare {ALONE} --target 0.7 --floor 1.0 --group 0")
    assert result.code == 2
    assert "Nothing of this network can be pruned within the floor" in result.sentence
    assert "its layers stay whole, " in result.sentence
    assert "no smaller width is possible" in result.sentence
    assert "1.0000" not in result.sentence
