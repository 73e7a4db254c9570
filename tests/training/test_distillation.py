"""A pruned network that learns from the network it was cut from."""

from dataclasses import replace

import pytest
import torch
from networks import unet, unet_inputs
from tiny_training import OPTIONS, SAMPLER, T, assert_same_run, tiny_net, tiny_objective, weight_bytes
from torch import Generator

from prunekit.errors import FileFormatError, InputError
from prunekit.graph import PruningPlan, apply, trace
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective, Distillation, feature_layers, train


def batch(count=6):
    generator = Generator().manual_seed(5)
    timesteps = torch.arange(count) * 7
    return (*tiny_objective().draw(timesteps, generator), timesteps)


def test_the_loss_is_the_stated_mean():
    student, teacher, objective = tiny_net(1).eval(), tiny_net(0).eval(), tiny_objective()
    clean, noise, timesteps = batch()
    noisy, target = objective.pair(clean, noise, timesteps)
    with torch.no_grad():
        own, taught = student(noisy, timesteps), teacher(noisy, timesteps)
        for weight in (0.0, 0.3, 1.0):
            found = Distillation(objective, teacher, weight).per_sample(student, clean, noise, timesteps)
            expected = ((1 - weight) * (own - target) ** 2 + weight * (own - taught) ** 2).flatten(1).mean(1)
            torch.testing.assert_close(found, expected)


def test_without_any_weight_it_is_the_denoising_loss_and_the_teacher_is_not_asked():
    teacher = tiny_net(0)
    teacher.register_forward_hook(lambda *_: pytest.fail("asked"))
    clean, noise, timesteps = batch()
    student, objective = tiny_net(1).eval(), tiny_objective()
    found = Distillation(objective, teacher, 0.0).per_sample(student, clean, noise, timesteps)
    assert torch.equal(found, objective.per_sample(student, clean, noise, timesteps))


def test_a_student_that_is_its_teacher_loses_nothing_to_it():
    teacher, objective = tiny_net(0).eval(), tiny_objective()
    features = {"first": None, "last": None}
    clean, noise, timesteps = batch()
    found = Distillation(objective, teacher, 1.0, 3.0, features).per_sample(teacher, clean, noise, timesteps)
    assert torch.equal(found, torch.zeros(6))


def test_features_are_compared_on_the_channels_that_were_kept():
    teacher, objective = tiny_net(0).eval(), tiny_objective()
    clean, noise, timesteps = batch()
    student = tiny_net(0).eval()
    kept = torch.tensor([0, 2, 5])
    student.first.weight = torch.nn.Parameter(2 * student.first.weight.detach()[kept])
    student.first.bias = torch.nn.Parameter(2 * student.first.bias.detach()[kept])
    student.time = torch.nn.Embedding.from_pretrained(student.time.weight.detach()[:, kept])
    student.last.weight = torch.nn.Parameter(student.last.weight.detach()[:, kept])
    plain = Distillation(objective, teacher, 0.5)
    taught = replace(plain, feature_weight=2.0, features={"first": kept})
    difference = taught.per_sample(student, clean, noise, timesteps) - plain.per_sample(
        student, clean, noise, timesteps
    )
    torch.testing.assert_close(difference, torch.full((6,), 2.0))  # twice the teacher's: its own square away from it
    with pytest.raises(InputError, match="channels that it kept"):
        replace(taught, features={"first": None}).per_sample(student, clean, noise, timesteps)


def test_only_the_student_learns_and_features_move_it():
    teacher = tiny_net(0)
    before = weight_bytes(teacher)
    student = tiny_net(1)
    clean, noise, timesteps = batch()
    Distillation(tiny_objective(), teacher, 0.0, 1.0, {"first": None}).per_sample(
        student, clean, noise, timesteps
    ).sum().backward()
    assert student.first.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert weight_bytes(teacher) == before


def test_it_fades_over_the_training():
    aim = Distillation(tiny_objective(), tiny_net(), 0.8, 2.0, {"first": None}, "linear")
    assert (aim.at(0.0).weight, aim.at(0.75).weight, aim.at(0.75).feature_weight) == pytest.approx((0.8, 0.2, 0.5))
    assert replace(aim, fade="constant").at(0.75).weight == 0.8


def test_a_training_by_a_teacher_alone_comes_nearer_to_it():
    options = replace(OPTIONS, steps=150, learning_rate=1e-2, log_every=150, ema_decay=0.5)
    teacher, objective = tiny_net(0), tiny_objective()
    clean, noise, timesteps = batch()

    @torch.no_grad()
    def apart(model):
        only = Distillation(objective, teacher, 1.0)
        return float(only.per_sample(model.eval(), clean, noise, timesteps).mean())

    student = tiny_net(1)
    before = apart(student)
    assert apart(train(student, Distillation(objective, teacher, 1.0), SAMPLER, options).model) < 0.2 * before


def test_an_interrupted_training_goes_on_with_the_same_teacher_only(tmp_path):
    aim = Distillation(tiny_objective(), tiny_net(2), 0.5, fade="linear")

    class Interruption(Exception):
        pass

    def interrupt(progress):
        if progress.step == 20:
            raise Interruption

    whole = train(tiny_net(1), aim, SAMPLER, OPTIONS)
    with pytest.raises(Interruption):
        train(tiny_net(1), aim, SAMPLER, OPTIONS, tmp_path, interrupt)
    with pytest.raises(FileFormatError):
        train(tiny_net(1), replace(aim, teacher=tiny_net(3)), SAMPLER, OPTIONS, tmp_path)
    assert_same_run(train(tiny_net(1), aim, SAMPLER, OPTIONS, tmp_path), whole)


def test_every_block_of_a_unet_has_a_layer_to_learn_from_after_it_was_pruned():
    teacher = unet().eval()
    names = feature_layers(teacher)
    assert {name.split(".")[0] for name in names} >= {"down_blocks", "up_blocks", "mid_block"}
    graph = trace(teacher, unet_inputs())
    halves = {group.name: tuple(range(max(int(w) for w in group.widths if w <= group.size / 2))) for group in graph}
    plan = PruningPlan({name: kept for name, kept in halves.items() if kept}, graph.fingerprint)
    student, kept = apply(teacher, graph, plan), plan.positions(graph)
    features = {name: torch.from_numpy(kept[name, "out"]) if (name, "out") in kept else None for name in names}
    assert sum(stays is not None for stays in features.values()) > 3
    images = torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8, generator=Generator().manual_seed(1))
    aim = Distillation(
        DenoisingObjective(images, Parameterization(NoiseSchedule.linear(T))), teacher, 0.5, 1.0, features
    )
    timesteps = torch.tensor([3, 9])
    clean, noise = aim.draw(timesteps, Generator().manual_seed(0))
    assert aim.per_sample(student.eval(), clean, noise, timesteps).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": 1.5}, "share"),
        ({"feature_weight": -1.0}, "share"),
        ({"feature_weight": 1.0}, "no features"),
        ({"features": {"second": None}}, "no layer second"),
        ({"fade": "slowly"}, "fade"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Distillation(tiny_objective(), tiny_net(), **wrong)
