"""A function that changes every expert: also those that are loaded later, and each only once. Special tensors are not stored."""

from pathlib import Path

import pytest
import torch
from expert_pipelines import denoiser_of, slim_experts
from tiny_pipelines import tiny_pipeline
from torch import Tensor, nn

from prunekit.checkpoint import ModelSpec
from prunekit.errors import InputError
from prunekit.nets import TimestepExperts


class Quantised(Tensor):
    """Stands for the tensors of other libraries."""


@pytest.fixture
def experts(tmp_path: Path) -> TimestepExperts:
    (tmp_path / "words").mkdir()
    return slim_experts(denoiser_of(tiny_pipeline("sd", tmp_path / "words")), "sd")


def shifted(network: nn.Module) -> None:
    with torch.no_grad():
        network.conv_out.bias.add_(1.0)


@pytest.mark.parametrize("resident", ["all", "one", "one from disk"])
def test_every_expert_is_changed_once(resident: str, experts: TimestepExperts, tmp_path: Path) -> None:
    inputs = ModelSpec.of(experts.experts[0]).example_inputs()
    inputs = {name: value for name, value in inputs.items() if name != "timestep"}
    times = [torch.tensor([time]) for time in (100, 500, 900, 100)]
    with torch.no_grad():
        wanted = [experts(**inputs, timestep=time).sample + 1 for time in times]
        if resident == "one from disk":
            experts.save(tmp_path / "experts")
            experts = TimestepExperts.from_pretrained(tmp_path / "experts", resident="one")
        elif resident == "one":
            experts = TimestepExperts(experts.groups, experts.slims, resident="one")
        experts.change_all(shifted)
        for time, prediction in zip(times, wanted, strict=True):
            torch.testing.assert_close(experts(**inputs, timestep=time).sample, prediction)


@pytest.mark.parametrize("share", [None, 0.0])
def test_tensors_of_other_libraries_are_refused_before_anything_is_written(
    share: float | None, experts: TimestepExperts, tmp_path: Path
) -> None:
    layer = experts.experts[1].conv_out
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Quantised))
    with pytest.raises(
        InputError, match=r"conv_out.weight is of type Quantised, which is not stored; save the networks"
    ):
        experts.save(tmp_path / "experts", share=share)
    assert not (tmp_path / "experts").exists()
