"""The whole job on networks with conditions: the columns are given to the network with the images that they belong to."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import tiny_pipeline
from torch import Generator, Tensor, nn

from prunekit.checkpoint import Base, ModelSpec
from prunekit.conditions import flat, nested
from prunekit.data import ImageData
from prunekit.errors import InputError
from prunekit.evaluation import group_losses
from prunekit.groups import TimestepGroups
from prunekit.recipe import DistillationOptions, FinetuneOptions, PruneOptions
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.search import SearchOptions
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.finetuning import finetune_slim
from prunekit.steps.image_choice import check_images
from prunekit.steps.objectives import columns_for, objective_for
from prunekit.training import TrainOptions

SHAPES = {
    "sd": {"encoder_hidden_states": (16, 32)},
    "sdxl": {
        "encoder_hidden_states": (16, 64),
        "added_cond_kwargs.text_embeds": (16,),
        "added_cond_kwargs.time_ids": (6,),
    },
    "sd3": {"encoder_hidden_states": (9, 32), "pooled_projections": (32,)},
}
COUNT = 24
GROUPS = TimestepGroups.from_cuts(100, [50])


def made(name: str, tmp_path) -> Base:
    pipeline = tiny_pipeline(name, tmp_path)
    model = getattr(pipeline, "unet", None) or pipeline.transformer
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # a fresh network's last layers are zero
    return Base(model.eval(), ModelSpec.of(model), Parameterization(NoiseSchedule.linear(100)))


def data(name: str, channels: int = 4) -> ImageData:
    draws = Generator().manual_seed(0)
    columns = {key: torch.randn(COUNT, *shape, generator=draws).half() for key, shape in SHAPES[name].items()}
    empty = {key: torch.zeros(value.shape[1:], dtype=value.dtype) for key, value in columns.items()}
    return ImageData(torch.randn(COUNT, channels, 8, 8, generator=draws).half(), name, None, columns, empty)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name != "sd" else name for name in SHAPES]
)
def test_scores_searches_and_trainings_use_the_conditions(name, tmp_path):
    base, images = made(name, tmp_path), data(name)
    bench, group = Bench.of(base), next(iter(GROUPS))
    options = PruneOptions(samples=16, batch_size=8, search=SearchOptions(rounds=1, shortlist=2))
    scores = score_groups(bench, images, [group], options)
    other = replace(images, columns={key: value.flip(0) for key, value in images.columns.items()})
    assert any(
        (scores.of(0)[key] != score_groups(bench, other, [group], options).of(0)[key]).any() for key in scores.of(0)
    )
    slim, found = prune_group(bench, images, scores, group, 0.7, options)
    assert found.macs <= 0.7 * bench.macs
    assert slim.macs == found.macs
    train = TrainOptions(steps=2, batch_size=4, learning_rate=1e-3, warmup_steps=0, label_dropout=0.5, log_every=1)
    tuned, result = finetune_slim(
        slim, images, FinetuneOptions(train=train, distillation=DistillationOptions(weight=0.5)), teacher=base
    )
    assert len(result.losses) == 2
    objective = objective_for(images, base.spec, base.parameterization)
    losses = group_losses(tuned.model, objective, GROUPS, batches=1, batch_size=4, seed=0)
    assert all(torch.isfinite(torch.from_numpy(each.losses)).all() for each in losses)


class Told(nn.Module):
    """A denoiser that predicts what it is told of a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, added: dict[str, Tensor]
    ) -> Tensor:
        told = encoder_hidden_states[:, 0] + added["more"]
        return sample * self.weight + told.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_conditions_stay_with_their_images_and_are_dropped_together(dropout):
    number = torch.arange(40.0)
    columns = {"encoder_hidden_states": number[:, None] * 2, "added.more": number}
    empty = {"encoder_hidden_states": torch.tensor([-7.0]), "added.more": torch.tensor(-3.0)}
    images = ImageData(number.reshape(40, 1, 1, 1).expand(40, 1, 4, 4), "numbered", None, columns, empty)
    spec = ModelSpec("Told", {}, factory=lambda _: Told())
    objective = objective_for(images, spec, Parameterization(NoiseSchedule.linear(10)), dropout)
    timesteps = torch.arange(64) % 10
    clean, noise, *conditions = objective.draw(timesteps, Generator().manual_seed(0))
    assert [tuple(each.shape) for each in conditions] == [(64, 1), (64,)]
    told = objective.predict(Told(), clean, timesteps, *conditions)[:, 0, 0, 0]
    dropped = told == -10
    assert torch.equal(told[~dropped], 3 * clean[~dropped, 0, 0, 0])
    assert (dropped.float().mean() > 0.2) == bool(dropout)
    same = replace(objective, columns=copy.deepcopy(objective.columns))
    assert same.fingerprint() == objective.fingerprint()
    other = objective_for(
        replace(images, columns={**columns, "added.more": number + 1}), spec, objective.parameterization, dropout
    )
    assert other.fingerprint() != objective.fingerprint()
    assert torch.equal(
        noise, objective_for(images, spec, objective.parameterization).draw(timesteps, Generator().manual_seed(0))[1]
    )


