"""Gradient similarity: cosines of mean gradients, the same for the same seed, and the network left as it was."""

import copy

import numpy as np
import pytest
import torch
from denoisers import Denoiser

from prunekit.errors import InputError
from prunekit.importance import GradientSimilarity
from prunekit.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(100)


def loss(model, timesteps, generator):
    clean, noise = (torch.randn(len(timesteps), 6, generator=generator) for _ in range(2))
    signal, spread = (torch.from_numpy(a.copy()).float()[timesteps, None] for a in (SCHEDULE.signal, SCHEDULE.noise))
    return (model(signal * clean + spread * noise, timesteps) - noise).square().mean()


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Denoiser()


def similarity(model, **options):
    return GradientSimilarity(model, loss, **{"samples": 16, "nodes": 10, **options})


def test_the_map_is_the_cosine_of_the_gradients(model):
    evidence = similarity(model, samples=8, nodes=3).measure(100)
    assert evidence.timesteps.tolist() == [16, 50, 83]
    from prunekit.groups import TimestepGroup
    from prunekit.importance import Probe

    flat = []
    for start, stop in [(0, 34), (34, 67), (67, 100)]:
        network = copy.deepcopy(model).eval()
        ((mean, _),) = Probe(loss, TimestepGroup(0, start, stop), 8).losses(network)
        mean.backward()
        flat.append(torch.cat([p.grad.flatten() for p in network.parameters()]).double().numpy())
    for i, one in enumerate(flat):
        assert evidence.curves["gradient_norm"][i] == pytest.approx(np.linalg.norm(one), rel=1e-4)
        for j, other in enumerate(flat):
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            assert evidence.matrix[i, j] == pytest.approx(cosine, abs=1e-5)


def test_the_same_seed_is_the_same_map_symmetric_with_ones_on_the_diagonal(model):
    one, again, other = (similarity(model, seed=seed).measure(100) for seed in (3, 3, 4))
    assert (one.matrix == again.matrix).all()
    assert (one.matrix != other.matrix).any()
    assert (one.matrix == one.matrix.T).all()
    assert (np.diagonal(one.matrix) == 1).all()
    assert np.abs(one.matrix).max() <= 1


def test_the_network_is_left_as_it_was(model):
    model.first.weight.requires_grad_(False)
    model.train()
    before = copy.deepcopy(model.state_dict())
    similarity(model)(SCHEDULE, 3)
    assert model.training
    assert not model.first.weight.requires_grad
    assert model.out.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fewer_coordinates_come_near_to_all_of_them(model):
    whole = similarity(model).measure(100)
    parts = [similarity(model, coordinates=400, seed=0).measure(100), similarity(model, coordinates=400).measure(100)]
    assert (parts[0].facts["coordinates"], whole.facts["coordinates"]) == (400, whole.facts["parameters"])
    assert 0 < np.abs(whole.matrix - parts[0].matrix).max() < 5 / np.sqrt(400)
    assert (parts[0].matrix == parts[1].matrix).all()


def test_the_cuts_follow_the_gradients():
    """Gradients that turn round at timestep 40 and 70: the exact partition finds both."""
    model = torch.nn.Linear(1, 3, bias=False)

    def turning(model, timesteps, generator):
        kind = (timesteps >= 40).long() + (timesteps >= 70).long()
        return model(torch.ones(len(timesteps), 1))[torch.arange(len(kind)), kind].sum() / len(timesteps)

    grouping = GradientSimilarity(model, turning, samples=4, nodes=100)(SCHEDULE, 3)
    assert grouping.groups.cuts == (40, 70)


def test_a_loss_without_gradient_is_refused(model):
    with pytest.raises(InputError, match="zero or not finite for timesteps 0 … 49"):
        GradientSimilarity(
            model, lambda model, t, g: model(torch.ones(len(t), 6), t).sum() * (t >= 50).float().mean(), nodes=2
        ).measure(100)
    with pytest.raises(InputError, match="no floating-point parameters"):
        GradientSimilarity(torch.nn.Identity(), lambda model, t, g: torch.zeros((), requires_grad=True)).measure(100)


@pytest.mark.parametrize("options", [{"samples": 0}, {"nodes": 1}, {"coordinates": 0}, {"batch_size": 0}, {"seed": -1}])
def test_options_that_do_not_fit_are_refused(model, options):
    with pytest.raises(InputError, match="expected at least"):
        similarity(model, **options)
