"""Flow matching as pipelines do it: steps, time and sign of the velocity are measured, and trainings and experts use them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import NAMES
from torch import Tensor

from prunekit.checkpoint import load_base
from prunekit.checkpoint.scheduler import read_scheduler
from prunekit.data import ImageSplit, load_images
from prunekit.errors import FileFormatError
from prunekit.groups import TimestepGroups
from prunekit.nets.drop_in import Router
from prunekit.pipelines import conditioning_of, open_pipeline, record
from prunekit.sampling import real_timesteps
from prunekit.schedule import TimeUnit
from prunekit.steps.budgets import evaluations
from prunekit.steps.data_shapes import as_encoded
from prunekit.steps.encoding import EncodeOptions, encode
from prunekit.steps.objectives import objective_for

SIZE = (32, 32)


def encoded_by(pipeline: Path, pictures: Path, output: Path) -> ImageSplit:
    encode(pipeline, str(pictures), output, EncodeOptions(SIZE, batch_size=8))
    return load_images(str(output))


def subjects(name: str) -> tuple[Any, ...]:
    return (1, 3) if name == "dit" else ("cat", "a dog on a mat")


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize("name", [*NAMES, "lumina2"])
def test_budgets_are_over_the_steps_that_the_pipeline_takes(
    name: str, steps: int, pipeline_folder: Callable[[str], Path]
) -> None:
    folder = pipeline_folder(name)
    pipeline = open_pipeline(folder, stand_in=True)
    found = read_scheduler(folder / "scheduler" / "scheduler_config.json")
    known = conditioning_of(pipeline, SIZE)
    schedule = replace(found.schedule, scheduler={**found.schedule.scheduler, **known.steps})
    heard = record(pipeline, subjects(name), SIZE, steps).said
    taken = list(dict.fromkeys(said.scheduled for said in heard))
    np.testing.assert_allclose(real_timesteps("pipeline", steps, schedule), taken, rtol=1e-5)
    np.testing.assert_allclose(evaluations(schedule, "pipeline", steps), taken, rtol=1e-5)
    groups, timeline = TimestepGroups.from_cuts(1000, (300, 800)), found.parameterization.timeline
    told = torch.tensor([said.told for said in heard])
    routed = Router(groups, known.unit, timeline).index_of(told)
    np.testing.assert_array_equal(routed, groups.index_of([said.scheduled for said in heard]))


def test_a_pipeline_that_counts_toward_the_data_negates_the_velocity(pipeline_folder: Callable[[str], Path]) -> None:
    known = conditioning_of(open_pipeline(pipeline_folder("lumina2"), stand_in=True), SIZE)
    assert known.unit == TimeUnit(-0.001, 1.0, -1)
    assert TimeUnit.from_config(known.unit.to_config()) == known.unit


def test_the_right_velocity_has_no_loss_whichever_way_it_points(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    for name in ("lumina2", "sd3"):
        data = encoded_by(pipeline_folder(name), pictures, tmp_path / name)
        base = load_base(pipeline_folder(name) / "transformer")
        kind = read_scheduler(pipeline_folder(name) / "scheduler" / "scheduler_config.json").parameterization
        objective = objective_for(data.train, base.spec, kind)
        timesteps = torch.tensor([0, 500, 999])
        clean, noise, *conditions = objective.draw(timesteps, torch.Generator().manual_seed(0))
        u = (timesteps + 0.5).div(1000).reshape(-1, 1, 1, 1)

        class Ideal(torch.nn.Module):
            def forward(self, hidden_states: Tensor, timestep: Tensor, **others: Tensor) -> Tensor:
                share = timestep / 1000 if name == "sd3" else 1 - timestep  # noqa: B023 - used at once
                torch.testing.assert_close(share, u.flatten(), rtol=1e-4, atol=1e-6)  # noqa: B023
                torch.testing.assert_close(hidden_states, (1 - u) * clean + u * noise)  # noqa: B023
                return noise - clean if name == "sd3" else clean - noise  # noqa: B023

        losses = objective.per_sample(Ideal(), clean, noise, timesteps, *conditions)
        assert losses.max() < 1e-9


def test_a_base_gets_the_steps_of_the_pipeline_that_encoded_its_images(
    pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    folder = pipeline_folder("flux")
    data = encoded_by(folder, pictures, tmp_path / "data")
    assert data.train.steps == data.held_out.steps == {"_image_seq_len": 16, "_even_sigmas": True}
    base = load_base(folder)
    before = evaluations(base.schedule, "pipeline", 4)
    after = evaluations(as_encoded(base, data.train).schedule, "pipeline", 4)
    taken = [said.scheduled for said in record(open_pipeline(folder, stand_in=True), ("a",), SIZE, 4).said]
    np.testing.assert_allclose(after, taken, rtol=1e-5)
    assert not np.allclose(before, taken, rtol=1e-2)  # of 4096 tokens, if nothing is known


@pytest.mark.parametrize("steps", ['{"_image_seq_len": 0}', '{"_even_sigmas": 1}', '{"shift": 3.0}'])
def test_steps_that_are_none_are_refused(
    steps: str, pipeline_folder: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    encoded_by(pipeline_folder("flux"), pictures, tmp_path / "data")
    head = tmp_path / "data" / "encoded.json"
    head.write_text(json.dumps({**json.loads(head.read_text()), "steps": json.loads(steps)}))
    with pytest.raises(FileFormatError, match="has the steps"):
        load_images(str(tmp_path / "data"))
