import io
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import OPTIONS, tiny_run, weight_bytes
from torch import Generator, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from prunekit.errors import InputError
from prunekit.training import ExponentialMomentum, MomentumDecay, RationalMomentum, TrainOptions
from prunekit.training.optimizers import make_sgd

RATIONAL = RationalMomentum(200)
CURVES = [RATIONAL, ExponentialMomentum(0.99), ExponentialMomentum(0.9999, 0.0, 0.95)]


def test_the_rational_form_is_worked_out_by_hand():
    assert [RATIONAL.at(step) for step in (0, 200, 999)] == [pytest.approx(0.9), 0, 0]
    assert RATIONAL.at(100) == pytest.approx(0.45 / 0.55)
    assert RationalMomentum(4, 0.5).at(3) == pytest.approx(0.125 / 0.625)


def test_the_exponential_form_is_worked_out_by_hand():
    curve = ExponentialMomentum(0.5, 0.1, 0.8)
    assert [curve.at(step) for step in range(5)] == [pytest.approx(beta) for beta in (0.8, 0.4, 0.2, 0.1, 0.1)]
    assert ExponentialMomentum(0.9).at(10**6) == 0.4


@given(st.floats(0.01, 0.999), st.integers(1, 10**5), st.integers(0, 10**6), st.floats(0.9, 1), st.floats(0, 1))
def test_momentum_falls_from_where_it_starts_and_stays_one(initial, steps, step, factor, minimum):
    for curve in (RationalMomentum(steps, initial), ExponentialMomentum(factor, minimum * initial, initial)):
        assert curve.at(0) == pytest.approx(initial)
        assert 0 <= curve.at(step + 1) <= curve.at(step) <= initial + 1e-12


@pytest.mark.parametrize("curve", CURVES)
@given(st.integers(0, 1000))
def test_each_compensation_keeps_what_it_says(curve, step):
    ball, average = (
        {name: MomentumDecay(curve, name).at(step, averages) for name in ("step", "gradient", "code", "none")}
        for averages in (False, True)
    )
    start = curve.initial
    for beta, factor in (ball["step"],):
        assert factor / (1 - beta) == pytest.approx(1 / (1 - start))
    assert ball["gradient"][1] == ball["none"][1] == average["step"][1] == average["none"][1] == 1
    for beta, factor in (average["gradient"], average["code"], ball["code"]):
        assert factor * (1 - beta) == pytest.approx(1 - start)


