"""Slim experts whose weights torchao keeps in 8 bits, alone and compiled; those that are loaded later too."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from expert_pipelines import denoiser_of, slim_experts
from tiny_pipelines import tiny_pipeline
from torch import Tensor, nn

from prunekit.checkpoint import ModelSpec
from prunekit.errors import InputError
from prunekit.nets import TimestepExperts

quantization = pytest.importorskip("torchao.quantization", reason="torchao is an extra")
WAYS = {
    "int8 weights": quantization.Int8WeightOnlyConfig,
    "int8 weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}
TIMES = (100.0, 500.0, 900.0)  # one for each expert


@pytest.fixture(scope="module", params=["sd", "sd3", "flux"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, TimestepExperts]:
    pipeline = tiny_pipeline(request.param, tmp_path_factory.mktemp("words"))
    network = denoiser_of(pipeline)
    return request.param, network, slim_experts(network, request.param)


def quantised(experts: TimestepExperts, way: str) -> TimestepExperts:
    found = copy.deepcopy(experts)
    found.change_all(lambda network: quantization.quantize_(network, WAYS[way]()))
    return found


def in_8_bits(network: nn.Module) -> int:
    return sum("torchao" in type(parameter.data).__module__ for parameter in network.parameters())


@torch.no_grad()
def predictions(model: Any, name: str, network: Any) -> list[Tensor]:
    """One for each expert, on the same noise."""
    inputs, draws = ModelSpec.of(network).example_inputs(), torch.Generator().manual_seed(0)
    noisy = {
        key: torch.randn(value.shape, generator=draws)
        for key, value in inputs.items()
        if value.is_floating_point() and key not in ("timestep", "img_ids", "txt_ids")
    }
    scale = 0.001 if name == "flux" else 1.0
    return [model(**{**inputs, **noisy, "timestep": torch.tensor([scale * time])}).sample for time in TIMES]


def check_near(found: list[Tensor], wanted: list[Tensor]) -> None:
    """Within what 8 bits of weights and of activations leave: two hundredths of the largest number."""
    for one, other in zip(found, wanted, strict=True):
        assert not torch.equal(one, other)
        assert float((one - other).abs().max()) < 0.02 * float(other.abs().max())


@pytest.mark.parametrize("way", WAYS)
def test_experts_in_8_bits_predict_nearly_the_same(way: str, made: tuple[str, Any, TimestepExperts]) -> None:
    name, network, experts = made
    found = quantised(experts, way)
    layers = [sum(isinstance(module, nn.Linear) for module in each.modules()) for each in experts.experts]
    assert [in_8_bits(each) for each in found.experts] == layers
    check_near(predictions(found, name, network), predictions(experts, name, network))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_they_compile(way: str, made: tuple[str, Any, TimestepExperts]) -> None:
    """A compiled expert rounds its activations elsewhere, so it is held against the expert that was not quantised."""
    name, network, experts = made
    if name != "sd3":
        pytest.skip("one network shows it")
    torch._dynamo.reset()
    found = quantised(experts, way)
    found.compile()
    check_near(predictions(found, name, network), predictions(experts, name, network))


@pytest.mark.parametrize("from_disk", [True, False])
def test_experts_that_are_loaded_later_are_quantised_once(
    from_disk: bool, made: tuple[str, Any, TimestepExperts], tmp_path: Path
) -> None:
    name, network, experts = made
    if from_disk:
        experts.save(tmp_path / "experts")
        found = TimestepExperts.from_pretrained(tmp_path / "experts", resident="one")
    else:
        found = TimestepExperts(experts.groups, copy.deepcopy(experts).slims, resident="one")
    changed: list[int] = []

    def change(each: nn.Module) -> None:
        changed.append(in_8_bits(each))
        quantization.quantize_(each, quantization.Int8WeightOnlyConfig())

    found.change_all(change)
    wanted = predictions(quantised(experts, "int8 weights"), name, network)
    for _ in range(2):
        for one, other in zip(predictions(found, name, network), wanted, strict=True):
            torch.testing.assert_close(one, other)
    assert set(changed) == {0}  # never one that is in 8 bits already
    assert from_disk or len(changed) == 3


def test_quantised_experts_say_that_they_are_not_stored(made: tuple[str, Any, TimestepExperts], tmp_path: Path) -> None:
    found = quantised(made[2], "int8 weights")
    for save in (found.save, found.save_pretrained):
        with pytest.raises(InputError, match="is of type Int8Tensor, which is not stored; save the networks before"):
            save(tmp_path / "experts")
    with pytest.raises(InputError, match="which is not stored"):
        found.save(tmp_path / "experts", share=0.0)
    assert not (tmp_path / "experts").exists()
