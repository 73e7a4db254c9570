import numpy as np
import pytest
import torch
from networks import unet
from pairs import GROUPS, SCHEDULE, SHAPE, compared, damage, experts

from prunekit.consistency import Denoiser, Seam
from prunekit.errors import InputError
from prunekit.nets import MultiDecoderUNet
from prunekit.schedule import Parameterization


@pytest.fixture(scope="module")
def base():
    return unet()


@pytest.fixture(scope="module")
def found(base):
    return compared(base, experts(base, 2))


def test_a_damaged_expert_is_found_where_it_begins_and_ends(found):
    by_groups = {seam.groups: seam for seam in found.seams}
    assert list(by_groups) == [(2, 3), (1, 2), (0, 1)]
    assert [seam.timestep for seam in found.seams] == [80, 50, 20]
    assert {seam.model for seam in found.seams} == {"b"}
    assert by_groups[2, 3].jump.min() > 0.01
    assert by_groups[1, 2].jump.min() > 0.01
    assert (by_groups[0, 1].jump == 0).all()
    assert (by_groups[2, 3].noisier == 0).all()
    np.testing.assert_array_equal(by_groups[2, 3].cleaner, by_groups[2, 3].jump)
    assert by_groups[1, 2].ratio.tolist() == [2.0] * 6  # one of the two neighbours is the base


def test_teacher_forcing_localises_the_damage_and_free_running_carries_it_on(found):
    for step in found.steps:
        damaged = step.groups[1] == 2
        assert (step.forced.values["mse"] > 0).all() == damaged
        assert (step.forced.values["mse"] == 0).all() != damaged
    assert found.steps[-1].same.mean("mse") > 0


@pytest.mark.slow
def test_seams_of_the_first_model_are_measured_too(base):
    found = compared(experts(base, 0), experts(base, 3))
    assert [(seam.model, seam.timestep) for seam in found.seams] == [(m, t) for m in "ab" for t in (80, 50, 20)]
    jumps = [seam.jump.mean() > 0 for seam in found.seams]
    assert jumps == [False, False, True, True, False, False]
    assert {step.groups for step in found.steps} == {(i, i) for i in range(4)}


def test_seams_of_several_decoders_are_measured(base):
    net = MultiDecoderUNet.from_unet(base, GROUPS)
    with torch.no_grad():
        net.decoders[1].conv_out.bias += 0.5
    jumps = {seam.timestep: seam.jump.mean() > 0 for seam in compared(base, net).seams}
    assert jumps == {80: False, 50: True, 20: True}


def test_a_seam_between_two_steps_is_measured_at_its_own_timestep(base):
    """Three steps: 66, 33 and 0; the seam at 80 is not passed."""
    asked = []

    class Spy(torch.nn.Module):
        def forward(self, x, t):
            asked.append(float(t))
            return base(x, t)

    found = compared(Spy(), experts(base, 1), steps=3)
    assert [seam.timestep for seam in found.seams] == [50, 20]
    assert all(seam.jump.min() > 0 for seam in found.seams)
    assert asked == [66, 50, 33, 20, 0]


def test_a_seam_that_a_step_stops_at_is_measured_on_that_state(base):
    """At x_80 of ten steps the two neighbours' difference is that of two networks asked by hand."""
    whole = experts(base, 2)
    found = compared(base, whole)
    noise = torch.randn((6, *SHAPE), generator=torch.Generator().manual_seed(0))
    from prunekit.sampling import make_sampler

    sampler = make_sampler("ddim", 10, Parameterization(SCHEDULE), SHAPE)
    with torch.no_grad():
        state = next(e.state for e in sampler.trajectory(whole, noise, 0) if e.timestep == 80)
        cleans = [Denoiser(whole, Parameterization(SCHEDULE)).part(i).clean(state, 80).clamp(-1, 1) for i in (2, 3)]
    expected = ((cleans[0] - cleans[1]) / 2).square().flatten(1).mean(1).sqrt()
    np.testing.assert_allclose(found.seams[0].jump, expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("cleaner", "noisier", "ratio"),
    [((1, 0), (0, 1), 2**0.5), ((1, 0), (1, 0), 0), ((1, 0), (-1, 0), 2), ((0, 0), (3, 0), 2)],
)
def test_the_ratio_is_what_it_is_said_to_be(cleaner, noisier, ratio):
    lengths = [np.array([np.hypot(*v)]) for v in (np.subtract(cleaner, noisier), cleaner, noisier)]
    assert Seam("b", 3, (0, 1), *lengths).ratio == pytest.approx(ratio)


def test_one_network_has_no_parts(base):
    with pytest.raises(InputError, match="no timestep groups"):
        Denoiser(base, Parameterization(SCHEDULE)).part(0)
    with pytest.raises(InputError, match="no timestep group 4"):
        Denoiser(experts(base), Parameterization(SCHEDULE)).part(4)


def test_damage_is_damage(base):
    other = unet()
    damage(other)
    assert compared(base, other, steps=2).same.mean("mse") > 0
