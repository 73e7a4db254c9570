"""Networks with learned variances: their output's halves, the variational bound, and how a training keeps the variances."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import norm
from tiny_training import TinyNet
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.schedule.posterior import Posterior
from prunekit.training import (
    BoundedVariance,
    DenoisingObjective,
    Distillation,
    DistilledVariance,
    Halves,
    RangeTimesteps,
    TrainOptions,
    VariationalBound,
    split_output,
    train,
)

T = 50
SCHEDULE = NoiseSchedule.linear(T)


class Doubled(TinyNet):
    """A small network with an output of twice its samples' channels."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, 2, 3, padding=1)


def doubled(seed: int = 0) -> Doubled:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return Doubled()


def objective(kind: str = "epsilon") -> DenoisingObjective:
    images = torch.randint(0, 256, (24, 1, 6, 6), generator=Generator().manual_seed(0), dtype=torch.uint8)
    return DenoisingObjective(images, Parameterization(SCHEDULE, kind))


def batch(own: DenoisingObjective, timesteps: Tensor) -> tuple[Tensor, ...]:
    return own.draw(timesteps, Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("samples", "output", "axis"),
    [((2, 3, 4, 4), (2, 6, 4, 4), 1), ((2, 5, 4), (2, 5, 8), 2), ((2, 4, 3, 8, 8), (2, 8, 3, 8, 8), 1)],
    ids=["pictures", "tokens", "videos"],
)
def test_the_first_half_of_the_channels_is_the_prediction(
    samples: tuple[int, ...], output: tuple[int, ...], axis: int
) -> None:
    given = torch.randn(output, generator=Generator().manual_seed(0))
    halves = split_output(given, torch.zeros(samples))
    assert halves.variance is not None
    assert halves.mean.shape == halves.variance.shape == samples
    assert torch.equal(torch.cat([halves.mean, halves.variance], axis), given)
    assert split_output(halves.mean, torch.zeros(samples)).variance is None


@pytest.mark.parametrize("output", [(2, 5, 4, 4), (2, 9, 4, 4), (2, 3, 8, 4), (2, 6, 8, 4)], ids=str)
def test_an_output_of_another_shape_is_refused_with_both_shapes(output: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"The network gives .* for a sample of \(3, 4, 4\); expected the same shape"):
        split_output(torch.zeros(output), torch.zeros(2, 3, 4, 4))


def test_the_posterior_is_that_of_diffusers() -> None:
    scheduler = DDPMScheduler(T, beta_start=1e-4, beta_end=0.02)
    posterior = Posterior.of(NoiseSchedule.from_diffusers(scheduler))
    scheduler.set_timesteps(T)
    for t in range(1, T):
        lower, upper = (
            float(scheduler._get_variance(t, variance_type=kind)) for kind in ("fixed_small", "fixed_large")
        )
        assert math.exp(posterior.log_lower[t]) == pytest.approx(lower, rel=1e-3)
        assert math.exp(posterior.log_upper[t]) == pytest.approx(upper, rel=1e-3)
    still = [torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)]
    own = DDPMScheduler(T, beta_start=1e-4, beta_end=0.02, prediction_type="sample", clip_sample=False)
    own.set_timesteps(T)
    own._get_variance = lambda *_, **__: torch.zeros(())  # only the mean
    for t in (0, 1, 20, 49):
        mean = [float(own.step(a, t, b).prev_sample) for a, b in (still[::-1], still)]
        assert [posterior.of_clean[t], posterior.of_state[t]] == pytest.approx(mean, rel=1e-3, abs=1e-6)


