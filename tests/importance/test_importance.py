import json

import numpy as np
import pandas as pd
import pytest
import torch
from denoisers import GROUPS, INPUTS, Denoiser, drawn, made, score
from torch import nn

from prunekit.errors import FileFormatError, InputError, MissingFileError
from prunekit.graph import Constraints, trace
from prunekit.importance import CRITERIA, ImportanceMap, criterion, importance


@pytest.fixture
def model():
    return made(Denoiser)


def test_seeds_matter_to_random_and_groups_do_not_share_its_scores(model):
    assert not np.array_equal(
        score(model, "random", seed=1).of(0)["first"], score(model, "random", seed=2).of(0)["first"]
    )
    found = score(model, "random")
    assert not np.array_equal(found.of(0)["first"], found.of(1)["first"])


def test_records_are_tidy(model):
    found = score(model)
    records = found.records()
    assert len(records) == 3 * (8 + 10)
    assert len({(r["timestep_group"], r["channel_group"], r["channel"]) for r in records}) == len(records)
    one = next(r for r in records if (r["timestep_group"], r["channel_group"], r["channel"]) == (2, "second", 9))
    assert one["score"] == found.of(2)["second"][9]


def test_maps_survive_json_exactly(model):
    found = score(model)
    again = ImportanceMap.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.records() == found.records()
    assert (again.criterion, again.timestep_groups) == ("taylor", found.timestep_groups)
    assert dict(again.left_whole) == dict(found.left_whole)


def test_layers_that_are_left_whole_are_named_with_the_reason(model):
    assert score(model).left_whole == {"out": "its channels are the network's output"}


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("scores"),
        lambda d: d["scores"][0].pop(),
        lambda d: d["scores"][0][0].append(1.0),
        lambda d: d["scores"].__setitem__(0, "words"),
        lambda d: d["channel_groups"][0].pop("size"),
        lambda d: d.__setitem__("timestep_groups", 3),
        lambda d: d["scores"].pop(),
    ],
)
def test_json_that_is_no_map_is_refused(model, change):
    data = score(model).to_json()
    change(data)
    with pytest.raises(FileFormatError, match="prunekit importance"):
        ImportanceMap.from_json(data)


def test_a_group_that_was_not_scored_is_refused(model):
    with pytest.raises(InputError, match=r"Timestep group 0 .* \[1\]"):
        score(model, groups=[GROUPS[1]]).of(0)


def test_a_criterion_may_be_any_callable_and_an_unknown_name_is_refused(model):
    def flat(model, graph, probe):
        return {group.name: np.ones(group.size) for group in graph}

    assert score(model, flat).criterion == "flat"
    with pytest.raises(InputError, match=r"'newton'.*taylor"):
        score(model, "newton")
    assert criterion("taylor") is CRITERIA["taylor"]


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda m, t, g: m(torch.zeros(len(t), 6), t), "shape"),
        (lambda m, t, g: 1.0, "float"),
        (lambda m, t, g: m(torch.zeros(len(t), 6), t).sum() * float("nan"), "not finite"),
        (lambda m, t, g: m(torch.zeros(len(t), 6), t).sum() * 1j, "shape .* complex64; .*one floating-point number"),
        (lambda m, t, g: (m(torch.zeros(len(t), 6), t).sum() > 0).long(), "int64"),
    ],
)
def test_losses_that_are_not_one_finite_number_are_refused(model, loss, reason):
    with pytest.raises(InputError, match=reason):
        score(model, loss=loss)


@pytest.mark.parametrize("by", ["taylor", "magnitude", "fisher", "proxy"])
def test_a_loss_that_calls_backward_itself_is_refused(model, by):
    def differentiating(network, timesteps, generator):
        loss = network(torch.randn(len(timesteps), 6, generator=generator), timesteps).square().mean()
        loss.backward(retain_graph=True)
        return loss

    if by == "magnitude":
        score(model, by, loss=differentiating)  # evaluates none
    else:
        with pytest.raises(InputError, match=r"differentiates itself.*leave backward\(\) out"):
            score(model, by, loss=differentiating)


def test_a_loss_with_a_penalty_on_gradients_is_none_that_differentiates_itself(model):
    def penalised(network, timesteps, generator):
        noisy = torch.randn(len(timesteps), 6, generator=generator).requires_grad_()
        with torch.enable_grad():
            loss = network(noisy, timesteps).square().mean()
            slope = torch.autograd.grad(loss, noisy, create_graph=True)[0]
        return loss + slope.square().mean()

    assert score(model, "taylor", loss=penalised).of(1)


def test_a_loss_with_a_generator_of_its_own_is_refused(model):
    own = torch.Generator().manual_seed(0)

    def drifting(network, timesteps, generator):
        return (network(torch.randn(len(timesteps), 6, generator=own), timesteps)).square().mean()

    with pytest.raises(InputError, match=r"for the same timesteps and generator.*expected the same twice"):
        score(model, loss=drifting)


@pytest.mark.parametrize("groups", [3, [30, 60], "uniform"])
def test_what_is_no_timestep_group_is_refused(model, groups):
    with pytest.raises(InputError, match="as a timestep group; expected TimestepGroups"):
        importance(model, INPUTS, None, groups, by="magnitude")


def test_what_is_no_criterion_is_refused(model):
    with pytest.raises(InputError, match="Got 3 as the criterion"):
        importance(model, INPUTS, None, [], by=3)


