"""What a training gives, and what it refuses."""

import itertools
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from tiny_training import (
    OPTIONS,
    SAMPLER,
    TinyNet,
    assert_same_run,
    checkpoint_steps,
    tiny_net,
    tiny_objective,
    tiny_run,
    weight_bytes,
)
from torch import Generator, Tensor, nn

from prunekit.errors import InputError
from prunekit.schedule import Parameterization
from prunekit.training import (
    LEARNT_WEIGHTS,
    LOSS_WEIGHTS,
    TIMESTEP_SAMPLERS,
    Progress,
    RangeTimesteps,
    TrainOptions,
    timestep_sampler,
    train,
)
from prunekit.training.loop import step_generator
from prunekit.training.options import LossWeights, TimestepSamplers
from prunekit.training.processes import dropout_seeded


def test_the_loss_falls(uninterrupted):
    losses = [loss for _, loss in uninterrupted.losses]
    assert losses[-1] < 0.85 * losses[0]


def test_the_result_is_the_average_in_eval_mode_with_its_account(uninterrupted):
    assert isinstance(uninterrupted.model, TinyNet)
    assert not uninterrupted.model.training
    assert [step for step, _ in uninterrupted.losses] == list(range(5, 41, 5))
    assert uninterrupted.samples == 40 * 16
    assert weight_bytes(uninterrupted.model) != weight_bytes(tiny_net())


def test_equal_options_and_seed_give_equal_bytes_whatever_the_global_generator(uninterrupted):
    torch.manual_seed(777)
    before = torch.get_rng_state()
    again = tiny_run()
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_run(again, uninterrupted)


def test_another_seed_gives_other_weights(uninterrupted):
    other = tiny_run(options=replace(OPTIONS, seed=1))
    assert weight_bytes(other.model) != weight_bytes(uninterrupted.model)


def test_dropout_is_at_work_and_changes_from_step_to_step():
    masks: list[Tensor] = []
    net = tiny_net()
    net.drop.register_forward_hook(lambda _module, inputs, output: masks.append(output[0][0] == 0))
    train(net, tiny_objective(), SAMPLER, replace(OPTIONS, steps=3))
    assert all(mask.any() for mask in masks)
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(masks, 2))


def test_steps_have_generators_of_their_own():
    seeds = {step_generator(seed, step).initial_seed() for seed in range(20) for step in range(500)}
    assert len(seeds) == 20 * 500


def test_reports_are_means_since_the_last_one_and_count_images():
    fine: list[Progress] = []
    coarse: list[Progress] = []
    tiny_run(report=fine.append, options=replace(OPTIONS, steps=12, log_every=1))
    tiny_run(report=coarse.append, options=replace(OPTIONS, steps=12, log_every=5))
    assert [progress.step for progress in coarse] == [5, 10, 12]
    assert {progress.steps for progress in coarse} == {12}
    losses = [progress.loss for progress in fine]
    for progress, part in zip(coarse, (losses[:5], losses[5:10], losses[10:]), strict=True):
        assert progress.loss == pytest.approx(sum(part) / len(part), rel=1e-5)
    assert all(progress.images_per_second > 0 for progress in fine)


def test_loss_weights_scale_the_loss():
    class Doubled:
        def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
            timesteps, weights = SAMPLER.sample(batch, train_step, generator)
            return timesteps, 2 * weights

    options = replace(OPTIONS, steps=1, log_every=1)
    plain = train(tiny_net(), tiny_objective(), SAMPLER, options)
    doubled = train(tiny_net(), tiny_objective(), Doubled(), options)
    assert doubled.losses[0][1] == pytest.approx(2 * plain.losses[0][1], rel=1e-6)


# the moving average and the learning rate


def test_the_average_follows_its_formula():
    history: list[dict[str, Tensor]] = []
    net, decay = tiny_net(), 0.3

    def keep(_: Progress) -> None:
        history.append({key: value.clone() for key, value in net.state_dict().items()})

    result = train(net, tiny_objective(), SAMPLER, replace(OPTIONS, steps=6, log_every=1, ema_decay=decay), report=keep)
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(1, 6)]
    assert len(set(decays)) > 2  # the warm-up and the ceiling both occur
    expected = history[0]
    for decay_n, weights in zip(decays, history[1:], strict=True):
        expected = {key: decay_n * expected[key] + (1 - decay_n) * weights[key] for key in expected}
    for key, value in result.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-7)


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine():
    options = TrainOptions(learning_rate=1, steps=100, warmup_steps=20)
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 20)
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[40] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert 0 < rates[99] < 0.001
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))


def test_without_a_warm_up_the_first_step_has_the_full_rate():
    assert TrainOptions(learning_rate=1, steps=10, warmup_steps=0).learning_rate_at(0) == 1.0
    assert TrainOptions(learning_rate=1, steps=4, warmup_steps=10).learning_rate_at(3) == pytest.approx(
        0.4
    )  # shorter than its warm-up


