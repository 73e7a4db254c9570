"""Processor seconds and memory of ``trace``, compared with Torch-Pruning's graph and groups; networks from public configurations.

``python benchmarks/trace.py`` measures all of them, each in a process of its own, and writes ``reports/engine/trace.json`` and
``trace.md``. Weights are random. The last three have no weights at all: they are on the meta device.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import diffusers
import torch
from _manifest import REPORTS, markdown_table, publish
from torch import Tensor, nn

from prunekit.cost import CostModel
from prunekit.graph import trace

_SD = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
_XL = {
    "sample_size": 128,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}
_CIFAR = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
}
_WIDE = {
    "sample_size": 32,
    "block_out_channels": [224, 448, 672, 896],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
}
_DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 28,
    "sample_size": 32,
}
_SD35 = {
    "sample_size": 128,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 38,
    "attention_head_dim": 64,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
_LATENT = 16  # pixels of the latents that the large networks are traced with; the channel groups do not depend on it
_TEXT = torch.Size((1, 77))

NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {  # class, configuration, device
    "U-Net of google/ddpm-cifar10-32": ("UNet2DModel", _CIFAR, "cpu"),
    "U-Net with attention": ("UNet2DModel", _WIDE, "cpu"),
    "DiT-XL/2": ("DiTTransformer2DModel", _DIT, "cpu"),
    "Stable Diffusion 1.5": ("UNet2DConditionModel", _SD, "cpu"),
    "Stable Diffusion XL": ("UNet2DConditionModel", _XL, "meta"),
    "Stable Diffusion 3.5 large": ("SD3Transformer2DModel", _SD35, "meta"),
    "Flux.1-dev": ("FluxTransformer2DModel", {"guidance_embeds": True}, "meta"),
}


def network(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """The network in eval mode, and the arguments of one forward pass."""
    kind, config, device = NETWORKS[name]
    with torch.device(device):
        torch.manual_seed(0)
        model = getattr(diffusers, kind)(**config).eval()
        return model, _inputs(kind, model.config)


def _inputs(kind: str, config: Any) -> dict[str, Any]:
    time_step = torch.tensor([3], device="cpu")
    match kind:
        case "UNet2DModel":
            return {"sample": torch.randn(1, 3, config.sample_size, config.sample_size), "timestep": time_step}
        case "DiTTransformer2DModel":
            labels = torch.tensor([1], device="cpu")
            return {"hidden_states": torch.randn(1, 4, 32, 32), "timestep": time_step, "class_labels": labels}
        case "UNet2DConditionModel":
            inputs = {"sample": torch.randn(1, 4, _LATENT, _LATENT), "timestep": time_step}
            inputs["encoder_hidden_states"] = torch.randn(*_TEXT, config.cross_attention_dim)
            added = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.randn(1, 6)}
            return {**inputs, "added_cond_kwargs": added} if config.addition_embed_type else inputs
        case "SD3Transformer2DModel":
            text = {"encoder_hidden_states": torch.randn(*_TEXT, 4096), "pooled_projections": torch.randn(1, 2048)}
            return {"hidden_states": torch.randn(1, 16, _LATENT, _LATENT), "timestep": time_step, **text}
    tokens = (_LATENT // 2) ** 2
    return {
        "hidden_states": torch.randn(1, tokens, 64),
        "encoder_hidden_states": torch.randn(*_TEXT, 4096),
        "pooled_projections": torch.randn(1, 768),
        "timestep": torch.tensor([0.5], device="cpu"),
        "guidance": torch.tensor([3.5], device="cpu"),
        "img_ids": torch.zeros(tokens, 3, device="cpu"),
        "txt_ids": torch.zeros(_TEXT[1], 3, device="cpu"),
    }


def measure(name: str, by: str) -> dict[str, Any]:
    """Processor seconds, peak memory beyond the network in MB, and number of groups."""
    torch.set_num_threads(1)
    model, inputs = network(name)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    figures = (_prunekit if by == "prunekit" else _torch_pruning)(model, inputs)
    return {
        "seconds": round(time.process_time() - start, 2),
        "extra_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "weights_mb": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20),
        **figures,
    }


def _prunekit(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    graph = trace(model, inputs, seconds=1800)
    cost = CostModel.of(model, graph, inputs)
    least = [int(group.widths[-1]) for group in graph]
    return {"groups": len(graph), "least": round(float(cost.macs(least)) / float(cost.macs(graph.full_widths)), 4)}


def _torch_pruning(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Any]:
    import torch_pruning as tp  # noqa: PLC0415 - the other process does not need it

    graph = tp.DependencyGraph().build_dependency(model, example_inputs=inputs)
    return {"groups": sum(1 for _ in graph.get_all_groups())}


def _apart(name: str, by: str) -> dict[str, Any]:
    """:func:`measure` in a process of its own; what it says where it fails."""
    command = [sys.executable, __file__, name, by]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it was ended"])[-1][:200]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure all networks, or the one that is named."""
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    rows = {}
    for name, (_, _, device) in NETWORKS.items():
        rows[name] = {"prunekit": _apart(name, "prunekit")}
        if device == "cpu":
            rows[name]["torch-pruning"] = _apart(name, "torch-pruning")
    publish("trace", {"networks": rows})
    header = [
        "network",
        "weights, MB",
        "groups",
        "least MACs",
        "seconds",
        "extra MB",
        "Torch-Pruning: seconds",
        "extra MB",
    ]
    lines = []
    for name, row in rows.items():
        own, other = row["prunekit"], row.get("torch-pruning", {})
        keys = ("weights_mb", "groups", "least", "seconds", "extra_mb")
        figures = [str(own.get(key, own.get("error", "–"))) for key in keys]
        lines.append([name, *figures, *(str(other.get(key, "–")) for key in ("seconds", "extra_mb"))])
    (REPORTS / "trace.md").write_text(markdown_table(header, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
