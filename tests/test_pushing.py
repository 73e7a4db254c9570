"""Slim models and experts are pushed to the hub with their cards, and load from what is there."""

from dataclasses import replace

import pytest
from cli.command_line import done, typed
from hub_server import hub_on_this_machine
from test_slim import slim_of

from prunekit.checkpoint.hub import pushed
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.nets import TimestepExperts, load_experts
from prunekit.slim import load_slim, save_slim


@pytest.fixture
def hub(monkeypatch):
    with hub_on_this_machine() as (address, found):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        yield found


@pytest.fixture
def slim(bench):
    made = slim_of(bench("unet", "whole"), bench("unet", "whole").random_plan(3))
    return replace(made, group=TimestepGroups.from_cuts(100, [])[0])


def written(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def same_weights(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(tensor.equal(theirs[key]) for key, tensor in ours.items())


def test_a_slim_model_is_pushed_with_its_card_and_loads_again(hub, slim, tmp_path):
    page = slim.push_to_hub("me/slim", private=True, token="hf_secret")  # noqa: S106 - of nobody
    assert page.endswith("/me/slim/commit/abc")
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("slim", "me")
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    files = hub.files["me/slim"]
    assert set(files) == {"README.md", "config.json", "model.safetensors"}
    assert b"Slim denoiser" in files["README.md"]
    assert same_weights(load_slim(written(files, tmp_path)).model, slim.model)


def test_experts_are_pushed_as_one_folder(hub, slim, tmp_path):
    TimestepExperts(TimestepGroups.from_cuts(100, []), [slim]).push_to_hub("me/experts", token="hf_x")  # noqa: S106
    assert {"README.md", "experts.json", "group-0/model.safetensors"} <= set(hub.files["me/experts"])
    assert same_weights(load_experts(written(hub.files["me/experts"], tmp_path)).expert(0), slim.model)


def test_a_hub_that_refuses_is_one_sentence_without_the_token(hub, slim, tmp_path):
    save_slim(slim, tmp_path / "slim")
    hub.refuses = True
    with pytest.raises(InputError, match=r"me/slim could not be pushed .*hf auth login") as refused:
        pushed(tmp_path / "slim", "me/slim", token="hf_secret")  # noqa: S106
    assert "hf_secret" not in str(refused.value)


def test_assemble_pushes_what_it_wrote(hub, slim, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    save_slim(slim, tmp_path / "slim" / "group-0")
    told = done("prunekit assemble slim --push-to-hub me/experts --json")
    assert told.json["pushed"].endswith("/me/experts/commit/abc")
    assert "group-0/config.json" in hub.files["me/experts"]
    hub.refuses = True
    assert typed("prunekit assemble slim --push-to-hub me/experts").code == 2
    assert (tmp_path / "experts" / "experts.json").is_file()
