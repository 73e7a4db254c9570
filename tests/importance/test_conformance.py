"""What every criterion keeps to, in one table."""

import copy

import numpy as np
import pytest
import torch
from denoisers import GROUPS, INPUTS, Apart, Coupled, Denoiser, Free, drawn, made, score
from networks import unet, unet_inputs

from prunekit.graph import trace
from prunekit.importance import CRITERIA, importance

MAY_BE_NEGATIVE = {"proxy"}
OF_THE_WHOLE_MODEL = {"diff-pruning"}
LOOKS_AT_THE_LOSS = {"diff-pruning", "fisher", "proxy", "taylor"}
ASKS_THE_LOSS = LOOKS_AT_THE_LOSS | {"activation"}
SEES_CHANNELS = sorted(set(CRITERIA) - {"random"})
SEES_WHAT_IS_READ = sorted(ASKS_THE_LOSS)  # a channel that nothing reads scores nothing
LOSS_POWER = {"taylor": 1, "diff-pruning": 1, "proxy": 1, "fisher": 2}  # others do not see the loss
NETWORKS = {"layers": Denoiser, "free": Free, "coupled": Coupled}

every = pytest.mark.parametrize("by", CRITERIA)
networks = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def unet_loss(model, timesteps, generator):
    x = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
    return (model(x, timesteps).sample - x).square().mean()


def assert_same(one, other, rtol=1e-12, atol=0.0):
    for scores, others in zip(one.scores, other.scores, strict=True):
        for name, values in scores.items():
            np.testing.assert_allclose(others[name], values, rtol=rtol, atol=atol)


@every
@networks
def test_one_finite_float64_for_every_channel_the_same_for_a_seed(network, by):
    model = made(network)
    graph = trace(model, INPUTS)
    found, again = score(model, by, seed=3), score(model, by, seed=3)
    assert [g.index for g in found.timestep_groups] == [0, 1, 2]
    assert dict(found.sizes) == {group.name: group.size for group in graph}
    assert len(found.sizes) >= 1
    for one, other in zip(found.scores, again.scores, strict=True):
        assert list(one) == list(found.sizes)
        for name, values in one.items():
            assert values.shape == (found.sizes[name],)
            assert values.dtype == np.float64
            assert np.isfinite(values).all()
            assert by in MAY_BE_NEGATIVE or (values >= 0).all()
            assert len(np.unique(values)) == len(values)
            np.testing.assert_array_equal(values, other[name])


@every
def test_models_flags_grads_modes_hooks_and_global_generators_are_left_alone(by):
    model = made(Denoiser).train()
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
    assert all(parameter.grad is grads[name] for name, parameter in model.named_parameters())
    assert torch.equal(model.out.weight.grad, torch.ones_like(model.out.weight))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002 - see above


@every
def test_it_leaves_the_model_alone_when_the_loss_fails(by):
    def broken(model, timesteps, generator):
        model(torch.zeros(len(timesteps), 6), timesteps)
        raise RuntimeError("no data")

    model = made(Denoiser).train()
    model.time.weight.requires_grad_(False)
    if by in ASKS_THE_LOSS:
        with pytest.raises(RuntimeError, match="no data"):
            score(model, by, broken)
    assert model.training
    assert not model.time.weight.requires_grad
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@every
def test_the_loss_is_asked_about_the_groups_own_timesteps_only(by):
    seen = []

    def spy(model, timesteps, generator):
        seen.append(timesteps.clone())
        return drawn(model, timesteps, generator)

    score(made(Denoiser), by, spy, [GROUPS[1]])
    assert bool(seen) == (by in ASKS_THE_LOSS)
    for timesteps in seen:
        assert timesteps.dtype == torch.int64
        assert timesteps.min() >= (0 if by in OF_THE_WHOLE_MODEL else 30)
        assert timesteps.max() < 60


@every
def test_groups_differ_where_the_criterion_sees_them(by):
    found = score(made(Denoiser), by)
    differs = not np.allclose(found.of(0)["first"], found.of(2)["first"])
    assert differs == (by in ASKS_THE_LOSS - OF_THE_WHOLE_MODEL or by == "random")


@every
@networks
def test_a_plain_loss_is_never_split_so_batches_change_nothing(network, by):
    assert_same(*(score(made(network), by, batch_size=size) for size in (1, 64)), rtol=0)


@every
@networks
def test_batches_of_a_loss_that_draws_apart_change_no_score(network, by):
    model = made(network)
    plain = score(model, by)
    for batch_size in (1, 5, 8, 100):
        loss = Apart()
        split = score(model, by, loss, batch_size=batch_size)
        assert_same(plain, split, rtol=2e-4, atol=1e-6 if by in MAY_BE_NEGATIVE else 1e-9)
        assert by not in ASKS_THE_LOSS or max(loss.calls) <= batch_size


@every
def test_it_works_inside_no_grad_and_with_frozen_parameters(by):
    model = made(Denoiser)
    usual = score(model, by)
    with torch.no_grad():
        assert_same(usual, score(model, by), rtol=0)
    assert_same(usual, score(model.requires_grad_(False), by), rtol=0)