def test_a_constant_rate_stays_after_the_warm_up():
    options = TrainOptions(learning_rate=1, steps=100, warmup_steps=20, lr_scheduler="constant")
    rates = [options.learning_rate_at(step) for step in range(100)]
    assert rates[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert rates[20:] == [1.0] * 80


@pytest.mark.parametrize(("warmup_steps", "expected"), [(0, 1e-2), (10, 1e-3)])
def test_the_optimizer_uses_that_rate(warmup_steps, expected):
    net, first = tiny_net(), tiny_net()
    options = replace(OPTIONS, steps=1, warmup_steps=warmup_steps, learning_rate=1e-2, max_grad_norm=1e9)
    train(net, tiny_objective(), SAMPLER, options)
    moved = (net.first.weight - first.first.weight).detach().abs().max()
    assert float(moved) == pytest.approx(expected, rel=1e-2)  # Adam's first step is the rate times the gradient's sign


def test_gradients_are_clipped():
    """The clipped norm is the only thing that a much smaller limit changes: with Adam, through epsilon."""
    plain, clipped = (
        train(tiny_net(), tiny_objective(), SAMPLER, replace(OPTIONS, steps=1, max_grad_norm=limit))
        for limit in (1e9, 1e-9)
    )
    moved = [
        max(
            float((a - b).detach().abs().max())
            for a, b in zip(run.model.parameters(), tiny_net().parameters(), strict=True)
        )
        for run in (plain, clipped)
    ]
    assert moved[1] < 0.2 * moved[0]


# what is refused


class Poisoned:
    """Weights that are NaN at one train step."""

    def __init__(self, bad_step: int) -> None:
        self.bad_step = bad_step

    def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
        timesteps, weights = SAMPLER.sample(batch, train_step, generator)
        return timesteps, weights * float("nan") if train_step == self.bad_step else weights


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_step(tmp_path):
    options = replace(OPTIONS, log_every=1, checkpoint_every=1)
    with pytest.raises(InputError, match=r"nan at step 8\b.*learning rate"):
        train(tiny_net(), tiny_objective(), Poisoned(7), options, tmp_path)
    assert checkpoint_steps(tmp_path) == [6, 7]  # the last good ones


def test_a_learning_rate_that_explodes_is_such_a_loss():
    with pytest.raises(InputError, match="at step"):
        tiny_run(options=replace(OPTIONS, learning_rate=1e30))


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"checkpoint_every": 0},
        {"log_every": -1},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"ema_decay": -0.1},
        {"warmup_steps": -1},
        {"weight_decay": -1e-3},
        {"max_grad_norm": 0.0},
        {"mixed_precision": "fp8"},
    ],
    ids=str,
)
def test_impossible_options_are_refused_by_name(change):
    (name,) = change
    with pytest.raises(InputError, match=name):
        replace(OPTIONS, **change)


