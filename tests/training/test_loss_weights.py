import json

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from prunekit.errors import InputError
from prunekit.schedule import PREDICTION_TYPES, NoiseSchedule, Parameterization
from prunekit.training import (
    LOSS_WEIGHTS,
    DenoisingObjective,
    LearningSampler,
    LossSecondMoment,
    RangeTimesteps,
    Weighted,
    change_aware,
    described,
    min_snr,
    p2,
    unweighted,
)

BARS = np.array([0.9, 0.5, 0.1])  # snr 9, 1, 1/9
THREE = NoiseSchedule.from_betas(1 - BARS / np.array([1.0, 0.9, 0.5]))


@pytest.mark.parametrize(
    ("weight", "prediction_type", "expected"),
    [
        (min_snr, "sample", [5, 1, 1 / 9]),
        (min_snr, "epsilon", [5 / 9, 1, 1]),
        (min_snr, "v_prediction", [0.5, 0.5, 0.1]),
        (p2, "epsilon", [0.1, 0.5, 0.9]),
        (p2, "sample", [0.9, 0.5, 0.1]),
        (p2, "v_prediction", [0.09, 0.25, 0.09]),
        (unweighted, "epsilon", [1, 1, 1]),
        (unweighted, "v_prediction", [1, 1, 1]),
    ],
)
def test_weights_are_worked_out_by_hand(weight, prediction_type, expected):
    found = weight(Parameterization(THREE, prediction_type))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_gamma_and_k_are_worked_out_by_hand():
    np.testing.assert_allclose(min_snr(Parameterization(THREE), gamma=0.5), [1 / 18, 0.5, 1])
    np.testing.assert_allclose(p2(Parameterization(THREE), k=3.0, gamma=0.5), [12**-0.5, 0.5, (28 / 9) ** -0.5])
    assert (p2(Parameterization(THREE), gamma=0) == 1).all()


