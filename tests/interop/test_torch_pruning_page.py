"""The page about Torch-Pruning runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import unet, unet_inputs
from torch import Generator, Tensor, nn

from prunekit.cost import count_macs
from prunekit.groups import TimestepGroups

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "torch-pruning.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_prunes_by_their_pruner_and_by_our_plan() -> None:
    def loss(model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(len(timesteps), 1, 8, 8, generator=generator)
        prediction: Tensor = model(noise, timesteps).sample
        return (prediction - noise).square().mean()

    scoring, applying = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, Any] = {
        "unet": unet(),
        "other": unet(),
        "example_inputs": unet_inputs(),
        "loss": loss,
        "timestep_groups": TimestepGroups.from_cuts(1000, [500]),
    }
    whole = count_macs(names["unet"], unet_inputs()).macs
    source = scoring.replace('by="taylor"', 'by="taylor", samples=8') + applying
    exec(compile(source, "torch-pruning.md", "exec"), names)  # noqa: S102 - the example is the test
    assert count_macs(names["unet"], unet_inputs()).macs < 0.9 * whole
    assert names["pruned"] is names["other"]
    assert count_macs(names["pruned"], unet_inputs()).macs == names["found"].macs <= 0.7 * whole
