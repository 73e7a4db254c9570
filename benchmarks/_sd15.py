"""The search of Stable Diffusion 1.5's U-Net: estimated, and one round of it measured with random weights."""

import resource
import time
from typing import Any

import torch
from _operations import operations
from _search_round import one_round
from torch import Generator, Tensor, nn

from prunekit.checkpoint import ModelSpec
from prunekit.cost import CostModel, gpu_hours
from prunekit.graph import trace
from prunekit.groups import TimestepGroup
from prunekit.importance import Probe
from prunekit.search import SearchOptions, search_operations

CONFIG = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
DRAWS, CANDIDATES = 2, 2


class _Latents:
    """The squared error of predicted noise on random latents and captions, with draws apart from their evaluation."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, model: nn.Module, timesteps: Tensor, generator: Generator) -> Tensor:
        return self.drawn_losses(model, self.draw(timesteps, generator), timesteps).mean()

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """Noisy latents, captions, and the noise."""
        count = len(timesteps)
        shape = (count, 4, self.size, self.size)
        return (
            torch.randn(shape, generator=generator),
            torch.randn(count, 77, 768, generator=generator),
            torch.randn(shape, generator=generator),
        )

    def drawn_losses(self, model: nn.Module, drawn: tuple[Tensor, ...], timesteps: Tensor) -> Tensor:
        """Mean squared error of each sample."""
        noisy, captions, noise = drawn
        made = model(noisy, timesteps, encoder_hidden_states=captions, return_dict=False)[0]
        return (made - noise).square().flatten(1).mean(1)


def _inputs(size: int, device: str = "cpu") -> dict[str, Tensor]:
    return {
        "sample": torch.zeros(1, 4, size, size, device=device),
        "timestep": torch.zeros(1, dtype=torch.long, device=device),
        "encoder_hidden_states": torch.zeros(1, 77, 768, device=device),
    }


def stable_diffusion(measured: bool) -> dict[str, Any]:
    """The estimate, and with ``measured`` a round at 32×32 latents."""
    spec = ModelSpec("UNet2DConditionModel", CONFIG)
    with torch.device("meta"):
        model = spec.build()
    inputs = _inputs(64, "meta")
    graph = trace(model, inputs, seconds=1200)
    cost = CostModel.of(model, graph, inputs)
    macs = int(cost.macs(graph.full_widths))
    searches = {}
    ways = {
        "all 256 draws (before)": (SearchOptions(), 256),
        "all of 64 draws (before)": (SearchOptions(), 64),
        "256 draws, screening on 16": (SearchOptions(screening=16), 256),
        "64 draws, screening on 8": (SearchOptions(screening=8), 64),
    }
    for name, (options, samples) in ways.items():
        count = search_operations(model, inputs, macs, len(graph), options, samples, 64)
        searches[name] = {"operations": count, **{gpu: gpu_hours(count, gpu, "no", 0.3) for gpu in ("A100", "H100")}}
    found: dict[str, Any] = {"channel_groups": len(graph), "macs": macs, "searches": searches}
    print(found, flush=True)
    return {**found, "round": _round()} if measured else found


def _round(size: int = 32) -> dict[str, Any]:
    """A round of greedy: the plan that it starts from, and candidates that start from its repaired network."""
    torch.manual_seed(0)
    model = ModelSpec("UNet2DConditionModel", {**CONFIG, "sample_size": size}).build().eval()
    inputs = _inputs(size)
    graph = trace(model, inputs, seconds=1200)
    cost = CostModel.of(model, graph, inputs)
    probe = Probe(_Latents(size), TimestepGroup(0, 0, 1000), 2 * DRAWS, DRAWS, 0)
    measure = one_round(model, graph, cost, probe, CANDIDATES)
    started = time.process_time()
    with operations() as counted:
        losses = measure()
    return {
        "draws": DRAWS,
        "threads": torch.get_num_threads(),
        "measured": len(losses),
        "operations": counted.macs,
        "forward": len(losses) * DRAWS * int(cost.macs(graph.full_widths)),
        "seconds": time.process_time() - started,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
    }
