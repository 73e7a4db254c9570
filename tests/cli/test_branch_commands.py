"""What commands tell of residual branches: importance, prune, cost, and the cards of what they write."""

import json
from pathlib import Path

import pytest
from command_line import done

from prunekit.importance import ImportanceMap

LAST = "branch:up_blocks.1.resnets.1"


def test_importance_scores_branches_where_they_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = done("prunekit importance embedded:digits --criterion magnitude --shrink both --json").json
    assert (facts["channel_groups"], facts["branches"]) == (22, 13)
    found = ImportanceMap.load("importance.json")
    assert len(found.branches) == 13
    assert set(found.branches[LAST].layers) >= {"up_blocks.1.resnets.1.conv1", "up_blocks.1.resnets.1.conv2"}
    assert "up_blocks.1.resnets.1.conv_shortcut" not in found.branches[LAST].layers
    assert found.branches[LAST].channel_groups == ("up_blocks.1.resnets.1.conv1",)
    assert Path("importance.png").is_file()


def test_importance_scores_channels_alone_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = done("prunekit importance embedded:digits --criterion magnitude")
    assert "Scored 22 channel groups for 5 timestep groups" in result.out
    assert "branches" not in json.loads(Path("importance.json").read_text())


@pytest.mark.slow
def test_prune_cost_and_cards_name_the_branches_that_are_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--shrink depth --target 0.7 --group 4 --samples 16 --rounds 2"
    shown = done(f"prunekit prune embedded:digits {words}").out
    config = json.loads(Path("slim/group-4/config.json").read_text())
    removed = config["plan"]["removed"]
    assert removed
    assert config["plan"]["kept"] == {}
    assert config["provenance"]["shrink"] == "depth"
    names = ", ".join(name.removeprefix("branch:") for name in removed)
    count = "1 residual branch is" if len(removed) == 1 else f"{len(removed)} residual branches are"
    assert f"Group 4: {count} removed: {names}." in " ".join(shown.split())
    card = Path("slim/group-4/README.md").read_text()
    assert f"with {len(removed)} residual branch{'es' * (len(removed) > 1)} removed" in card
    assert "| Residual branches removed | " in card
    facts = done(f"prunekit prune embedded:digits {words} --output again --json").json
    assert facts["removed_branches"] == removed
    counted = done("prunekit cost slim/group-4 --json").json
    assert counted["macs"] == config["macs"]
    assert counted["removed_modules"] == [stub["module"] for stub in config["stubs"]]
    assert "Removed with residual branches: " in done("prunekit cost slim/group-4").out
    assert "removed_modules" not in done("prunekit cost embedded:digits --json").json
