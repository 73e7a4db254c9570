import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunekit.checkpoint import Base, ModelSpec
from prunekit.cost import count_macs
from prunekit.data import ImageSplit, load_images
from prunekit.errors import BudgetError, GraphError, InputError, MissingFileError
from prunekit.groups import TimestepGroups
from prunekit.importance import no_loss
from prunekit.nets import load_experts
from prunekit.recipe import BaseOptions, DataOptions, DistillationOptions, FinetuneOptions, PruneOptions
from prunekit.search import Repair, SearchOptions
from prunekit.slim import SlimModel, load_slim, save_slim
from prunekit.steps import bases, finetuning, placing, searching
from prunekit.steps.assembling import assemble
from prunekit.steps.bases import open_base, train_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.finetuning import finetune_slim
from prunekit.steps.image_choice import check_images, images_for, images_of
from prunekit.steps.spending import base_training
from prunekit.training import DenoisingObjective, RangeTimesteps, TrainOptions, TrainResult

GROUPS = TimestepGroups.from_cuts(1000, [300])
OPTIONS = PruneOptions(samples=16, batch_size=16, search=SearchOptions(proposer="oneshot"))
TRAIN = TrainOptions(steps=2, batch_size=8, warmup_steps=1, log_every=1, seed=3)
TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}


def tiny(**changes: Any) -> ModelSpec:
    config = {key: value for key, value in (TINY | changes).items() if value is not None}
    return ModelSpec("UNet2DModel", config)


def base_options(**changes: Any) -> BaseOptions:
    return BaseOptions(model=tiny(**changes).to_json(), train=TRAIN)


@pytest.fixture(scope="module")
def digits() -> ImageSplit:
    return load_images("digits")


@pytest.fixture(scope="module")
def base(digits: ImageSplit) -> Base:
    return train_base(base_options(), digits)[0]


@pytest.fixture(scope="module")
def bench(base: Base) -> Bench:
    return Bench.of(base)


@pytest.fixture(scope="module")
def slims(bench: Bench, digits: ImageSplit) -> list[SlimModel]:
    scores = score_groups(bench, digits.train, GROUPS, OPTIONS)
    target = int(0.8 * bench.macs)
    return [prune_group(bench, digits.train, scores, group, target, OPTIONS)[0] for group in GROUPS]


@pytest.fixture
def slim_folder(slims: list[SlimModel], tmp_path: Path) -> Path:
    for slim in slims:
        save_slim(slim, tmp_path / "slim" / f"group-{slim.group.index}")
    return tmp_path / "slim"


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


# bases and images


def test_the_embedded_base_denoises():
    base = open_base("embedded:digits")
    held_out = images_of(base).held_out
    assert base.data["source"] == "digits"
    objective = DenoisingObjective(held_out.images, base.parameterization)
    with torch.no_grad():
        loss = objective(base.model, torch.full((256,), 500), torch.Generator().manual_seed(0))
    assert float(loss) < 0.1  # predicting no noise at all costs 1


@pytest.mark.parametrize("name", ["", "nothing", "../digits", "digits/../digits"])
def test_an_embedded_name_that_is_none_is_refused(name):
    with pytest.raises(InputError, match="embedded:digits"):
        open_base(f"embedded:{name}")


def test_a_base_that_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingFileError, match="prunekit train"):
        open_base(str(tmp_path / "base.pt"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def test_images_are_the_recorded_ones_or_others_at_the_models_size(pictures, digits):
    recorded = images_for({"source": "digits", "resolution": 8}, tiny(), None)
    assert recorded.train.sha256 == digits.train.sha256
    other = images_for({"source": "digits", "resolution": 8}, tiny(), DataOptions(str(pictures)))
    assert (other.source, other.resolution, len(other.train)) == (str(pictures), 8, 3)
    unrecorded = images_for({}, tiny(sample_size=6), DataOptions(str(pictures)))
    assert unrecorded.resolution == 6


def test_images_that_nobody_names_are_asked_for():
    with pytest.raises(InputError, match="`data`"):
        images_for({}, tiny(), None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"in_channels": 3}, "1 channels and the model's in_channels is 3"),
        ({"out_channels": 3}, "1 channels and the model's out_channels is 3"),
        ({"sample_size": 16}, "8×8 and the model's sample_size is 16"),
        ({"sample_size": [8, 16]}, "8×8 and the model's sample_size is 8×16"),
    ],
    ids=str,
)
def test_images_that_the_model_does_not_take_are_refused(digits, config, message):
    with pytest.raises(InputError, match=message):
        check_images(digits, tiny(**config))


