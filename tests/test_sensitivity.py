"""How samplers carry an error of the prediction into the sample: against closed forms, for every sampler, and in pipelines."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from expert_pipelines import full_experts
from networks import unet
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.extractors import OwnExtractor
from prunekit.features import load_features
from prunekit.groups import TimestepGroups, make_groups
from prunekit.nets.drop_in import DropInOutput, Router
from prunekit.sampling import SAMPLERS, Sampler, make_sampler
from prunekit.sampling.clamping import clamps, unclamped
from prunekit.sampling.disturbances import (
    Disturbance,
    Disturbed,
    Measure,
    SensitivityOptions,
    elements,
    router_of,
    sensitivities,
)
from prunekit.sampling.feature_changes import features_of
from prunekit.schedule import NoiseSchedule, Parameterization, TimeUnit
from prunekit.steps.bases import open_base
from prunekit.steps.measuring_sensitivity import Sampled, measure_sensitivity

SCHEDULE = NoiseSchedule.linear(100)
SHAPE = (1, 8, 8)
PIXELS = elements("pixels")


class Blind(nn.Module):
    """Predicts one picture whatever it is told, so that every sampler without noise is linear in its predictions."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.picture = nn.Parameter(size * torch.randn(SHAPE, generator=torch.Generator().manual_seed(7)))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        return self.picture.expand_as(sample)


class Told(nn.Module):
    """Predicts its class's number everywhere; class 0 is no class."""

    def __init__(self, form: str = "tensor") -> None:
        super().__init__()
        self.form = form

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Any:
        found = torch.ones_like(sample) * (1 + class_labels).reshape(-1, 1, 1, 1)
        match self.form:
            case "tuple":
                return (found, "more")
            case "named":
                return DropInOutput(found)
            case "diffusers":
                from diffusers.models.unets.unet_2d import UNet2DOutput

                return UNet2DOutput(sample=found)
        return found


def router(groups: TimestepGroups) -> Router:
    return Router(groups, TimeUnit())


def measured(sampler: Any, model: nn.Module, groups: TimestepGroups, measure: Measure = PIXELS, **options: Any) -> Any:
    there = router_of(sampler, router(groups)) if isinstance(sampler, Sampler) else router(groups)
    return sensitivities(sampler, model, there, measure, SensitivityOptions(**{"check": False, "count": 32, **options}))


def plain(name: str, steps: int, kind: Parameterization) -> Sampler:
    """A sampler that clamps nothing."""
    return make_sampler(name, steps, kind, SHAPE).for_latents()


def ratios(timesteps: list[int], schedule: NoiseSchedule) -> np.ndarray:
    """Noise over signal at DDIM's timesteps, noisiest first, and 0 at the end."""
    return np.array([*(schedule.noise[t] / schedule.signal[t] for t in timesteps), 0.0])


def test_ddim_has_the_amplification_of_its_coefficients():
    """With x = a·x0 + b·ε, a DDIM step adds (b'/a' − b/a)·ε to x/a, and the sample is x/a at the end."""
    sampler, groups = plain("ddim", 10, Parameterization(SCHEDULE)), make_groups(SCHEDULE, count=5)
    steps = np.diff(ratios(list(range(90, -1, -10)), SCHEDULE)) ** 2
    expected = steps[::-1].reshape(5, 2).sum(1)
    found = measured(sampler, Blind(), groups, count=128)
    assert [group.evaluations for group in found] == [2] * 5
    np.testing.assert_allclose([group.amplification for group in found], expected, rtol=0.05)
    for group, true in zip(found, expected, strict=True):
        assert abs(group.amplification - true) < 4 * group.se


def test_flow_matching_has_the_amplification_of_its_steps():
    """Euler's step adds (σ' − σ)·v, so each evaluation counts with its step's square."""
    schedule = NoiseSchedule.from_config({"kind": "rectified_flow", "num_timesteps": 1000})
    kind = Parameterization(schedule, "flow_prediction")
    sampler, groups = plain("euler", 8, kind), make_groups(schedule, count=2)
    found = measured(sampler, Blind(), groups, count=128)
    assert sum(group.evaluations for group in found) == 8
    sigmas = _sigmas(sampler)
    steps, noisy = np.diff(sigmas) ** 2, sigmas[:-1] > 0.5
    expected = [steps[~noisy].sum(), steps[noisy].sum()]
    np.testing.assert_allclose([group.amplification for group in found], expected, rtol=0.06)


