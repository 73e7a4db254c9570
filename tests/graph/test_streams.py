"""A batch that is evaluated in several streams gives what it gives in one."""

import pytest
import torch
from torch import nn

from prunekit.evaluation import group_losses
from prunekit.graph.streams import in_streams
from prunekit.sampling import make_sampler
from prunekit.steps.bases import open_base
from prunekit.steps.budgets import cut_groups
from prunekit.steps.image_choice import images_of
from prunekit.training import DenoisingObjective


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Kept(nn.Module):
    """Keeps its input between two lines, as some networks do."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = 0

    def forward(self, sample, timesteps, class_labels=None):
        self.calls += 1
        self.seen = sample
        for _ in range(50):
            sample = sample * self.weight
        by = timesteps if timesteps.ndim == 0 else timesteps.reshape(-1, 1)
        return (self.seen + sample + by + (0 if class_labels is None else class_labels.reshape(-1, 1)),)


def split(model, batch, *arguments):
    with torch.no_grad(), in_streams(model, batch) as evaluated:
        return evaluated(*arguments), evaluated is not model


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("t", [torch.tensor(3), torch.arange(101)], ids=["one", "each"])
def test_samples_timesteps_and_classes_stay_together_and_weights_are_shared(t):
    model, x, classes = Kept(), torch.randn(101, 5), torch.arange(101)
    found, apart = split(model, len(x), x, t, classes)
    assert apart
    assert model.calls == 1  # the other half went through a copy
    by = t if t.ndim == 0 else t.reshape(-1, 1)
    assert torch.equal(found, x + x + by + classes.reshape(-1, 1))
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_the_whole_batch_goes_through_a_model_that_others_look_at_or_that_is_small():
    x, t = torch.randn(101, 5), torch.tensor(3)
    assert not split(Kept(), 40, x[:40], t)[1]
    hooked = Kept()
    hooked.register_forward_hook(lambda *_: None)
    assert not split(hooked, 101, x, t)[1]
    alone = Kept()
    alone.evaluates_alone = True
    assert not split(alone, 101, x, t)[1]
    with torch.autocast("cpu", torch.bfloat16):
        assert not split(Kept(), 101, x, t)[1]
    with in_streams(model := Kept(), 101) as evaluated:  # gradients
        assert evaluated is model


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_stream_is_raised():
    with pytest.raises(RuntimeError, match="size"):
        split(Kept(), 101, torch.randn(101, 5), torch.arange(100))


@pytest.mark.usefixtures("two_threads")
def test_samples_and_losses_are_those_of_one_stream(monkeypatch):
    base = open_base("embedded:digits")
    sampler = make_sampler("ddpm", 2, base.parameterization, (1, 8, 8))
    objective = DenoisingObjective(images_of(base).held_out.images, base.parameterization)
    groups = cut_groups(base.schedule, 2)

    def measured():
        losses = group_losses(base.model, objective, groups, batches=1, batch_size=64, seed=0)
        return sampler(base.model, 65, 1), losses

    samples, losses = measured()
    again, _ = measured()
    assert torch.equal(samples, again)
    monkeypatch.setattr("prunekit.graph.streams._LEAST", 1000)
    whole, whole_losses = measured()
    assert (samples - whole).abs().max() < 1e-4
    for one, other in zip(losses, whole_losses, strict=True):
        assert one.draw == other.draw
        assert one.losses == pytest.approx(other.losses, rel=1e-4)