@pytest.mark.parametrize(
    "config", [{}, {"sample_size": None}, {"sample_size": [8, 8]}, {"out_channels": None}, {"out_channels": 2}], ids=str
)
def test_images_that_it_takes_are_taken(digits, config):
    check_images(digits, tiny(**config))


# training a base


def test_training_depends_on_its_seed_and_leaves_the_global_generator(base, digits):
    torch.manual_seed(4321)
    before = torch.get_rng_state()
    again, result = train_base(base_options(), digits)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(again.model, base.model)
    assert again.about() == base.about()
    assert result.samples == 16
    assert base.provenance["seed"] == 3
    assert base.provenance["data_sha256"] == digits.train.sha256


def test_a_trained_base_is_trained_on_as_a_copy_and_its_samples_are_those_of_all_trainings(base, digits):
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    options = replace(base_options(), train=replace(TRAIN, steps=5, batch_size=4))
    again, result = train_base(options, digits, trained=base)
    assert all(torch.equal(value, before[key]) for key, value in base.model.state_dict().items())
    assert not base.model.training
    assert not same_weights(again.model, base.model)
    assert result.samples == 3 * 4
    assert (again.provenance["steps"], again.provenance["samples"]) == (5, 2 * 8 + 3 * 4)
    known = base_training("mine.pt", again, 10, [])
    assert (known.samples, known.macs) == (28, 3 * 28 * 10)


def test_the_samples_of_a_base_without_a_record_of_them_are_its_steps_times_its_batch_size(base, digits):
    older = replace(base, provenance={"steps": 2, "batch_size": 8, "seed": 3})
    assert base_training("mine.pt", older, 10, []).samples == 16
    assert base_training("mine.pt", replace(base, provenance={"steps": 2}), 10, []) is None
    options = replace(base_options(), train=replace(TRAIN, steps=5, batch_size=4))
    assert train_base(options, digits, trained=older)[0].provenance["samples"] == 16 + 12
    unknown = replace(base, provenance={"steps": 2})
    assert "samples" not in train_base(options, digits, trained=unknown)[0].provenance


def test_what_the_options_leave_to_the_class_is_recorded(digits):
    options = base_options(norm_num_groups=None, block_out_channels=[32, 32])
    trained, _ = train_base(options, digits)
    assert trained.spec.config["norm_num_groups"] == 32
    assert trained.spec.config.items() >= options.spec().config.items()
    trained.spec.build().load_state_dict(trained.model.state_dict())


def test_a_network_for_other_images_is_refused_before_training(digits, monkeypatch):
    monkeypatch.setattr(bases, "train", None)
    with pytest.raises(InputError, match="in_channels is 3"):
        train_base(base_options(in_channels=None), digits)  # diffusers' own default


# scoring and pruning


def test_scores_are_for_the_groups_asked_and_differ_between_them(bench, digits):
    scores = score_groups(bench, digits.train, GROUPS, OPTIONS)
    assert [group.index for group in scores.timestep_groups] == [0, 1]
    alone = score_groups(bench, digits.train, [GROUPS[1]], OPTIONS)
    for name in scores.sizes:
        assert np.array_equal(alone.of(1)[name], scores.of(1)[name])
    assert any(not np.allclose(scores.of(0)[name], scores.of(1)[name]) for name in scores.sizes)


def test_a_slim_model_meets_its_target_and_says_where_it_is_from(slims, bench):
    for slim, group in zip(slims, GROUPS, strict=True):
        measured = count_macs(slim.model, bench.base.spec.example_inputs())
        assert (slim.macs, slim.params) == (measured.macs, measured.params)
        assert 0 <= int(0.8 * bench.macs) - slim.macs <= 0.01 * bench.macs
        assert (slim.group, slim.num_timesteps) == (group, 1000)
        provenance = slim.about["provenance"]
        assert (
            provenance["base_macs"] == bench.macs == count_macs(bench.base.model, bench.base.spec.example_inputs()).macs
        )
        assert provenance["target_macs"] == int(0.8 * bench.macs)
        assert (provenance["criterion"], provenance["proposer"]) == ("taylor", "oneshot")


def test_pruning_leaves_the_base_alone_and_repeats_itself(slims, bench, base, digits):
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    scores = score_groups(bench, digits.train, GROUPS, OPTIONS)
    again, result = prune_group(bench, digits.train, scores, GROUPS[1], int(0.8 * bench.macs), OPTIONS)
    assert all(torch.equal(value, before[key]) for key, value in base.model.state_dict().items())
    assert again.plan.to_json() == slims[1].plan.to_json()
    assert same_weights(again.model, slims[1].model)
    assert result.macs == again.macs


