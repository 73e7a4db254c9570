"""Processor seconds and memory of ``trace``, compared with Torch-Pruning's graph and groups; networks from public configurations.

``python benchmarks/trace.py [NAME …]`` measures all networks, or the named ones, each in its own process, and writes
``reports/engine/trace.json`` and ``trace.md`` after each. Weights are random. Large networks have no weights at all: they are on
the meta device.
"""

import json
import resource
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

import diffusers
import torch
from _manifest import REPORTS, markdown_table, publish
from torch import Tensor, nn

from prunekit.cost import CostModel
from prunekit.cost.counter import count_by_shapes
from prunekit.graph import ChannelGraph, trace

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
_WAN = {"text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16, "qk_norm": "rms_norm_across_heads"}
_WAN_SMALL = {**_WAN, "num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
_WAN_LARGE = {**_WAN, "num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
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
    "Wan 2.1 T2V 1.3B": ("WanTransformer3DModel", _WAN_SMALL, "meta"),
    "Wan 2.1 T2V 14B": ("WanTransformer3DModel", _WAN_LARGE, "meta"),
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
        case "WanTransformer3DModel":
            text = {"encoder_hidden_states": torch.randn(*_TEXT, 4096)}
            return {"hidden_states": torch.randn(1, 16, 1, _LATENT, _LATENT), "timestep": time_step, **text}
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
    if by != "prunekit":
        import_module("torch_pruning")  # its import is not what is measured
    model, inputs = network(name)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    graph = trace(model, inputs, seconds=1800) if by == "prunekit" else _torch_pruning(model, inputs)
    figures: dict[str, Any] = {
        "seconds": round(time.process_time() - start, 2),
        "extra_mb": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_mb": round(sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20),
        "groups": len(graph),
    }
    return figures | (_costs(model, graph, inputs) if isinstance(graph, ChannelGraph) else {})


def _costs(model: nn.Module, graph: ChannelGraph, inputs: dict[str, Any]) -> dict[str, Any]:
    """GMACs at the traced resolution, the smallest share that can remain, and whether the counter agrees."""
    cost = CostModel.of(model, graph, inputs)
    least = [int(group.widths[-1]) for group in graph]
    full = int(cost.macs(graph.full_widths))
    counted = count_by_shapes(model, inputs).macs
    return {
        "gmacs": round(full / 1e9, 1),
        "counted": counted == full,
        "least": round(float(cost.macs(least)) / full, 4),
    }


def _torch_pruning(model: nn.Module, inputs: dict[str, Tensor]) -> list[Any]:
    import torch_pruning as tp  # noqa: PLC0415 - the other process does not need it

    return list(tp.DependencyGraph().build_dependency(model, example_inputs=inputs).get_all_groups())


def _apart(name: str, by: str) -> dict[str, Any]:
    """:func:`measure` in its own process; its error message if it fails."""
    command = [sys.executable, __file__, name, by]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["it was ended"])[-1][:200]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measure all networks, or the named ones; earlier measurements of other networks are kept."""
    if sys.argv[2:3] in (["prunekit"], ["torch-pruning"]):
        print(json.dumps(measure(sys.argv[1], sys.argv[2])))
        return
    path = REPORTS / "trace.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.is_file() else {}
    for name in sys.argv[1:] or NETWORKS:
        rows[name] = {"prunekit": _apart(name, "prunekit")}
        if NETWORKS[name][2] == "cpu":
            rows[name]["torch-pruning"] = _apart(name, "torch-pruning")
        _publish({known: rows[known] for known in NETWORKS if known in rows})


def _publish(rows: dict[str, dict[str, dict[str, Any]]]) -> None:
    publish("trace", {"networks": rows})
    own = {
        "weights, MB": "weights_mb",
        "GMACs": "gmacs",
        "as counted": "counted",
        "groups": "groups",
        "least MACs": "least",
        "seconds": "seconds",
        "extra MB": "extra_mb",
    }
    theirs = {"Torch-Pruning: seconds": "seconds", "extra MB": "extra_mb"}
    lines = []
    for name, row in rows.items():
        figures = [row["prunekit"].get(key, row["prunekit"].get("error", "–")) for key in own.values()]
        figures += [row.get("torch-pruning", {}).get(key, "–") for key in theirs.values()]
        lines.append([name, *map(str, figures)])
    made = json.loads((REPORTS / "trace.json").read_text(encoding="utf-8"))["manifest"]
    said = (
        "# Time and memory of tracing\n\n"
        "`trace` finds the channel groups of a network. Seconds are processor seconds, extra MB the memory that it takes at most "
        "beside the network. *As counted* says whether the cost model's MACs equal the counter's; *least MACs* is the share of the "
        "MACs that is left if every group has its smallest width. Weights are random; networks without a comparison are on the "
        f"meta device and have none. Measured on {made['device']} with {made['cores']} cores and torch "
        f"{made['versions']['torch']} by `python benchmarks/trace.py`.\n\n"
    )
    (REPORTS / "trace.md").write_text(said + markdown_table(["network", *own, *theirs], lines), encoding="utf-8")


if __name__ == "__main__":
    main()