def _kl(mean: np.ndarray, var: np.ndarray, other_mean: np.ndarray, other_var: np.ndarray) -> np.ndarray:
    """KL(N(mean, var) ‖ N(other_mean, other_var)) by integration on a grid."""
    found = np.empty(mean.shape)
    for i in np.ndindex(mean.shape):
        own, other = norm(mean[i], math.sqrt(var[i])), norm(other_mean[i], math.sqrt(other_var[i]))
        grid = np.linspace(mean[i] - 12 * own.std(), mean[i] + 12 * own.std(), 4001)
        found[i] = np.trapezoid(own.pdf(grid) * (own.logpdf(grid) - other.logpdf(grid)), grid)
    return found


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_terms_of_the_bound_are_divergences_of_gaussians(kind: str) -> None:
    draws = Generator().manual_seed(0)
    t = torch.tensor([1, 7, 30, 49])
    clean, noise = (torch.randn(4, 1, 2, 2, generator=draws) for _ in range(2))
    prediction, v = (torch.randn(4, 1, 2, 2, generator=draws) for _ in range(2))
    parameterization = Parameterization(SCHEDULE, kind)
    a, b = (table[t.numpy()].reshape(-1, 1, 1, 1) for table in (SCHEDULE.signal, SCHEDULE.noise))
    noisy = torch.from_numpy(a).float() * clean + torch.from_numpy(b).float() * noise
    found = VariationalBound(parameterization).terms(Halves(prediction, v), clean, noisy, t)

    betas = 1 - SCHEDULE.alphas_cumprod / np.append(1, SCHEDULE.alphas_cumprod[:-1])
    beta = betas[t.numpy()].reshape(-1, 1, 1, 1)
    bar, before = a**2, SCHEDULE.alphas_cumprod[t.numpy() - 1].reshape(-1, 1, 1, 1)
    lower = beta * (1 - before) / (1 - bar)

    def mean(x0: np.ndarray) -> np.ndarray:
        kept = np.sqrt(1 - beta) * (1 - before) / (1 - bar) * noisy.double().numpy()
        return np.asarray(np.sqrt(before) * beta / (1 - bar) * x0 + kept)

    x0 = {
        "epsilon": lambda p: (noisy.double().numpy() - b * p) / a,
        "sample": lambda p: p,
        "v_prediction": lambda p: a * noisy.double().numpy() - b * p,
    }[kind](prediction.double().numpy())
    share = (v.double().numpy() + 1) / 2
    own = np.exp(share * np.log(beta) + (1 - share) * np.log(lower))
    wanted = _kl(mean(clean.double().numpy()), np.broadcast_to(lower, own.shape), mean(x0), own)
    np.testing.assert_allclose(found.numpy(), wanted.reshape(4, -1).mean(1) / math.log(2), rtol=2e-3)


def test_the_first_term_is_the_likelihood_of_brightnesses_and_sums_to_one() -> None:
    shades = torch.arange(256).float().div(127.5).sub(1).reshape(256, 1, 1, 1)
    noisy, prediction = torch.full_like(shades, 0.1), torch.full_like(shades, 0.3)
    t, v = torch.zeros(256, dtype=torch.long), torch.full_like(shades, 0.4)
    schedule = NoiseSchedule.linear(T, beta_start=0.01, beta_end=0.02)
    bound = VariationalBound(Parameterization(schedule, "sample"))
    bits = bound.terms(Halves(prediction, v), shades, noisy, t)
    assert float((-bits * math.log(2)).exp().sum()) == pytest.approx(1, abs=1e-3)
    posterior = Posterior.of(schedule)
    std = math.exp(0.5 * (0.7 * posterior.log_upper[0] + 0.3 * posterior.log_lower[0]))
    inside = norm.cdf(shades[160].item() + 1 / 255, 0.3, std) - norm.cdf(shades[160].item() - 1 / 255, 0.3, std)
    assert float(bits[160]) == pytest.approx(-math.log2(inside), rel=1e-3)


def test_a_perfect_network_has_no_divergence_and_others_have_one() -> None:
    own, t = objective(), torch.arange(1, T)
    clean, noise = batch(own, t)
    noisy, target = own.pair(clean, noise, t)
    bound = VariationalBound(own.parameterization)
    lowest = torch.full_like(clean, -1.0)  # the posterior's own variance
    assert float(bound.terms(Halves(target, lowest), clean, noisy, t).abs().max()) < 1e-4
    assert (
        float(bound.terms(Halves(target, -lowest), clean, noisy, t)[:8].min()) > 1e-3
    )  # later the two variances are equal
    assert float(bound.terms(Halves(target + 1, lowest), clean, noisy, t).min()) > 1e-5


def test_the_bound_trains_the_variances_alone() -> None:
    own, t = objective(), torch.tensor([0, 3, 40])
    clean, noise = batch(own, t)
    noisy, _ = own.pair(clean, noise, t)
    mean, variance = (torch.zeros_like(clean).requires_grad_() for _ in range(2))
    loss = BoundedVariance(own.parameterization)(Halves(mean, variance), clean, noisy, t, lambda _: Halves(mean))
    loss.sum().backward()
    assert mean.grad is None
    assert variance.grad is not None
    assert all(float(each.abs().max()) > 0 for each in variance.grad)
    terms = VariationalBound(own.parameterization).terms(Halves(mean, variance), clean, noisy, t)
    torch.testing.assert_close(loss, 0.001 * T * terms)


