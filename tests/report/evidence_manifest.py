"""The content of a manifest that sets experts beside baselines: eight entries, three fine-tuning seeds."""

from typing import Any

import numpy as np

from prunekit.ledger import both_ways, forwards
from prunekit.schedule import NoiseSchedule

__all__ = ["BASE_TRAINING_MACS", "make_evidence", "make_strips"]

BASE_MACS, BASE_PARAMS, BASE_TRAINING_MACS = 20_000_000, 400_000, 4.0e13
ENTRIES = {  # name → group, fraction of the base's MACs, FID, change of the loss
    "experts 0.8": ("experts", 0.8, 2.10, -0.006),
    "experts 0.6": ("experts", 0.6, 2.35, 0.004),
    "experts 0.4": ("experts", 0.4, 3.05, 0.031),
    "base trained on": ("baseline", 1.0, 2.20, -0.004),
    "one network, uniform pruning 0.8": ("baseline", 0.8, 2.42, 0.009),
    "small from scratch 0.8": ("baseline", 0.8, 2.95, 0.027),
    "experts 0.8, magnitude": ("ablation", 0.8, 2.21, -0.001),
}


def make_evidence(seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """As the pipeline writes it."""
    generator = np.random.default_rng(5)
    rows = [_row("base", "base", None, 1.0, 2.5, 0.0, generator)]
    for name, (group, ratio, fid, change) in ENTRIES.items():
        rows += [_row(name, group, seed, ratio, fid, change, generator) for seed in seeds]
    ledger = [
        both_ways("base training", "training", 768_000, BASE_MACS),
        forwards("experts 0.8, seed 0: search, group 1", "search", 9_000, 9_000 * BASE_MACS),
        *(
            both_ways(f"{name}, seed {seed}: fine-tuning", "training", 90_000, 16_000_000)
            for name in ENTRIES
            for seed in seeds
        ),
    ]
    return {
        "format": "prunekit-manifest/1",
        "recipe": "tdc",
        "created": "2025-11-22T03:40:12+00:00",
        "commit": "5d41402abc4b2a76b9719d911017c592f00dbabe",
        "prunekit": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.8.0"},
        "device": "cpu",
        "threads": 1,
        "config": {"name": "tdc", "description": "Timestep experts, baselines and ablations."},
        "seeds": {"base": 0, "finetune": list(seeds), "sampling": [0]},
        "seconds": {"base": 1200.0, "experts 0.8, seed 0": 340.1},
        "base": {
            "macs": BASE_MACS,
            "params": BASE_PARAMS,
            "sha256": "ab" * 32,
            "data": {"source": "fashion", "resolution": 16},
            "noise_schedule": NoiseSchedule.linear(1000).to_config(),
            "training": {"macs": BASE_TRAINING_MACS, "samples": 768_000},
        },
        "reference": "base",
        "headline": "experts 0.8",
        "groups": [200, 400, 600, 800],
        "metrics": {
            "features": {"name": "fashion-cnn", "sha256": "cd" * 32, "accuracy": 0.8946, "resolution": 16},
            "count": 10_000,
            "count_real": 60_000,
            "sampler": "ddim",
            "steps": 50,
            "seed": 0,
        },
        "evidence": rows,
        "ledger": [row.to_json() for row in ledger],
    }


def _row(
    name: str, group: str, seed: int | None, ratio: float, fid: float, change: float, generator: np.random.Generator
) -> dict[str, Any]:
    noise = 0.0 if seed is None else float(generator.normal(0, 0.05))
    base = np.array([0.21, 0.07, 0.02, 0.006, 0.001])
    losses = base * (1 + change + np.linspace(-0.01, 0.02, 5) * (seed is not None) + 0.02 * noise)
    anew = "scratch" in name
    spent = {"base": 0.0 if anew else BASE_TRAINING_MACS, "search": 0.0, "fine-tuning": 0.0}
    if seed is not None:
        search = 0.0 if group == "baseline" else 4.0e11
        whole = 0.15 * BASE_TRAINING_MACS + (BASE_TRAINING_MACS if anew else 0) - search
        spent |= {"search": search, "fine-tuning": whole}
    return {
        "entry": name,
        "group": group,
        "seed": seed,
        "sampling_macs": ratio * BASE_MACS,
        "params": BASE_PARAMS * (4 if group == "experts" else 1),
        "training_macs": spent,
        "losses": [{"mean": float(loss), "se": float(0.004 * loss)} for loss in losses],
        "loss": float(losses.mean()),
        "fid": fid + noise,
        "kid": 0.02 + 0.1 * noise,
        "ssim": 1.0 if seed is None else 0.93 + 0.1 * noise,
        "seconds_per_image": 0.05 * ratio,
        "experts": [] if seed is None else _experts(ratio),
    }


def _experts(ratio: float) -> list[dict[str, Any]]:
    return [
        {
            "group": group,
            "target_macs": None,
            "macs": int(BASE_MACS * ratio),
            "params": BASE_PARAMS,
            "widths": {"conv_in": [24, 24 - 2 * group], "mid_block.resnets.0.conv1": [40, 30 - group]},
        }
        for group in range(5)
    ]


def make_strips() -> dict[str, np.ndarray]:
    """Images of shape (40, 16, 16, 1) of the base and of most entries, by the pipeline's file names."""
    generator = np.random.default_rng(3)
    y, x = np.mgrid[0:16, 0:16]
    centres = generator.uniform(5, 10, (40, 2))
    distance = np.sqrt((y - centres[:, 0, None, None]) ** 2 + (x - centres[:, 1, None, None]) ** 2)
    base = 255 * np.exp(-((distance - 4) ** 2) / 4)
    names = ["base", "experts-0-8", "experts-0-6", "base-trained-on", "one-network-uniform-pruning-0-8"]
    return {
        name: np.clip(base + generator.normal(0, 12 * place, base.shape), 0, 255).astype(np.uint8)[..., None]
        for place, name in enumerate(names)
    }
