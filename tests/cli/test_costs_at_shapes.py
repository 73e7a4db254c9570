"""``cost`` and ``allocate`` count at the shapes of encoded images."""

from pathlib import Path

import pytest
from command_line import done, typed
from encoded_data import encoded_folder
from tiny_pipelines import saved_pipeline


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    saved_pipeline("sd", tmp_path)
    encoded_folder("sd", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_data_and_stated_shapes_give_the_same_cost(folder: Path) -> None:
    config, of_data, stated = (
        done(f"prunekit cost sd --json {more}").json["macs"]
        for more in ("", "--data data", "--shape encoder_hidden_states=16x32")
    )
    assert of_data == stated > config
    low = typed("prunekit cost sd --shape text=16")
    assert low.code == 2
    assert "is given no 'text'" in low.sentence


def test_targets_are_of_the_cost_with_the_data(folder: Path) -> None:
    macs = done("prunekit cost sd --json --data data").json["macs"]
    found = done("prunekit allocate --budget 0.8 --base sd --data data --json").json
    assert found["base_macs"] == macs
    refused = typed("prunekit allocate --budget 0.8 --data data --output other.json")
    assert refused.code == 2
    assert "Got --data without --base" in refused.sentence


@pytest.mark.slow
def test_slim_models_count_as_the_commands_before(folder: Path) -> None:
    done("prunekit groups --cuts 500")
    done("prunekit allocate --budget 0.8 --base sd --data data --rule uniform")
    made = done("prunekit prune sd --data data --samples 8 --rounds 1 --json").json["groups"]
    macs = done("prunekit cost sd --json --data data").json["macs"]
    assert {one["base_macs"] for one in made} == {macs}
    for one in made:
        assert done(f"prunekit cost {one['output']} --json").json["macs"] == one["macs"] <= one["target_macs"]
