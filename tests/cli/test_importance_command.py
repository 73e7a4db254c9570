"""The importance command: every criterion, both kinds of file."""

from typing import get_args

import numpy as np
import pytest
from command_line import done, typed

from prunekit.cli.choices import Criterion, Proposer, Proxy, Repair
from prunekit.importance import CRITERIA, ImportanceMap
from prunekit.search import PROPOSERS, PROXIES, RepairKind


def test_the_command_line_knows_every_criterion_proposer_proxy_and_repair():
    assert [criterion.value for criterion in Criterion] == sorted(CRITERIA)
    assert {proposer.value for proposer in Proposer} == set(PROPOSERS)
    assert {proxy.value for proxy in Proxy} == set(PROXIES)
    assert {repair.value for repair in Repair} == set(get_args(RepairKind))


def test_maps_are_written_as_npz_where_the_name_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = done("prunekit importance embedded:digits --samples 8 --criterion fisher --output map.npz --json").json
    assert facts["output"] == "map.npz"
    done("prunekit importance embedded:digits --samples 8 --criterion fisher --output map.json")
    one, other = ImportanceMap.load("map.npz"), ImportanceMap.load("map.json")
    assert one.criterion == "fisher"
    for scores, others in zip(one.scores, other.scores, strict=True):
        for name, values in scores.items():
            np.testing.assert_allclose(others[name], values, rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.json", "map.npz", "map.png"]


@pytest.mark.parametrize("name", ["map.csv", "map"])
def test_other_names_are_refused_before_anything_is_scored(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = typed(f"prunekit importance embedded:digits --output {name}")
    assert result.code == 2
    assert "--output" in result.sentence
    assert not list(tmp_path.iterdir())
