"""The importance command: every criterion, both kinds of file."""

import numpy as np
import pytest
from command_line import done, typed

from prunekit.importance import ImportanceMap


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