def moved(optimizer_of, decay, steps, gradient=lambda step: 1.0):
    """How far each step moves a weight."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = optimizer_of([weight])
    distances = []
    for step in range(steps):
        before = weight.item()
        weight.grad = torch.full((1,), float(gradient(step)), dtype=torch.float64)
        with decay.applied(optimizer, step):
            optimizer.step()
        distances.append(before - weight.item())
    return distances


def sgd(weights):
    return torch.optim.SGD(weights, lr=0.1, momentum=0.9)


def adam(weights):
    return torch.optim.Adam(weights, lr=0.1)


def linear_adam(weights):
    """Of which each step is, but for 1e-12, the averaged gradient times lr."""
    return torch.optim.Adam(weights, lr=1e12 * 0.1, eps=1e12)


def test_under_sgd_the_default_keeps_the_step_that_a_constant_gradient_makes():
    steps = 4000
    kept = moved(sgd, MomentumDecay(RationalMomentum(steps)), steps)
    assert all(0.97 < distance < 1.03 for distance in kept[100:])  # lr/(1 − β0) is 1; the average lags a little
    bare = moved(sgd, MomentumDecay(RationalMomentum(steps), "none"), steps)
    assert bare[100] > 0.9
    assert bare[-1] == pytest.approx(0.1, rel=0.02)
    code = moved(sgd, MomentumDecay(RationalMomentum(steps), "code"), steps)
    assert code[-1] == pytest.approx(0.01, rel=0.02)


def test_under_adam_the_default_keeps_the_step_too_and_torchs_bias_correction_is_nearly_right():
    steps = 1000
    kept = moved(adam, MomentumDecay(RationalMomentum(steps)), steps)
    assert 0.1 * (1 - 2.8 / steps) <= min(kept) < 0.1 * (1 - 2.5 / steps)  # as its docstring says
    assert max(kept) < 0.1 * (1 + 1e-6)
    assert kept[100:] == pytest.approx([0.1] * (steps - 100), rel=1e-5)
    lowered = moved(adam, MomentumDecay(RationalMomentum(steps), "code"), steps)
    assert lowered[0] == pytest.approx(0.1)
    assert lowered[-1] == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
    ("optimizer", "compensation", "expected"),
    [
        (linear_adam, "gradient", 0.1 * 0.1),  # lr·(1 − β0)
        (linear_adam, "code", 0.1 * 0.1),
        (linear_adam, "step", 0.1 * (1 - RATIONAL.at(150))),
        (sgd, "gradient", 0.1),
        (sgd, "step", 0.1 * (1 - RATIONAL.at(150)) / 0.1),
    ],
)
def test_what_the_newest_gradient_moves(optimizer, compensation, expected):
    decay = MomentumDecay(RATIONAL, compensation)
    calm = moved(optimizer, decay, 151)
    struck = moved(optimizer, decay, 151, lambda step: 1.0 + (step == 150))
    assert struck[150] - calm[150] == pytest.approx(expected, rel=1e-4)


def layers():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def two_groups(model):
    return torch.optim.AdamW([{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}], lr=0.01)


@pytest.mark.parametrize("scheduler", [lambda o: ExponentialLR(o, 0.9), lambda o: CosineAnnealingLR(o, 50)])
def test_it_composes_with_learning_rate_schedules_that_go_on_from_the_rate_they_find(scheduler):
    model = layers()
    decayed, plain = two_groups(model), two_groups(layers())
    schedules = scheduler(decayed), scheduler(plain)
    decay = MomentumDecay(RATIONAL, "gradient")
    for step in range(30):
        expected = [group["lr"] for group in plain.param_groups]
        with decay.applied(decayed, step):
            factor = (1 - 0.9) / (1 - RATIONAL.at(step))
            assert [group["lr"] for group in decayed.param_groups] == [lr * factor for lr in expected]
            assert all(group["betas"] == (RATIONAL.at(step), 0.999) for group in decayed.param_groups)
            decayed.step()
        plain.step()
        assert [group["lr"] for group in decayed.param_groups] == expected
        for schedule in schedules:
            schedule.step()


@pytest.mark.parametrize(
    "optimizer_of",
    [
        two_groups,
        lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        lambda model: torch.optim.RMSprop(model.parameters(), lr=0.01, momentum=0.9),
        lambda model: torch.optim.NAdam(model.parameters(), lr=0.01),
        lambda model: torch.optim.Adam(model.parameters(), lr=torch.tensor(0.01)),
    ],
)
@pytest.mark.parametrize("compensation", ["step", "gradient"])
def test_it_is_saved_in_the_middle_and_goes_on_bit_equal(optimizer_of, compensation):
    decay = MomentumDecay(RationalMomentum(20), compensation)

    def run(parts, first, last):
        model, optimizer, schedule = parts
        for step in range(first, last):
            batch = torch.randn(8, 3, generator=Generator().manual_seed(step))
            optimizer.zero_grad()
            (model(batch) - batch.sum(1, keepdim=True)).square().mean().backward()
            with decay.applied(optimizer, step):
                optimizer.step()
            schedule.step()
        return parts

    def fresh():
        model = layers()
        optimizer = optimizer_of(model)
        return model, optimizer, CosineAnnealingLR(optimizer, 20)

    whole = run(fresh(), 0, 20)
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in run(fresh(), 0, 11)], buffer)
    buffer.seek(0)
    resumed = fresh()
    for part, state in zip(resumed, torch.load(buffer, weights_only=True), strict=True):
        part.load_state_dict(state)
    run(resumed, 11, 20)
    pairs = zip(whole[0].parameters(), resumed[0].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    undecayed = [group.get("betas", group.get("momentum")) for group in fresh()[1].param_groups]
    assert [group.get("betas", group.get("momentum")) for group in resumed[1].param_groups] == undecayed


def test_an_error_inside_leaves_the_optimizer_as_it_was():
    optimizer = sgd([nn.Parameter(torch.zeros(1))])
    met = []
    optimizer.register_step_pre_hook(lambda *_: met.append(optimizer.param_groups[0]["momentum"]))
    optimizer.register_step_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), MomentumDecay(RATIONAL).applied(optimizer, 100):
        optimizer.step()
    assert met == [RATIONAL.at(100)]
    assert (optimizer.param_groups[0]["momentum"], optimizer.param_groups[0]["lr"]) == (0.9, 0.1)


def test_an_optimizer_without_momentum_is_refused_and_left_alone():
    optimizer = torch.optim.Adagrad([nn.Parameter(torch.zeros(1))], lr=0.1)
    before = dict(optimizer.param_groups[0])
    decay = MomentumDecay(RATIONAL)
    with (
        pytest.raises(InputError, match="Adagrad, which has neither betas nor momentum"),
        decay.applied(optimizer, 0),
    ):
        pass
    assert optimizer.param_groups[0].keys() == before.keys()


def test_descriptions_are_json_and_tell_decays_apart():
    told = {
        json.dumps(MomentumDecay(curve, compensation).describe(), sort_keys=True)
        for curve in [*CURVES, RationalMomentum(201)]
        for compensation in ("step", "gradient", "code", "none")
    }
    assert len(told) == 16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RationalMomentum(0), "0 train steps.*at least 1"),
        (lambda: RationalMomentum(5, 1.0), "initial momentum of 1.0.*between 0 and 1"),
        (lambda: ExponentialMomentum(1.1), "factor 1.1"),
        (lambda: ExponentialMomentum(0.5, 0.95), "to 0.95"),
        (lambda: MomentumDecay(RATIONAL, "both"), "'both'.*step, gradient, code, none"),
    ],
)
def test_what_makes_no_decay_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_floor_holds_the_momentum_up_and_is_checked():
    falling = RationalMomentum(100, minimum=0.4)
    plain = RationalMomentum(100)
    values = [falling.at(step) for step in range(120)]
    assert values == [max(plain.at(step), 0.4) for step in range(120)]
    assert min(values) == 0.4
    for minimum in (-0.1, 0.95):
        with pytest.raises(InputError, match="expected a minimum between 0 and where it starts"):
            RationalMomentum(100, minimum=minimum)
    options = TrainOptions(steps=50, momentum_decay="rational", momentum_floor=0.3)
    assert options.momentum is not None
    assert options.momentum.at(50, True)[0] == 0.3
    deeper = TrainOptions(steps=50, momentum_decay="exponential", momentum_floor=0.1)
    assert deeper.momentum is not None
    assert deeper.momentum.at(50, True)[0] == pytest.approx(0.1)
    for decay, floor, said in (
        ("none", 0.3, "without a momentum_decay"),
        ("rational", 0.95, "expected a minimum"),
        ("exponential", 0.0, "never reaches it"),
        ("exponential", 0.95, "expected a factor"),
    ):
        with pytest.raises(InputError, match=said):
            TrainOptions(momentum_decay=decay, momentum_floor=floor)


def test_sgd_trains_with_a_momentum_that_may_fall():
    sgd = replace(OPTIONS, optimizer="sgd", learning_rate=1e-2)
    plain, again = tiny_run(options=sgd), tiny_run(options=sgd)
    falling = tiny_run(options=replace(sgd, momentum_decay="rational"))
    adamw = tiny_run(options=replace(sgd, optimizer="adamw"))
    found = [weight_bytes(each.model) for each in (plain, again, falling, adamw)]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    with pytest.raises(InputError, match="Got use_8bit_adam with optimizer sgd"):
        replace(OPTIONS, optimizer="sgd", use_8bit_adam=True)
    optimizer = make_sgd([torch.nn.Parameter(torch.ones(1))], 0.1, 0.5)
    assert optimizer.param_groups[0]["momentum"] == 0.9
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