@pytest.mark.slow
def test_the_whole_models_criterion_scores_one_group_as_it_scores_all(bench, digits):
    options = replace(OPTIONS, criterion="diff-pruning")
    together, alone = (score_groups(bench, digits.train, groups, options) for groups in (GROUPS, [GROUPS[0]]))
    assert all(np.array_equal(alone.of(0)[name], together.of(0)[name]) for name in together.sizes)


def test_repair_changes_the_weights_only_and_a_floor_the_widths_only(bench, digits, slims):
    scores = score_groups(bench, digits.train, GROUPS, OPTIONS)
    target = int(0.8 * bench.macs)

    def pruned(**changes: Any) -> SlimModel:
        return prune_group(bench, digits.train, scores, GROUPS[1], target, replace(OPTIONS, **changes))[0]

    cut = pruned(repair="none")
    assert cut.plan == slims[1].plan
    assert not same_weights(cut.model, slims[1].model)
    assert [slim.about["provenance"]["repair"] for slim in (cut, slims[1])] == ["none", "least-squares"]
    floored = pruned(floor=0.75)
    assert all(len(kept) >= 0.75 * bench.graph[name].size for name, kept in floored.plan.kept.items())
    assert floored.plan != slims[1].plan


def test_a_target_below_what_is_possible_is_refused_with_the_range(bench, digits):
    scores = score_groups(bench, digits.train, [GROUPS[0]], OPTIONS)
    with pytest.raises(BudgetError) as refused:
        prune_group(bench, digits.train, scores, GROUPS[0], 1, OPTIONS)
    low, high = refused.value.feasible
    assert 1 < low < high == bench.macs


def test_a_slim_model_that_costs_something_else_than_its_plan_is_a_defect(bench, digits, monkeypatch):
    scores = score_groups(bench, digits.train, [GROUPS[0]], OPTIONS)
    monkeypatch.setattr(Repair, "apply", lambda self, _: self.model)  # nothing is cut
    with pytest.raises(GraphError, match="its plan says"):
        prune_group(bench, digits.train, scores, GROUPS[0], int(0.8 * bench.macs), OPTIONS)


# fine-tuning


def test_experts_train_on_their_own_timesteps_and_their_own_batches(slims, digits, monkeypatch):
    seen: list[tuple[RangeTimesteps, int]] = []

    def spy(model: nn.Module, objective: Any, sampler: Any, options: TrainOptions, *_: Any) -> TrainResult:
        seen.append((sampler, options.seed))
        assert torch.equal(objective.images, digits.train.images)
        return TrainResult(model, [(1, 0.0)], 1, 0.0, torch.zeros(1000, dtype=torch.int64))

    monkeypatch.setattr(finetuning, "train", spy)
    for slim in slims:
        finetune_slim(slim, digits.train, FinetuneOptions(overlap=20, train=TRAIN))
    assert [sampler for sampler, _ in seen] == [RangeTimesteps(0, 320), RangeTimesteps(280, 1000)]
    assert len({seed for _, seed in seen}) == 2


def test_every_group_may_have_its_own_learning_rate(slims, digits, monkeypatch):
    seen: list[TrainOptions] = []

    def spy(model: nn.Module, objective: Any, sampler: Any, options: TrainOptions, *_: Any) -> TrainResult:
        seen.append(options)
        return TrainResult(model, [(1, 0.0)], 1, 0.0, torch.zeros(1000, dtype=torch.int64))

    monkeypatch.setattr(finetuning, "train", spy)
    options = FinetuneOptions(train=TRAIN, learning_rates=(1e-4, 2e-3))
    for slim in slims:
        finetune_slim(slim, digits.train, options)
    assert [each.learning_rate for each in seen] == [1e-4, 2e-3]
    assert {each.steps for each in seen} == {TRAIN.steps}
    with pytest.raises(InputError, match="one for each group"):
        finetune_slim(slims[1], digits.train, FinetuneOptions(train=TRAIN, learning_rates=(1e-4,)))


def test_finetuning_changes_weights_and_provenance_and_nothing_else(slim_folder, digits):
    loaded, before = load_slim(slim_folder / "group-1"), load_slim(slim_folder / "group-1")
    tuned, result = finetune_slim(loaded, digits.train, FinetuneOptions(train=TRAIN))
    assert not same_weights(tuned.model, before.model)
    assert same_weights(loaded.model, before.model)  # another fine-tuning of it begins where this one began
    assert tuned.plan.to_json() == before.plan.to_json()
    assert (tuned.macs, tuned.params, tuned.group) == (before.macs, before.params, before.group)
    assert tuned.about["provenance"] == before.about["provenance"] | {"finetuned_steps": 2, "finetune_seed": 3}
    assert result.samples == 16