def test_losses_do_not_depend_on_the_variances_unless_they_are_kept() -> None:
    own, net, t = objective(), doubled(), torch.tensor([2, 30])
    net.eval()
    drawn = batch(own, t)
    before = own.per_sample(net, *drawn, t)
    kept = replace(own, variance=DistilledVariance(doubled(1)))
    assert bool((kept.per_sample(net, *drawn, t) > before).all())
    with torch.no_grad():
        net.last.weight[1] += 1
    assert torch.equal(own.per_sample(net, *drawn, t), before)
    assert own.fingerprint() != kept.fingerprint()
    assert kept.fingerprint() != replace(own, variance=BoundedVariance(own.parameterization)).fingerprint()


def test_distilled_variances_are_the_distance_to_the_teachers() -> None:
    own, net, teacher, t = objective(), doubled().eval(), doubled(1).eval(), torch.tensor([2, 30])
    clean, noise = batch(own, t)
    noisy, target = own.pair(clean, noise, t)
    kept = replace(own, variance=DistilledVariance(teacher, 0.5))
    gives, taught = net(noisy, t), teacher(noisy, t)
    wanted = (gives[:, :1] - target).square().flatten(1).mean(1)
    variances = (gives[:, 1:] - taught[:, 1:]).square().flatten(1).mean(1)
    torch.testing.assert_close(kept.per_sample(net, clean, noise, t), wanted + 0.5 * variances)
    both = Distillation(kept, teacher, 0.25)
    means = (gives[:, :1] - taught[:, :1]).square().flatten(1).mean(1)
    torch.testing.assert_close(both.per_sample(net, clean, noise, t), 0.75 * wanted + 0.25 * means + 0.5 * variances)


def test_distillation_evaluates_the_teacher_once() -> None:
    own, net, teacher = objective(), doubled(), doubled(1)
    calls: list[int] = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    kept = replace(own, variance=DistilledVariance(teacher))
    t = torch.tensor([2, 30])
    Distillation(kept, teacher).per_sample(net, *batch(own, t), t)
    assert len(calls) == 1


def test_a_network_without_variances_is_not_affected_and_its_teacher_is_refused() -> None:
    own, t = objective(), torch.tensor([2, 30])
    drawn = batch(own, t)
    kept = replace(own, variance=DistilledVariance(TinyNet().eval()))
    plain = TinyNet().eval()
    assert torch.equal(kept.per_sample(plain, *drawn, t), own.per_sample(plain, *drawn, t))
    with pytest.raises(InputError, match="The teacher predicts no variances"):
        kept.per_sample(doubled(), *drawn, t)


@pytest.mark.parametrize("weight", [-0.1, math.inf, math.nan])
def test_weights_below_zero_or_not_finite_are_refused(weight: float) -> None:
    with pytest.raises(InputError, match="for the variances"):
        DistilledVariance(doubled(), weight)
    with pytest.raises(InputError, match="for the variances"):
        BoundedVariance(Parameterization(SCHEDULE), weight)


def test_the_bound_is_refused_where_there_is_none() -> None:
    with pytest.raises(InputError, match="variance-preserving"):
        BoundedVariance(Parameterization(NoiseSchedule.edm(T), "sample"))


@pytest.mark.parametrize("kind", ["distill", "vlb", "none"])
def test_a_training_brings_the_variances_back_if_asked(kind: str) -> None:
    own, teacher = objective(), doubled().eval()
    net = doubled()
    with torch.no_grad():
        net.last.weight[1:].zero_()
        net.last.bias[1:].fill_(1.5)  # variances far too large
    t = torch.arange(T)
    drawn = batch(own, t)

    def bound(model: nn.Module) -> float:
        terms = own.measured(model.eval(), *drawn, t)[1]
        assert terms is not None
        return float(terms.mean())

    def distance(model: nn.Module) -> float:
        noisy, _ = own.pair(drawn[0], drawn[1], t)
        found = [own.output(one.eval(), noisy, t).variance for one in (model, teacher)]
        assert found[0] is not None
        assert found[1] is not None
        return float((found[0] - found[1]).square().mean())

    before = bound(net), distance(net)
    ways = {"distill": DistilledVariance(teacher, 1.0), "vlb": BoundedVariance(own.parameterization, 0.1), "none": None}
    options = TrainOptions(steps=80, batch_size=16, learning_rate=1e-2, warmup_steps=2, ema_decay=0.5, log_every=40)
    trained = train(net, replace(own, variance=ways[kind]), RangeTimesteps(0, T), options).model
    after = bound(trained), distance(trained)
    if kind == "distill":
        assert after[1] < 0.2 * before[1]
    if kind == "vlb":
        assert after[0] < before[0]
    if kind == "none":
        assert after[1] > 0.5 * before[1]