def test_two_trainings_of_one_process_can_have_two_precisions(uninterrupted):
    mixed = tiny_run(options=replace(OPTIONS, steps=5, mixed_precision="bf16"))
    assert next(mixed.model.parameters()).dtype == torch.float32
    exact = tiny_run(options=replace(OPTIONS, steps=5))
    assert mixed.losses != exact.losses
    assert mixed.losses[0][1] == pytest.approx(exact.losses[0][1], rel=0.05)
    assert_same_run(tiny_run(), uninterrupted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can do fp16")
def test_half_precision_on_a_cpu_is_refused():
    with pytest.raises(InputError, match="fp16 on a CPU"):
        tiny_run(options=replace(OPTIONS, mixed_precision="fp16"))


# parts of a batch, samplers that learn


def test_a_batch_in_parts_has_the_gradients_of_the_whole():
    def trained(parts):
        net = tiny_net()
        net.drop.p = 0.0  # each part drops units of its own
        return train(net, tiny_objective(), SAMPLER, replace(OPTIONS, gradient_accumulation_steps=parts))

    whole = trained(1)
    for parts in (2, 3, 100):  # 16 images in parts of 6, 6 and 4, and one by one
        found = trained(parts)
        torch.testing.assert_close(found.model.state_dict(), whole.model.state_dict(), rtol=1e-3, atol=1e-5)
        assert [loss for _, loss in found.losses] == pytest.approx([loss for _, loss in whole.losses], rel=1e-4)


def test_a_sampler_that_learns_is_told_every_loss_before_its_weight():
    class Learning:
        learns = True

        def __init__(self):
            self.told = []

        def sample(self, batch: int, train_step: int, generator: Generator) -> tuple[Tensor, Tensor]:
            timesteps, weights = SAMPLER.sample(batch, train_step, generator)
            return timesteps, 3 * weights

        def learn(self, timesteps: Tensor, losses: Tensor) -> None:
            self.told.append((timesteps, losses))

        def describe(self):
            return {}

        def state_dict(self):
            return {}

        def load_state_dict(self, state):
            pass

    sampler = Learning()
    result = train(tiny_net(), tiny_objective(), sampler, replace(OPTIONS, steps=3, log_every=1))
    assert len(sampler.told) == 3
    for (timesteps, losses), (_, loss) in zip(sampler.told, result.losses, strict=True):
        assert timesteps.shape == losses.shape == (16,)
        assert 3 * float(losses.mean()) == pytest.approx(loss, rel=1e-5)


def test_momentum_falls_while_training_and_is_back_afterwards():
    plain, falling = (
        tiny_run(options=replace(OPTIONS, momentum_decay=decay, momentum_compensation="code"))
        for decay in ("none", "rational")
    )
    assert weight_bytes(plain.model) != weight_bytes(falling.model)
    decay = replace(OPTIONS, momentum_decay="exponential").momentum
    assert decay is not None
    assert decay.at(0, True)[0] == 0.9
    assert decay.at(OPTIONS.steps, True)[0] == pytest.approx(0.4)
    assert OPTIONS.momentum is None


@pytest.mark.parametrize("sampler", TIMESTEP_SAMPLERS)
@pytest.mark.parametrize("weight", [*LOSS_WEIGHTS, *LEARNT_WEIGHTS])
def test_every_sampler_and_weight_that_can_be_named_trains(sampler, weight):
    options = replace(OPTIONS, steps=2, timestep_sampler=sampler, loss_weight=weight)
    chosen = timestep_sampler(options, Parameterization(tiny_objective().schedule), RangeTimesteps(10, 20, 50))
    result = train(tiny_net(), tiny_objective(), chosen, options)
    assert int(result.seen[10:20].sum()) == int(result.seen.sum()) == 2 * 16


def test_the_names_in_the_options_are_those_of_the_tables():
    assert set(get_args(TimestepSamplers)) == set(TIMESTEP_SAMPLERS)
    assert set(get_args(LossWeights)) == set(LOSS_WEIGHTS) | set(LEARNT_WEIGHTS)


class Counting(TinyNet):
    """Keeps the mean of its inputs in three buffers: it writes one, replaces another and adds a third."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        mean = noisy.detach().abs().mean().reshape(1)
        if self.training:
            self.written.mul_(0.5).add_(0.5 * mean)
            self.replaced = 0.5 * self.replaced + 0.5 * mean
            self.register_buffer("added", self.written.clone(), persistent=False)
        return super().forward(noisy, timesteps)


def test_buffers_that_a_forward_pass_replaces_or_adds_are_those_of_the_last_step(tmp_path):
    """The trained network has them, and so has one whose training was interrupted."""
    options = replace(OPTIONS, steps=6, checkpoint_every=2, log_every=1)

    def run(folder=None, report=None):
        torch.manual_seed(0)
        return train(Counting(), tiny_objective(), SAMPLER, options, folder, report)

    whole = run().model
    assert whole.written.item() > 0.1
    assert torch.equal(whole.replaced, whole.written)
    assert torch.equal(whole.added, whole.written)

    def stop(progress):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop)
    resumed = run(tmp_path).model
    assert torch.equal(resumed.replaced, whole.written)
    assert weight_bytes(resumed) == weight_bytes(whole)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_network_whose_weights_torch_computes_is_trained():
    """torch's old weight norm keeps a result of autograd, which a deep copy refuses."""
    model = tiny_net()
    nn.utils.weight_norm(model.first)
    found = train(model, tiny_objective(), SAMPLER, replace(OPTIONS, steps=3)).model
    assert all(torch.isfinite(value).all() for value in found.state_dict().values())


class Generators:
    """Stands in for torch's module of a device, with a generator of its own."""

    def __init__(self) -> None:
        self.own = Generator().manual_seed(7)
        self.get_rng_state, self.set_rng_state, self.manual_seed = (
            self.own.get_state,
            self.own.set_state,
            self.own.manual_seed,
        )


def test_dropout_on_a_gpu_depends_on_step_and_process_alone(monkeypatch):
    """A resumed training, whose device has drawn other numbers before, drops what an uninterrupted one drops."""
    device = Generators()
    monkeypatch.setattr(torch, "get_device_module", lambda _: device)

    def drawn(step, process=0):
        with dropout_seeded(3, step, process, torch.device("cuda")):
            return float(torch.rand(1, generator=device.own)), float(torch.rand(1))

    before = device.get_rng_state()
    first = drawn(5)
    assert torch.equal(device.get_rng_state(), before)
    torch.rand(3, generator=device.own)
    assert drawn(5) == first
    assert len({drawn(step, process)[0] for step in (5, 6) for process in (0, 1)}) == 4
    before = device.get_rng_state()
    with pytest.raises(KeyError), dropout_seeded(3, 5, 0, torch.device("cuda")):
        raise KeyError
    assert torch.equal(device.get_rng_state(), before)
    monkeypatch.undo()
    with dropout_seeded(3, 5, 0, torch.device("cpu")):
        assert float(torch.rand(1)) == first[1]