class Movable(nn.Module):
    """Stands in for a network; it can be moved to and from the meta device, which here is the GPU.

    Args:
        device: where it is at first.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, device=device))

    def to(self, device: Any) -> "Movable":
        return self.to_empty(device=device)

    def cpu(self) -> "Movable":
        return self.to("cpu")


def test_a_teacher_is_afterwards_where_it_was(bench, slims, digits, monkeypatch):
    teacher = Movable("cpu")

    def spy(model: nn.Module, objective: Any, *_: Any) -> TrainResult:
        assert objective.teacher.to("meta").weight.is_meta
        return TrainResult(model, [(1, 0.0)], 1, 0.0, torch.zeros(1000, dtype=torch.int64))

    monkeypatch.setattr(finetuning, "train", spy)
    base, options = replace(bench.base, model=teacher), FinetuneOptions(train=TRAIN, distillation=DistillationOptions())
    finetune_slim(slims[0], digits.train, options, teacher=base)
    assert not teacher.weight.is_meta


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_pruned_network_is_checked_where_the_full_one_is(monkeypatch, device):
    """And the inputs go there, wherever they are."""
    full, pruned, seen = Movable(device), Movable("meta"), []
    result = SimpleNamespace(plan=None)

    def measured(model: Movable, *_: Any) -> Any:
        assert model.weight.is_meta
        return result

    def verified(model: Movable, found: Movable, *others: Any) -> None:
        seen.extend([model.weight.device.type, found.weight.device.type, others[-1]["x"].device.type])

    monkeypatch.setattr(placing, "compute_device", lambda: torch.device("meta"))
    monkeypatch.setattr(searching, "restricted", lambda graph, _: graph)
    monkeypatch.setattr(searching, "search", measured)
    monkeypatch.setattr(searching, "repair", lambda model, *_: pruned)
    monkeypatch.setattr(searching, "first_not_finite", lambda _: None)
    monkeypatch.setattr(searching, "verify", verified)
    inputs = {"x": torch.zeros(1, device="cpu"), "fixed": 3}
    nothing: Any = None
    found, _ = searching.search_and_repair(
        full, inputs, nothing, nothing, no_loss, nothing, GROUPS[0], 0.5, PruneOptions()
    )
    assert seen == [device] * 3
    assert full.weight.device.type == device
    assert found.weight.device.type == "cpu"


# putting together


def test_slim_models_become_experts(slim_folder, slims, tmp_path):
    partition = assemble(slim_folder, tmp_path / "experts")
    assert [(group.start, group.stop) for group in partition] == [(0, 300), (300, 1000)]
    experts = load_experts(tmp_path / "experts")
    assert experts.macs == tuple(slim.macs for slim in slims)
    for slim in slims:
        assert same_weights(experts.expert(slim.group.index), slim.model)


def test_a_folder_without_slim_models_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(InputError, match="prunekit prune"):
            assemble(folder, tmp_path / "experts")
    assert not (tmp_path / "experts").exists()


def test_a_missing_group_is_refused_by_its_timesteps(slim_folder, tmp_path):
    shutil.rmtree(slim_folder / "group-0")
    with pytest.raises(InputError, match=r"do not cover.*1 group is missing, 0 \(timesteps 0 to 299\)"):
        assemble(slim_folder, tmp_path / "experts")
    assert not (tmp_path / "experts").exists()


def test_other_folders_and_files_beside_are_left_out(slim_folder, tmp_path):
    (slim_folder / ".group-0.checkpoints").mkdir()
    (slim_folder / ".group-1.77.part").mkdir()
    (slim_folder / "group-9").write_text("a file")
    assert len(assemble(slim_folder, tmp_path / "experts")) == 2


def test_a_count_takes_the_first_ones_only(slim_folder, tmp_path):
    with pytest.raises(InputError, match="cover"):
        assemble(slim_folder, tmp_path / "experts", 1)
    shutil.copytree(slim_folder / "group-1", slim_folder / "group-2")
    with pytest.raises(InputError, match="cover"):
        assemble(slim_folder, tmp_path / "experts")
    assert len(assemble(slim_folder, tmp_path / "experts", 2)) == 2


@pytest.mark.parametrize(
    ("key", "value"), [("prediction_type", "sample"), ("noise_schedule", {"kind": "cosine", "num_timesteps": 1000})]
)
def test_slim_models_of_different_bases_are_refused(slim_folder, tmp_path, key, value):
    other = load_slim(slim_folder / "group-1")
    save_slim(replace(other, about={**other.about, key: value}), slim_folder / "group-1")
    with pytest.raises(InputError, match="from one base"):
        assemble(slim_folder, tmp_path / "experts")
    assert not (tmp_path / "experts").exists()