def test_change_aware_weights_go_from_the_slowest_to_the_fastest_timestep():
    bars = np.array([0.9, 0.8, 0.3, 0.1])  # rates of change 0.1, 0.3, 0.35, 0.2
    schedule = NoiseSchedule.from_betas(1 - bars / np.array([1.0, 0.9, 0.8, 0.3]))
    np.testing.assert_allclose(change_aware(Parameterization(schedule), ceiling=0.6), [0.4, 0.56, 0.6, 0.48], rtol=1e-9)
    np.testing.assert_allclose(change_aware(Parameterization(schedule), ceiling=1.0), [0, 0.8, 1, 0.4], atol=1e-9)
    assert (change_aware(Parameterization(schedule), ceiling=0.5) == 0.5).all()
    assert torch.allclose(change_aware(Parameterization(THREE)), torch.tensor(0.6, dtype=torch.float64))  # falls evenly


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("kind", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_min_snr_is_what_diffusers_training_scripts_compute(kind, prediction_type):
    scheduler = DDPMScheduler(1000, beta_schedule=kind)
    snr = compute_snr(scheduler, torch.arange(1000))
    expected = torch.stack([snr, torch.full_like(snr, 5.0)], dim=1).min(dim=1)[0]
    expected = expected / (snr if prediction_type == "epsilon" else snr + 1)
    found = min_snr(Parameterization(NoiseSchedule.from_diffusers(scheduler), prediction_type))
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("make", [NoiseSchedule.linear, NoiseSchedule.edm, NoiseSchedule.rectified_flow])
@pytest.mark.parametrize("name", sorted(set(LOSS_WEIGHTS) - {"none"}))
def test_a_weight_means_the_same_for_whatever_the_network_predicts(name, make):
    """One denoiser, told as ε, x0, v, velocity or within EDM's preconditioning, has one weighted loss."""
    schedule = make(20)
    generator = Generator().manual_seed(0)
    timesteps = torch.arange(20)
    clean, noise, wrong = (torch.randn(20, 1, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    signal, spread = (torch.tensor(table)[:, None, None, None] for table in (schedule.signal, schedule.noise))
    denoised = clean + 0.1 * wrong
    told = {"sample": denoised, "epsilon": (signal * clean + spread * noise - signal * denoised) / spread}
    told["v_prediction"] = signal * told["epsilon"] - spread * denoised
    told["flow_prediction"] = told["epsilon"] - denoised
    for one in ("edm", "edm_v"):
        told[one] = Parameterization(schedule, one).target(denoised, told["epsilon"], signal, spread)
    losses = []
    for prediction_type in PREDICTION_TYPES:
        objective = DenoisingObjective(
            torch.zeros(1, 1, 2, 2, dtype=torch.uint8), Parameterization(schedule, prediction_type)
        )
        found = objective.per_sample(lambda x, t, said=told[prediction_type]: said, clean, noise, timesteps)
        losses.append(LOSS_WEIGHTS[name](Parameterization(schedule, prediction_type)) * found)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-6, atol=0)


@given(
    st.sampled_from(sorted(LOSS_WEIGHTS)),
    st.sampled_from(PREDICTION_TYPES),
    st.sampled_from([NoiseSchedule.linear, NoiseSchedule.cosine, NoiseSchedule.edm, NoiseSchedule.rectified_flow]),
    st.integers(2, 300),
)
def test_every_table_is_finite_and_positive(name, prediction_type, make, total):
    table = LOSS_WEIGHTS[name](Parameterization(make(total), prediction_type))
    assert table.shape == (total,)
    assert table.isfinite().all()
    assert (table > 0).all()


@pytest.mark.parametrize("name", sorted(LOSS_WEIGHTS))
def test_an_unknown_prediction_type_is_refused(name):
    with pytest.raises(InputError, match=r"'velocity'.*epsilon, sample, v_prediction, flow_prediction"):
        LOSS_WEIGHTS[name](Parameterization(THREE, "velocity"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: min_snr(Parameterization(THREE), gamma=0), "gamma 0.*above 0"),
        (lambda: p2(Parameterization(THREE), k=-1), "k -1.*above 0"),
        (lambda: p2(Parameterization(THREE), gamma=-1), "gamma -1.*at least 0"),
        (lambda: change_aware(Parameterization(THREE), ceiling=0.4), r"ceiling 0.4.*\[0.5, 1\]"),
    ],
)
def test_parameters_out_of_range_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


TABLE = torch.linspace(0.5, 3, 20, dtype=torch.float64)


def test_a_table_changes_weights_and_not_draws():
    plain = LossSecondMoment(RangeTimesteps(0, 20), history=1)
    plain.learn(torch.arange(20), torch.linspace(1, 2, 20))
    timesteps, weights = plain.sample(50, 3, Generator().manual_seed(0))
    found, weighted = Weighted(plain, TABLE).sample(50, 3, Generator().manual_seed(0))
    assert torch.equal(found, timesteps)
    assert weighted.dtype == torch.float32
    torch.testing.assert_close(weighted, (weights * TABLE[timesteps]).float())
    twice = Weighted(Weighted(plain, TABLE), TABLE).sample(50, 3, Generator().manual_seed(0))[1]
    torch.testing.assert_close(twice, (weights * TABLE[timesteps] ** 2).float())


def test_a_sampler_that_learns_does_so_from_weighted_losses_and_is_saved():
    inner, other = (LossSecondMoment(RangeTimesteps(0, 20), history=1) for _ in range(2))
    weighted = Weighted(inner, TABLE)
    assert isinstance(weighted, LearningSampler)
    assert weighted.learns
    weighted.learn(torch.arange(20), torch.ones(20))
    expected = 0.999 * TABLE / TABLE.sum() + 0.001 / 20
    torch.testing.assert_close(weighted.probabilities(0), expected)
    Weighted(other, TABLE).load_state_dict(weighted.state_dict())
    assert torch.equal(other.probabilities(0), inner.probabilities(0))


def test_a_sampler_without_state_is_not_taught():
    weighted = Weighted(RangeTimesteps(0, 20), TABLE)
    assert not weighted.learns
    weighted.learn(torch.arange(3), torch.ones(3))
    assert weighted.state_dict() == {}
    weighted.load_state_dict({})


def test_descriptions_tell_tables_and_samplers_apart():
    samplers = [RangeTimesteps(0, 20), RangeTimesteps(0, 19), LossSecondMoment(RangeTimesteps(0, 20))]
    told = {json.dumps(described(Weighted(sampler, TABLE * by))) for sampler in samplers for by in (1, 2)}
    assert len(told) == 6
    assert json.dumps(described(Weighted(samplers[0], TABLE.clone()))) in told


@pytest.mark.parametrize(
    "table",
    [torch.ones(2, 2), torch.tensor([1.0, float("nan")]), torch.tensor([1.0, -1.0]), torch.zeros(3)],
)
def test_a_table_that_is_none_is_refused(table):
    with pytest.raises(InputError, match=r"expected shape \(T,\), finite, ≥ 0 and not all 0"):
        Weighted(RangeTimesteps(0, 2), table)


def test_a_table_that_is_too_short_is_refused():
    with pytest.raises(InputError, match="timestep 4 for 4 loss weights"):
        Weighted(RangeTimesteps(0, 5), torch.ones(4)).sample(100, 0, Generator().manual_seed(0))


def test_a_sampler_that_states_nothing_says_so():
    class Mute:
        def sample(self, batch, train_step, generator):
            return torch.zeros(batch, dtype=torch.int64), torch.ones(batch)

    with pytest.raises(InputError, match="Mute states no probabilities"):
        Weighted(Mute(), TABLE).probabilities(0)