def _sigmas(sampler: Sampler) -> np.ndarray:
    from prunekit.sampling.schedulers import set_timesteps

    set_timesteps(sampler.scheduler, sampler.steps)
    return sampler.scheduler.sigmas.double().numpy()


def test_the_amplification_depends_neither_on_the_size_of_noise_nor_on_that_of_predictions():
    sampler, groups = plain("ddim", 10, Parameterization(SCHEDULE)), make_groups(SCHEDULE, count=2)
    first = measured(sampler, Blind(), groups, check=True)
    assert all(group.is_linear and group.linearity == pytest.approx(1, abs=0.01) for group in first)
    for model, size in ((Blind(), 0.2), (Blind(5.0), 0.02)):
        for one, other in zip(first, measured(sampler, model, groups, size=size), strict=True):
            assert other.amplification == pytest.approx(one.amplification, rel=0.01)


def test_a_group_has_the_sum_of_its_parts():
    sampler = plain("ddim", 10, Parameterization(SCHEDULE))
    whole = measured(sampler, Blind(), TimestepGroups.from_cuts(100, [40]), count=64)
    parts = measured(sampler, Blind(), TimestepGroups.from_cuts(100, [20, 40, 70]), count=64)
    values = [group.amplification for group in parts]
    assert [group.evaluations for group in whole] == [4, 6]
    assert whole[0].amplification == pytest.approx(values[0] + values[1], rel=0.1)
    assert whole[1].amplification == pytest.approx(values[2] + values[3], rel=0.1)


def test_a_group_without_steps_has_none():
    groups = TimestepGroups.from_cuts(100, [1, 9, 55])
    found = measured(plain("ddim", 10, Parameterization(SCHEDULE)), Blind(), groups, check=True)
    empty = found[1]
    assert (empty.evaluations, empty.amplification, empty.error, empty.se, empty.linearity) == (0, 0.0, 0.0, None, None)
    assert all(group.amplification > 0 for group in found if group is not empty)


@pytest.mark.parametrize("name", [*SAMPLERS, "EulerAncestralDiscreteScheduler"])
def test_every_sampler_is_measured_and_all_its_evaluations_are_counted(name):
    from prunekit.sampling import real_timesteps

    model, groups = unet(), make_groups(SCHEDULE, count=2)
    sampler = make_sampler(name, 4, Parameterization(SCHEDULE), SHAPE)
    found = measured(sampler, model, groups, count=4)
    counts = np.bincount(groups.index_of(real_timesteps(name, 4, SCHEDULE)), minlength=2)
    assert [group.evaluations for group in found] == counts.tolist()
    assert all(np.isfinite(group.amplification) and group.amplification > 0 for group in found)
    again = measured(sampler, model, groups, count=4)
    assert again == found


def test_noise_of_one_evaluation_is_the_same_whatever_the_group_and_only_its_rows_get_it():
    groups, x = make_groups(SCHEDULE, count=2), torch.zeros(4, *SHAPE)
    times = torch.tensor([10, 90, 10, 90])
    seen = [Disturbed(Blind(), router(groups), Disturbance(group, 0.1, 3))(x, times) for group in (0, 1, None)]
    clean = Blind()(x, times)
    assert torch.equal(seen[2], clean)
    assert torch.equal(seen[0][1::2], clean[1::2])
    assert torch.equal(seen[1][::2], clean[::2])
    rms = (seen[0][::2] - clean[::2]).square().flatten(1).mean(1).sqrt() / clean[::2].square().flatten(1).mean(1).sqrt()
    assert (rms - 0.1).abs().max() < 0.04
    whole = TimestepGroups.from_cuts(100, [1])
    both = Disturbed(Blind(), router(whole), Disturbance(1, 0.1, 3))(x, times)
    assert torch.equal(both, torch.where((times < 50).reshape(-1, 1, 1, 1), seen[0], seen[1]))


@pytest.mark.parametrize("form", ["tensor", "tuple", "named", "diffusers"])
def test_what_a_network_returns_keeps_its_form(form):
    noisy = Disturbed(Told(form), router(make_groups(SCHEDULE, count=1)), Disturbance(0, 0.1, 0))
    output = noisy(torch.zeros(2, *SHAPE), 5, class_labels=torch.tensor([1, 2]))
    assert type(output) is type(Told(form)(torch.zeros(2, *SHAPE), 5, torch.tensor([1, 2])))
    prediction = output if form == "tensor" else output[0]
    assert not torch.equal(prediction[0], torch.full(SHAPE, 2.0))
    if form == "tuple":
        assert output[1] == "more"
    if form == "diffusers":
        assert output.sample is output["sample"] is prediction


