import json

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import FileFormatError, InputError
from prunekit.graph import trace
from prunekit.groups import TimestepGroup, TimestepGroups
from prunekit.importance import CRITERIA, ImportanceMap, Probe, criterion, importance

GROUPS = TimestepGroups.from_cuts(100, [30, 60])
INPUTS = (torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([5]))


class Denoiser(nn.Module):
    """Plain layers and a timestep; dropout and a batch norm, which eval mode must silence."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 6)
        self.time = nn.Embedding(100, 8)
        self.norm = nn.BatchNorm1d(10)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t):
        h = torch.tanh(self.first(x) + self.time(t))
        return self.out(self.drop(torch.tanh(self.norm(self.second(h)))))


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Denoiser()


def drawn(model, timesteps, generator):
    """Mean squared error on data that the generator draws."""
    x = torch.randn(len(timesteps), 6, generator=generator)
    return (model(x, timesteps) - x).square().mean()


def fixed(model, timesteps, generator):
    """Mean of one term per timestep; nothing is drawn."""
    x = torch.sin(timesteps[:, None] * torch.arange(1.0, 7.0))
    return (model(x, timesteps) - x).square().mean()


def score(model, by="taylor", loss=drawn, groups=GROUPS, **options):
    return importance(model, INPUTS, loss, groups, by=by, **{"samples": 24, "batch_size": 8, **options})


@pytest.mark.parametrize("by", CRITERIA)
class TestEveryCriterion:
    def test_gives_one_finite_float64_for_every_channel_and_repeats_for_a_seed(self, model, by):
        found, again = score(model, by, seed=3), score(model, by, seed=3)
        assert [g.index for g in found.timestep_groups] == [0, 1, 2]
        assert dict(found.sizes) == {"first": 8, "second": 10}
        for one, other in zip(found.scores, again.scores, strict=True):
            assert list(one) == list(found.sizes)
            for name, values in one.items():
                assert values.shape == (found.sizes[name],)
                assert values.dtype == np.float64
                assert np.isfinite(values).all()
                assert (values >= 0).all()
                assert len(np.unique(values)) == len(values)
                np.testing.assert_array_equal(values, other[name])

    def test_leaves_the_model_and_the_global_generators_alone(self, model, by):
        model.train()
        model.norm.eval()
        model.time.weight.requires_grad_(False)
        model.out.weight.grad = torch.ones_like(model.out.weight)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        flags = [parameter.requires_grad for parameter in model.parameters()]
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - watched, not used
        score(model, by)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        for name, parameter in model.named_parameters():
            assert parameter.grad is grads[name]
        assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))
        assert torch.equal(torch.get_rng_state(), torch_state)
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002 - see above

    def test_asks_the_loss_about_the_groups_own_timesteps_only(self, model, by):
        seen = []

        def spy(model, timesteps, generator):
            seen.append(timesteps.clone())
            return drawn(model, timesteps, generator)

        score(model, by, spy, [GROUPS[1]])
        for timesteps in seen:
            assert timesteps.dtype == torch.int64
            assert timesteps.min() >= 30
            assert timesteps.max() < 60

    def test_works_inside_no_grad(self, model, by):
        with torch.no_grad():
            inside = score(model, by)
        np.testing.assert_array_equal(inside.of(0)["first"], score(model, by).of(0)["first"])


def test_timestep_groups_get_different_scores_where_the_loss_differs(model):
    found = score(model)
    assert not np.allclose(found.of(0)["first"], found.of(2)["first"])


def test_seeds_matter_to_random_and_groups_do_not_share_its_scores(model):
    assert not np.array_equal(
        score(model, "random", seed=1).of(0)["first"], score(model, "random", seed=2).of(0)["first"]
    )
    found = score(model, "random")
    assert not np.array_equal(found.of(0)["first"], found.of(1)["first"])


def test_magnitude_prefers_channels_of_large_weights(model):
    with torch.no_grad():
        model.first.weight[3] *= 50
        model.time.weight[:, 3] *= 50
        model.out.weight[:, 7] *= 1e-3
        model.second.weight[7] *= 1e-3
    found = score(model, "magnitude").of(0)
    assert found["first"].argmax() == 3
    assert found["second"].argmin() == 7


def test_magnitude_is_the_mean_of_norms_each_scaled_to_mean_one(model):
    def norms(weight, dim):
        lengths = weight.detach().double().movedim(dim, 0).flatten(1).norm(dim=1).numpy()
        return lengths / lengths.mean()

    expected = (norms(model.second.weight, 0) + norms(model.out.weight, 1)) / 2
    np.testing.assert_allclose(score(model, "magnitude").of(1)["second"], expected, rtol=1e-12)


def test_magnitude_weighs_no_layer_by_its_scale(model):
    before = score(model, "magnitude").of(0)["second"]
    with torch.no_grad():
        model.out.weight *= 1000
    np.testing.assert_allclose(score(model, "magnitude").of(0)["second"], before, rtol=1e-6)


def test_taylor_is_the_brute_force_product_of_weights_and_gradients():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.out(self.first(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Linear()
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    loss = lambda model, timesteps, generator: model(x).square().sum()  # noqa: E731 - a lambda is a loss too
    found = importance(model, (x[:1],), loss, [TimestepGroup(0, 0, 10)], samples=6, batch_size=4).of(0)["first"]

    w, b, v = (p.detach().double() for p in (model.first.weight, model.first.bias, model.out.weight))
    h = x.double() @ w.T + b
    dh = 2 * (h @ v.T) @ v  # gradient of the sum of squares
    grad_w, grad_b, grad_v = dh.T @ x.double(), dh.sum(0), (2 * (h @ v.T)).T @ h
    expected = (w * grad_w).sum(1).abs() + (b * grad_b).abs() + (v * grad_v).sum(0).abs()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)


def test_taylor_does_not_depend_on_how_the_calibration_set_is_split(model):
    """For a loss that draws nothing. One that draws gets one generator per batch, so its draws follow the split."""
    whole = score(model, loss=fixed, batch_size=24)
    for batch_size in (1, 5, 24, 100):
        split = score(model, loss=fixed, batch_size=batch_size)
        for group in range(3):
            for name in whole.sizes:
                np.testing.assert_allclose(split.of(group)[name], whole.of(group)[name], rtol=1e-4, atol=1e-8)


def test_a_channel_that_feeds_nothing_does_not_matter(model):
    with torch.no_grad():
        model.out.weight[:, 4] = 0
    found = score(model).of(0)["second"]
    assert found[4] == 0
    assert (np.delete(found, 4) > 0).all()


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
    ],
)
def test_losses_that_are_not_one_finite_number_are_refused(model, loss, reason):
    with pytest.raises(InputError, match=reason):
        score(model, loss=loss)


def test_a_known_graph_is_used_as_it_is(model):
    graph = trace(model, INPUTS)
    np.testing.assert_array_equal(score(model, graph=graph).of(0)["first"], score(model).of(0)["first"])


class TestProbe:
    def test_draws_are_spread_evenly_and_the_same_each_time(self):
        probe = Probe(drawn, GROUPS[1], samples=60, batch_size=16, seed=5)
        first, again = list(probe.batches()), list(probe.batches())
        assert [len(t) for t, _ in first] == [16, 16, 16, 12]
        assert torch.cat([t for t, _ in first]).sort().values.tolist() == sorted([*range(30, 60), *range(30, 60)])
        for (t, generator), (u, other) in zip(first, again, strict=True):
            assert torch.equal(t, u)
            assert torch.equal(torch.rand(4, generator=generator), torch.rand(4, generator=other))

    def test_batches_do_not_share_their_noise(self):
        draws = [torch.rand(3, generator=g) for _, g in Probe(drawn, GROUPS[0], 32, 8).batches()]
        assert len({tuple(draw.tolist()) for draw in draws}) == 4

    def test_the_mean_weighs_batches_by_their_size(self):
        probe = Probe(lambda m, t, g: t.double().mean(), GROUPS[2], samples=40, batch_size=16)
        assert probe.mean(nn.Identity()) == pytest.approx(np.mean(range(60, 100)))

    def test_the_mean_is_taken_in_eval_mode_and_updates_no_statistics(self, model):
        model.train()
        statistics = model.norm.running_mean.clone()
        probe = Probe(drawn, GROUPS[0], 16, 8)
        assert probe.mean(model) == probe.mean(model)
        assert torch.equal(model.norm.running_mean, statistics)
        assert model.training

    @pytest.mark.parametrize("sizes", [(0, 1), (1, 0), (-1, 4)])
    def test_needs_a_sample_and_a_batch(self, sizes):
        with pytest.raises(InputError, match="at least 1"):
            Probe(drawn, GROUPS[0], *sizes)