def test_complex_weights_have_no_scores_unless_they_stay_whole():
    class Waves(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(6, 16, dtype=torch.cfloat)
            self.second = torch.nn.Linear(16, 6, dtype=torch.cfloat)
            self.third, self.last = torch.nn.Linear(6, 12), torch.nn.Linear(12, 2)

        def forward(self, x):
            return self.last(self.third(self.second(self.first(x)).abs()))

    model, inputs = Waves(), (torch.zeros(1, 6, dtype=torch.cfloat),)
    with pytest.raises(InputError, match=r"first.weight has complex numbers.*Constraints\(keep=\('first',\)\)"):
        importance(model, inputs, None, [GROUPS[0]], by="magnitude")
    graph = trace(model, inputs, constraints=Constraints(keep=("first", "second")))
    found = importance(model, inputs, None, [GROUPS[0]], by="magnitude", graph=graph)
    assert (found.of(0)["third"] > 0).all()


def test_a_known_graph_is_used_as_it_is(model):
    graph = trace(model, INPUTS)
    np.testing.assert_array_equal(score(model, graph=graph).of(0)["first"], score(model).of(0)["first"])


def test_frames_are_tidy_and_made_by_whatever_makes_them(model):
    found = score(model)
    frame = found.to_frame(pd.DataFrame)
    assert list(frame) == ["timestep_group", "channel_group", "channel", "score"]
    assert frame.to_dict("records") == found.records()
    one = frame.query("timestep_group == 1 and channel_group == 'second'")
    np.testing.assert_array_equal(one.sort_values("channel").score, found.of(1)["second"])
    assert frame.dtypes["score"] == np.float64


@pytest.mark.parametrize("suffix", ["json", "npz"])
@pytest.mark.parametrize("by", ["taylor", "proxy"])
def test_maps_survive_files_exactly(model, tmp_path, suffix, by):
    found = score(model, by)
    found.save(tmp_path / "deep" / f"map.{suffix}")
    again = ImportanceMap.load(str(tmp_path / "deep" / f"map.{suffix}"))
    assert again.records() == found.records()
    assert again.to_json() == found.to_json()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == [f"map.{suffix}"]


def test_maps_of_networks_without_channel_groups_survive_too(tmp_path):
    found = importance(
        nn.Linear(6, 6), INPUTS[:1], lambda m, t, g: m(torch.ones(len(t), 6)).mean(), GROUPS, by="fisher"
    )
    assert found.records() == []
    found.save(tmp_path / "map.npz")
    assert ImportanceMap.load(tmp_path / "map.npz").to_json() == found.to_json()


def test_files_of_other_kinds_are_refused(model, tmp_path):
    found = score(model)
    for name in ("map.csv", "map"):
        with pytest.raises(InputError, match=r"\.json or \.npz"):
            found.save(tmp_path / name)
        with pytest.raises(InputError, match=r"\.json or \.npz"):
            ImportanceMap.load(tmp_path / name)
    with pytest.raises(MissingFileError):
        ImportanceMap.load(tmp_path / "none.npz")
    assert not list(tmp_path.iterdir())


class Pickled:
    ran = False

    def __reduce__(self):
        return (setattr, (Pickled, "ran", True))


def test_broken_archives_are_refused_and_run_no_code(model, tmp_path):
    path = tmp_path / "map.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(FileFormatError, match="prunekit importance"):
        ImportanceMap.load(path)
    np.savez(path, about=np.array(Pickled(), dtype=object), allow_pickle=True)
    with pytest.raises(FileFormatError, match="prunekit importance"):
        ImportanceMap.load(path)
    assert not Pickled.ran
    about = {key: value for key, value in score(model).to_json().items() if key != "scores"}
    arrays = {"scores_0": np.zeros((3, 8)), "scores_1": np.zeros((3, 10))}
    np.savez(path, about=np.array(json.dumps(about)), **arrays)
    ImportanceMap.load(path)
    for broken in ({"scores_0": np.zeros((2, 8))}, {"scores_1": np.zeros((3, 9))}, {"scores_0": np.zeros(())}):
        np.savez(path, about=np.array(json.dumps(about)), **{**arrays, **broken})
        with pytest.raises(FileFormatError, match="prunekit importance"):
            ImportanceMap.load(path)


def test_a_channel_group_of_one_width_is_named_as_left_whole():
    class Normed(nn.Module):
        """As many norm groups as channels."""

        def __init__(self):
            super().__init__()
            self.first, self.norm, self.out = nn.Conv2d(2, 4, 1), nn.GroupNorm(1, 4), nn.Conv2d(4, 2, 1)
            self.second, self.tight, self.last = nn.Conv2d(2, 4, 1), nn.GroupNorm(4, 4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.last(self.tight(self.second(self.out(self.norm(self.first(x))))))

    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    for by in CRITERIA:
        found = importance(made(Normed), (x,), lambda m, t, g: m(x).square().mean(), GROUPS, by=by, samples=2)
        assert found.left_whole["second"].startswith("no smaller width is possible")
        assert "first" not in found.left_whole


def test_the_whole_models_timesteps_are_the_partitions(model):
    seen = set()

    def spy(model, timesteps, generator):
        seen.update(timesteps.tolist())
        return drawn(model, timesteps, generator)

    score(model, "diff-pruning", spy, GROUPS)
    assert seen == set(range(100))
    seen.clear()
    score(model, "diff-pruning", spy, [GROUPS[1]])
    assert seen == set(range(60))
    seen.clear()
    score(model, "diff-pruning", spy, [GROUPS[1]], num_timesteps=80)
    assert seen == set(range(80))


def test_nothing_is_scored_for_no_group(model):
    for by in CRITERIA:
        assert score(model, by, groups=[]).records() == []


def test_a_criterion_of_ones_own_needs_no_hash(model):
    class Mine:
        __hash__ = None

        def __call__(self, network, graph, probe):
            return {group.name: np.arange(group.size, dtype=float) for group in graph}

    assert list(score(model, Mine()).of(0)["first"]) == list(range(8))
