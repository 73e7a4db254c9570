"""Scores by gradients are the same when blocks are checkpointed, in either way, and nobody's ``.grad`` changes."""

import numpy as np
import pytest
import torch
from denoisers import GROUPS
from networks import unet
from torch import nn
from torch.utils.checkpoint import checkpoint

from prunekit.errors import InputError
from prunekit.importance import importance

INPUTS = (torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([5]))
BY_GRADIENTS = ("taylor", "diff-pruning", "fisher")


class Blocks(nn.Module):
    """Residual blocks that are checkpointed as ``how`` says: not at all, or with its value of ``use_reentrant``."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8)) for _ in range(3))

    def forward(self, x, t):
        h = torch.tanh(self.first(x) + t[:, None] / 100)
        for block in self.blocks:
            h = h + (block(h) if self.how is None else checkpoint(block, h, use_reentrant=self.how))
        return self.out(h)


def blocks(how):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Blocks(how)


def loss(model, timesteps, generator):
    x = torch.randn(len(timesteps), 6, generator=generator)
    return (model(x, timesteps) - x).square().mean()


def scored(model, by, inputs=INPUTS, loss=loss, samples=12):
    return importance(model, inputs, loss, GROUPS, by=by, samples=samples, chunk=5)


def assert_same(one, other):
    assert one.sizes == other.sizes
    for mine, theirs in zip(one.scores, other.scores, strict=True):
        assert any(values.any() for values in mine.values())
        for name in mine:
            np.testing.assert_allclose(mine[name], theirs[name], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("by", BY_GRADIENTS)
def test_checkpointed_blocks_have_the_scores_of_plain_ones(by, reentrant):
    assert_same(scored(blocks(reentrant), by), scored(blocks(None), by))


@pytest.mark.slow_but("taylor-False")
@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("by", BY_GRADIENTS)
def test_a_diffusers_network_that_checkpoints_has_the_scores_of_one_that_does_not(by, reentrant):
    def unet_loss(model, timesteps, generator):
        noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
        return (model(noise, timesteps).sample - noise).square().mean()

    inputs = (torch.zeros(1, 1, 8, 8), torch.tensor([3]))
    plain, checkpointed = unet(), unet()
    checkpointed.load_state_dict(plain.state_dict())
    checkpointed.enable_gradient_checkpointing(
        lambda module, *given: checkpoint(module.__call__, *given, use_reentrant=reentrant)
    )
    assert checkpointed.is_gradient_checkpointing
    assert_same(scored(checkpointed, by, inputs, unet_loss, samples=4), scored(plain, by, inputs, unet_loss, samples=4))


@pytest.mark.parametrize("by", BY_GRADIENTS)
def test_gradients_of_the_network_and_of_the_losss_own_weights_stay(by):
    model, scale = blocks(True), nn.Parameter(torch.ones(6))
    scale.grad = torch.full((6,), 7.0)
    model.out.weight.grad = torch.full_like(model.out.weight, 3.0)

    def weighted(model, timesteps, generator):
        x = torch.randn(len(timesteps), 6, generator=generator)
        return ((model(x, timesteps) - x) * scale).square().mean()

    scored(model, by, loss=weighted)
    assert torch.equal(scale.grad, torch.full((6,), 7.0))
    assert torch.equal(model.out.weight.grad, torch.full_like(model.out.weight, 3.0))
    assert model.first.weight.grad is None


def test_a_whole_network_in_a_reentrant_checkpoint_is_refused_until_its_input_has_a_gradient():
    def hidden(given):
        def loss(model, timesteps, generator):
            x = torch.randn(len(timesteps), 6, generator=generator).requires_grad_(given)
            return (checkpoint(model, x, timesteps, use_reentrant=True) - x.detach()).square().mean()

        return loss

    with pytest.warns(UserWarning, match="None of the inputs"), pytest.raises(InputError, match="requires_grad_"):
        scored(blocks(None), "taylor", loss=hidden(False))
    assert_same(scored(blocks(None), "taylor", loss=hidden(True)), scored(blocks(None), "taylor"))