def test_missing_conditions_are_named(tmp_path):
    base = made("sdxl", tmp_path)
    bare = replace(data("sdxl"), columns={"encoder_hidden_states": data("sdxl").columns["encoder_hidden_states"]})
    with pytest.raises(
        InputError, match=r"added_cond_kwargs.text_embeds, added_cond_kwargs.time_ids, which sdxl does not have"
    ):
        columns_for(bare, base.spec)
    with pytest.raises(InputError, match="conditions without an empty one"):
        columns_for(replace(data("sdxl"), empty={}), base.spec, 0.1)


def test_a_row_that_is_not_finite_is_named(tmp_path):
    base, images = made("sd", tmp_path), data("sd")
    images.columns["encoder_hidden_states"][5, 2, 3] = float("nan")
    objective = objective_for(images, base.spec, base.parameterization)
    with pytest.raises(InputError, match="rows of encoder_hidden_states are not finite, row 5 the first"):
        objective.draw(torch.zeros(20 * COUNT, dtype=torch.int64), Generator().manual_seed(0))


def test_images_with_conditions_fit_a_network(tmp_path):
    from prunekit.data import ImageSplit

    base, images = made("sd", tmp_path), data("sd")
    check_images(ImageSplit(images, images, "x", 8), base.spec)
    assert nested(flat({"a": {"b": 1, "c": {}}})) == {"a": {"b": 1, "c": {}}}


def numbered() -> ImageData:
    """Images whose conditions say which row they are of."""
    number = torch.arange(40.0)
    columns = {"first": number[:, None] * 2, "second": number, "third": number}
    empty = {"first": torch.tensor([-7.0]), "second": torch.tensor(-3.0)}
    return ImageData(number.reshape(40, 1, 1, 1).expand(40, 1, 4, 4), "numbered", None, columns, empty)


class Any3(nn.Module):
    """Takes three conditions."""

    def forward(self, sample: Tensor, timestep: Tensor, first: Tensor, second: Tensor, third: Tensor) -> Tensor:
        return sample


def drawn(dropout: float, own: dict[str, float]) -> tuple[Tensor, Tensor]:
    """Which of 4,000 draws hide the first and the second condition."""
    spec = ModelSpec("Any3", {}, factory=lambda _: Any3())
    objective = objective_for(numbered(), spec, Parameterization(NoiseSchedule.linear(10)), dropout, own_dropout=own)
    clean, _, first, second, third = objective.draw(torch.zeros(4000, dtype=torch.int64), Generator().manual_seed(1))
    number = clean[:, 0, 0, 0]
    hidden = first[:, 0] == -7, second == -3
    assert torch.equal(first[~hidden[0], 0], 2 * number[~hidden[0]])
    assert torch.equal(second[~hidden[1]], number[~hidden[1]])
    assert torch.equal(third, number)
    return hidden


def test_one_condition_is_hidden_at_its_own_rate():
    first, second = drawn(0.0, {"first": 0.3})
    assert abs(first.float().mean() - 0.3) < 0.03
    assert not second.any()
    first, second = drawn(0.0, {"first": 0.3, "second": 0.5})
    assert abs((first & second).float().mean() - 0.15) < 0.03  # each for itself
    first, second = drawn(0.5, {"second": 0.4})
    assert abs(first.float().mean() - 0.5) < 0.03
    assert not (first & ~second).any()  # what hides all hides the second too
    assert abs(second.float().mean() - (1 - 0.5 * 0.6)) < 0.03


def test_a_rate_of_its_own_leaves_other_draws_and_hashes_as_they_were():
    spec, kind = ModelSpec("Any3", {}, factory=lambda _: Any3()), Parameterization(NoiseSchedule.linear(10))
    plain, zero, own = (
        objective_for(numbered(), spec, kind, 0.2, own_dropout=rates)
        for rates in (None, {"first": 0.0}, {"first": 0.1})
    )
    assert plain.fingerprint() == zero.fingerprint() != own.fingerprint()
    timesteps = torch.arange(64) % 10
    one, other = (each.draw(timesteps, Generator().manual_seed(0)) for each in (plain, own))
    assert all(torch.equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"frist": 0.1}, r"'frist', which is no condition of the images \(did you mean first\?\)"),
        ({"third": 0.1}, "condition_dropout for third, which has no empty condition"),
    ],
)
def test_rates_of_what_cannot_be_hidden_are_refused(own, said):
    with pytest.raises(InputError, match=said):
        drawn(0.0, own)
    with pytest.raises(
        InputError, match=r"Got condition_dropout 1 for first; expected a share of the images in \[0, 1\)"
    ):
        TrainOptions(condition_dropout={"first": 1.0})