def test_variances_are_left_as_they_are():
    class Varied(nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return torch.cat([torch.ones_like(sample), 3 * torch.ones_like(sample)], 1)

    noisy = Disturbed(Varied(), router(make_groups(SCHEDULE, count=1)), Disturbance(0, 0.1, 0))
    mean, variance = noisy(torch.zeros(2, *SHAPE), torch.tensor(5)).chunk(2, 1)
    assert torch.equal(variance, torch.full_like(variance, 3.0))
    assert (mean != 1).all()
    assert noisy.error == pytest.approx(0.01, rel=0.3)  # of the mean's own size


def test_guidance_amplifies_by_the_squares_of_its_weights():
    """ŷ = (1 − s)·ŷ_∅ + s·ŷ_c, with an error of its own in each; the class predicts twice what no class does."""
    groups, labels = make_groups(SCHEDULE, count=1), torch.ones(32, dtype=torch.int64)
    sampler = plain("ddim", 5, Parameterization(SCHEDULE))
    alone = sampler.with_conditions({"class_labels": labels})
    guided = sampler.with_conditions({"class_labels": labels}, {"class_labels": torch.tensor(0)}, 3.0)
    (one,), (two,) = (measured(each, Told(), groups, count=32) for each in (alone, guided))
    assert one.evaluations == two.evaluations == 5
    variances = (2.0**2 * 1 + 3.0**2 * 4) / ((1 + 4) / 2)
    assert two.amplification / one.amplification == pytest.approx(variances, rel=0.15)


def test_a_class_conditional_network_is_sampled_for_its_classes():
    model = unet(num_class_embeds=3)
    sampler = make_sampler("ddim", 3, Parameterization(SCHEDULE), SHAPE).of_classes((0, 2))
    found = measured(sampler, model, make_groups(SCHEDULE, count=2), count=4)
    assert all(group.amplification > 0 for group in found)


def test_experts_are_measured_as_the_base_that_they_are_made_of():
    model, groups = unet(), make_groups(NoiseSchedule.linear(1000), count=2)
    kind = Parameterization(NoiseSchedule.linear(1000))
    sampler = make_sampler("ddim", 4, kind, SHAPE)
    assert measured(sampler, full_experts(model, "sd", groups), groups, count=4) == measured(
        sampler, model, groups, count=4
    )


def test_distances_in_features_are_sums_and_rounding_does_not_hide_small_changes():
    """Levels are not rounded: a change of a hundredth of a level has a ten-thousandth of a level's square distance."""
    extractor = load_features("fashion-cnn")
    measure = features_of(extractor)
    generator = torch.Generator().manual_seed(0)
    samples, change = (
        torch.rand(4, 1, 16, 16, generator=generator) - 0.5,
        torch.randn(4, 1, 16, 16, generator=generator),
    )
    near, far = (measure.change(samples, samples + size / 127.5 * change) for size in (0.01, 1.0))
    np.testing.assert_allclose(far / near, 1e4, rtol=0.1)
    whole = torch.tensor([[0, 128], [255, 3]], dtype=torch.uint8).repeat(4, 1, 8, 8)
    levels = extractor.of_levels(whole.float())
    torch.testing.assert_close(levels, extractor.features(whole))
    distance = measure.change(samples, -samples)
    pictures = [(sign * samples).add(1).mul(127.5) for sign in (1, -1)]
    one, other = (extractor.of_levels(each) for each in pictures)
    np.testing.assert_allclose(distance, (one - other).square().sum(1).numpy(), rtol=1e-3)


def test_an_extractor_of_ones_own_gets_pictures():
    seen: list[torch.dtype] = []

    def function(images: Tensor) -> Tensor:
        seen.append(images.dtype)
        return images.flatten(1).float()

    measure = features_of(OwnExtractor("mine", function))
    assert measure.change(torch.zeros(2, *SHAPE), torch.ones(2, *SHAPE)).tolist() == [64 * 127.0**2] * 2
    assert set(seen) == {torch.uint8}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"size": 0.0}, "more than 0"),
        ({"size": 1.5}, "at most 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: Mapping[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        SensitivityOptions(**options)


def test_predictions_of_nothing_and_samples_in_lists_are_refused():
    groups, kind = make_groups(SCHEDULE, count=1), Parameterization(SCHEDULE)
    with pytest.raises(InputError, match="are 0, and so is noise of their size"):
        measured(plain("ddim", 2, kind), Blind(0.0), groups)

    class Listed(nn.Module):
        def forward(self, sample: Any, timestep: Any) -> Any:
            return (list(sample),)

    noisy = Disturbed(Listed(), router(groups), Disturbance(0, 0.1, 0))
    with pytest.raises(InputError, match="one tensor"):
        noisy(torch.zeros(2, *SHAPE), 5)


def test_one_sample_has_no_standard_error():
    found = measured(plain("ddim", 2, Parameterization(SCHEDULE)), Blind(), make_groups(SCHEDULE, count=1), count=1)
    assert found[0].se is None
    assert json.dumps(vars(found[0]))


class TestPipelines:
    """The same in real pipelines of diffusers."""

    @pytest.mark.parametrize(
        "name", ["sd", pytest.param("flux", marks=pytest.mark.slow), pytest.param("dit", marks=pytest.mark.slow)]
    )
    def test_a_pipeline_is_measured_with_its_own_guidance(self, name: str, tmp_path: Any) -> None:
        from tiny_pipelines import SIDE, tiny_pipeline

        from prunekit.pipelines import PipelineSampler, conditioning_of, denoisers_of, open_pipeline

        pipeline = tiny_pipeline(name, tmp_path)
        pipeline.save_pretrained(tmp_path / "saved")
        stand_in = open_pipeline(tmp_path / "saved", stand_in=True)
        size = None if name == "dit" else (SIDE, SIDE)
        subjects: list[Any] = [1, 2] if name == "dit" else ["a cat", "b"]
        unit = conditioning_of(stand_in, size).unit
        network = next(iter(denoisers_of(pipeline).values()))
        pipeline.set_progress_bar_config(disable=True)
        sampler = PipelineSampler(pipeline, 3, subjects, size=size)
        groups = make_groups(NoiseSchedule.linear(1000), count=2)
        there = Router(groups, unit)
        options = SensitivityOptions(count=2, check=False)
        pixels = sensitivities(sampler, network, there, PIXELS, options)
        latents = sensitivities(sampler.for_latents(), network, there, elements("latents"), options)
        for found in (pixels, latents):
            assert sum(group.evaluations for group in found) == 3
            assert all(group.amplification > 0 for group in found if group.evaluations)
        assert [group.error for group in pixels] == pytest.approx([group.error for group in latents], rel=1e-3)


class TestClamping:
    """Schedulers that clamp the predicted clean sample are measured without it, unless asked otherwise."""

    def test_clamping_makes_the_amplification_depend_on_the_size_and_is_left_out(self) -> None:
        base = open_base("embedded:digits")
        groups = make_groups(base.schedule, count=5)
        shape = tuple(base.spec.example_inputs()["sample"].shape[1:])
        sampler = make_sampler("ddim", 10, base.parameterization, shape)
        sampled = Sampled(base.model, "digits", base.spec, base.parameterization, sampler, "ddim", latent=False)
        found = {
            clamped: measure_sensitivity(
                sampled, groups, SensitivityOptions(8, size=0.05, clamped=clamped), (elements("pixels"), None)
            )
            for clamped in (False, True)
        }
        assert [each.clamped for each in found.values()] == [False, True]
        assert sampler.clamps  # the caller's own stays as it is
        doubts = {clamped: abs(np.log(each.groups[4].linearity)) for clamped, each in found.items()}
        assert doubts[False] < 0.25 < doubts[True]

    def test_a_scheduler_of_a_pipeline_is_replaced_in_a_copy(self, tmp_path: Any) -> None:
        from tiny_pipelines import SIDE, tiny_pipeline

        from prunekit.pipelines import PipelineSampler

        pipeline = tiny_pipeline("sd", tmp_path)
        pipeline.scheduler = DDIMScheduler(clip_sample=True, clip_sample_range=0.05)
        pipeline.set_progress_bar_config(disable=True)
        sampler = PipelineSampler(pipeline, 2, ["a cat"], size=(SIDE, SIDE)).for_latents()
        free = sampler.unclamped()
        assert (sampler.clamps, free.clamps, free.unclamped()) == (True, False, free)
        assert pipeline.scheduler.config.clip_sample
        held, loose = (each(pipeline.unet, 2, 0) for each in (sampler, free))
        assert float(held.abs().max()) < float(loose.abs().max())

    def test_thresholding_is_clamping(self) -> None:
        assert clamps(DDIMScheduler(clip_sample=False, thresholding=True))
        assert not clamps(unclamped(DDIMScheduler(clip_sample=False, thresholding=True)))
        assert not clamps(FlowMatchEulerDiscreteScheduler())