@every
def test_the_scale_of_the_loss_is_the_scores_or_nothing(by):
    model = made(Denoiser)
    tripled = score(model, by, lambda *args: 3 * drawn(*args))
    factor = 3 ** LOSS_POWER.get(by, 0)
    for one, other in zip(score(model, by).scores, tripled.scores, strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(other[name], factor * values, rtol=1e-3, atol=1e-5 * np.abs(values).max())


@pytest.mark.parametrize("by", SEES_CHANNELS)
def test_permuted_channels_have_permuted_scores(by):
    model = made(Coupled)
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (permuted.one, permuted.two):
            layer.weight.copy_(layer.weight[order])
            layer.bias.copy_(layer.bias[order])
        for layer in (permuted.read, permuted.also):
            layer.weight.copy_(layer.weight[:, order])
    one, other = (score(m, by).of(1)["one"] for m in (model, permuted))
    np.testing.assert_allclose(other, one[order.numpy()], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("by", sorted(ASKS_THE_LOSS))
def test_what_the_network_computes_decides_not_how_its_weights_are_scaled(by):
    model = made(Coupled)
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (scaled.one, scaled.two):
            layer.weight[2] *= 16
            layer.bias[2] *= 16
        for layer in (scaled.read, scaled.also):
            layer.weight[:, 2] /= 16
    assert_same(score(model, by), score(scaled, by), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("by", SEES_CHANNELS)
@pytest.mark.parametrize("only", ["one", "two", "read", "also"])
def test_a_channel_that_matters_in_one_coupled_layer_only_is_kept(by, only):
    """Channel 3 has nothing in one of the layers that make it, or read it, and much in the other."""
    model = made(Coupled)
    other = {"one": "two", "two": "one", "read": "also", "also": "read"}[only]
    dim = 1 if only in ("read", "also") else 0
    with torch.no_grad():
        getattr(model, other).weight.select(dim, 3).zero_()
        getattr(model, only).weight.select(dim, 3).mul_(6)
        if dim == 1:  # the layers that make it make much of it
            model.one.weight[3] *= 3
    teacher = copy.deepcopy(model)

    def own(model, timesteps, generator):
        """At its minimum, so that whatever matters is of use; the gradients of others would be zero there."""
        x = torch.randn(len(timesteps), 6, generator=generator)
        return (model(x, timesteps) - teacher(x, timesteps)).square().mean()

    group = trace(model, INPUTS)["one"]
    assert 3 in group.select(score(model, by, own if by == "proxy" else drawn).of(1)["one"], group.size - 3)


@pytest.mark.parametrize("by", sorted(set(SEES_CHANNELS) - {"fpgm"}))
def test_a_channel_of_zeros_goes_first(by):
    model = made(Coupled)
    with torch.no_grad():
        for layer in (model.one, model.two):
            layer.weight[5] = 0
            layer.bias[5] = 0
        for layer in (model.read, model.also):
            layer.weight[:, 5] = 0
    scores = score(model, by).of(1)["one"]
    if by in MAY_BE_NEGATIVE:
        assert abs(scores[5]) < 1e-6 * np.abs(scores).max()
    else:
        assert scores[5] == 0
        assert (np.delete(scores, 5) > 0).all()


@pytest.mark.parametrize("by", SEES_WHAT_IS_READ)
def test_a_channel_that_nothing_reads_does_not_matter(by):
    model = made(Denoiser)
    with torch.no_grad():
        model.out.weight[:, 4] = 0
    found = score(model, by).of(0)["second"]
    assert abs(found[4]) <= 1e-6 * np.abs(found).max()
    assert (np.abs(np.delete(found, 4)) > abs(found[4])).all()


@pytest.mark.slow_but("taylor")
@pytest.mark.parametrize("by", sorted(set(CRITERIA) - {"proxy"}))
def test_how_norms_will_shrink_changes_no_score(by):
    found = [
        importance(unet(), unet_inputs(), unet_loss, GROUPS, by=by, samples=8, norm_mode=mode)
        for mode in ("even", "whole")
    ]
    assert_same(*found, rtol=0)
    assert all((values > 0).any() for values in found[0].of(1).values())


@pytest.mark.slow_but("magnitude", "taylor", "fisher")
@every
def test_unets_with_norms_skips_and_attention(by):
    found = importance(unet(), unet_inputs(), unet_loss, [GROUPS[2]], by=by, samples=8)
    assert len(found.sizes) > 8
    for values in found.of(2).values():
        assert np.isfinite(values).all()
        assert values.any()


@every
def test_half_precision_weights_are_scored_in_double(by):
    model = made(Coupled).to(torch.bfloat16)

    def loss(model, timesteps, generator):
        x = torch.randn(len(timesteps), 6, generator=generator).to(next(model.parameters()).dtype)
        return (model(x, timesteps) - x).float().square().mean()

    inputs = (INPUTS[0].to(torch.bfloat16), INPUTS[1])
    found = importance(model, inputs, loss, [GROUPS[0]], by=by, samples=8).of(0)["one"]
    whole = importance(model.float(), INPUTS, loss, [GROUPS[0]], by=by, samples=8).of(0)["one"]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, whole, rtol=0.3, atol=0.15 * np.abs(whole).max())
