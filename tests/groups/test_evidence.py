"""Every grouping method by one table: a partition with evidence that survives a file."""

import json

import numpy as np
import pytest
import torch

from prunekit.errors import FileFormatError, InputError
from prunekit.groups import METHODS, Evidence, Explicit, Grouping, Similarity, TimestepGroups
from prunekit.importance import GradientSimilarity
from prunekit.schedule import NoiseSchedule

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 3, 3), dtype=np.uint8)
SCHEDULES = {
    "discrete": NoiseSchedule.linear(120),
    "cosine": NoiseSchedule.cosine(90),
    "edm": NoiseSchedule.edm(100),
    "short": NoiseSchedule.linear(7),
}


def gradient(count):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = torch.nn.Linear(9, 9)

    def loss(model, timesteps, generator):
        noise = torch.randn(len(timesteps), 9, generator=generator)
        return ((model(noise) - noise) ** 2).mean(1).mul(
            timesteps + 1.0
        ).mean() + model.bias.sin().sum() * timesteps.float().mean()

    return GradientSimilarity(model, loss, samples=8, nodes=10)


TABLE = {
    **{name: lambda count, name=name: METHODS[name] for name in METHODS},
    "explicit": lambda count: Explicit(tuple(range(1, count))),
    "similarity": lambda count: Similarity(IMAGES, rule="dynamic", samples=6, nodes=12),
    "gradient": gradient,
}


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("name", TABLE)
def test_a_method_gives_a_partition_with_evidence(name, count, kind):
    schedule, method = SCHEDULES[kind], TABLE[name](count)
    grouping = method(schedule, count)
    assert method.name == grouping.groups.method == name
    assert len(grouping.groups) == count
    assert grouping.groups.num_timesteps == schedule.num_timesteps
    evidence = grouping.evidence
    assert evidence.curves
    assert all(curve.shape == evidence.timesteps.shape for curve in evidence.curves.values())
    assert (evidence.matrix is not None) == (name in ("similarity", "gradient"))
    if evidence.matrix is not None:
        assert (np.diagonal(evidence.matrix) == 1).all()
        assert (evidence.matrix == evidence.matrix.T).all()
    again = TABLE[name](count)(schedule, count)
    text = json.dumps(grouping.to_json(), allow_nan=False)
    assert json.dumps(again.to_json()) == text
    read = Grouping.from_json(json.loads(text))
    assert read.groups == grouping.groups == TimestepGroups.from_json(json.loads(text))
    assert json.dumps(read.to_json()) == text


@pytest.mark.parametrize("count", [0, -2, 121])
@pytest.mark.parametrize("name", TABLE)
def test_a_method_refuses_an_impossible_count(name, count):
    with pytest.raises(InputError, match=f"Got {count} timestep groups for 120 timesteps; expected 1 … 120"):
        TABLE[name](count)(SCHEDULES["discrete"], count)


def test_explicit_cuts_and_another_count_are_refused():
    with pytest.raises(InputError, match="Got 2 explicit cuts and 4 timestep groups"):
        Explicit((3, 5))(SCHEDULES["short"], 4)


def test_a_file_without_evidence_is_read():
    groups = TimestepGroups.from_cuts(10, [4])
    read = Grouping.from_json(groups.to_json())
    assert read.groups == groups
    assert read.evidence.matrix is None


GOOD = {"timesteps": [0, 4], "curves": {"a": [1.0, 0.5]}, "matrix": [[1, 0.5], [0.5, 1]], "facts": {"eta": 0.1}}


@pytest.mark.parametrize(
    "change",
    [
        {"timesteps": []},
        {"timesteps": [0, 0]},
        {"timesteps": [-1, 4]},
        {"timesteps": [0, 4.5]},
        {"timesteps": [0, 10]},
        {"timesteps": [[0, 4]]},
        {"timesteps": "04"},
        {"curves": {"a": [1.0]}},
        {"curves": {"a": ["1", "2"]}},
        {"curves": {"a": [True, False]}},
        {"curves": [1.0, 0.5]},
        {"curves": None},
        {"matrix": [[1, 0.5]]},
        {"matrix": [[1, 0.5], [0.4, 1]]},
        {"matrix": [[1, 0.5], [0.5]]},
        {"matrix": [[1, float("nan")], [float("nan"), 1]]},
        {"facts": None},
        {"more": 1},
    ],
    ids=str,
)
def test_evidence_that_is_none_is_refused(change):
    data = TimestepGroups.from_cuts(10, [5]).to_json()
    assert Grouping.from_json({**data, "evidence": GOOD}).evidence.facts == {"eta": 0.1}
    with pytest.raises(FileFormatError, match="the file again with `prunekit groups`"):
        Grouping.from_json({**data, "evidence": {**GOOD, **change}})


@pytest.mark.parametrize("evidence", [None, 3, [], {}, {"timesteps": [0]}], ids=str)
def test_evidence_of_another_kind_is_refused(evidence):
    with pytest.raises(FileFormatError, match="evidence"):
        Grouping.from_json({**TimestepGroups.from_cuts(10, [5]).to_json(), "evidence": evidence})


def test_what_is_stored_is_what_is_kept():
    evidence = Evidence(np.array([0, 1]), {"a": np.array([1 / 3, 2 / 3])})
    assert evidence.curves["a"].tolist() == [0.333333, 0.666667]
