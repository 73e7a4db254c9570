"""The content of manifests that compare trainings: networks for stages, and ways to train; two seeds each."""

from typing import Any

import numpy as np

from prunekit.groups import Evidence, Grouping, TimestepGroups
from prunekit.ledger import both_ways

__all__ = ["make_curriculum", "make_multistage"]

MACS, SEEDS = 11_491_328, (0, 1)
TRAIN = {"steps": 800, "batch_size": 64, "lr_scheduler": "constant"}
DATA = {"source": "digits", "resolution": None}
SECTION = {"seeds": list(SEEDS), "sampler": "ddim", "sampling_steps": 20}


def make_multistage() -> dict[str, Any]:
    """As the pipeline writes it: one network for all timesteps, three for stages, of which one costs less."""
    networks = {
        "unified": ([], [MACS], 0.49),
        "separate": ([500], [MACS, MACS], 0.43),
        "equal": ([500], [MACS] * 2, 0.55),
        "tailored": ([500], [MACS, MACS // 2], 0.61),
    }
    rows = [
        {
            "network": network,
            "grouping": "uniform",
            "cuts": cuts,
            "stage_macs": macs,
            "sampling_macs": sum(macs) / len(macs),
            "params": 463_249 * len(macs),
            "curve": _curve(fid + 0.02 * seed),
        }
        for network, (cuts, macs, fid) in networks.items()
        for seed in SEEDS
    ]
    at, matrix = np.array([0, 500, 999]), np.array([[1.0, 0.8, 0.2], [0.8, 1.0, 0.4], [0.2, 0.4, 1.0]])
    curves = {"to_clean": matrix[0], "to_noise": matrix[2]}
    grouping = Grouping(TimestepGroups.from_cuts(1000, [500], "similarity"), Evidence(at, curves, matrix, {}))
    return {
        **_common("digits-stages", {"multistage": SECTION}),
        "unified": {"macs": MACS, "training_macs": 1_765_067_980_800},
        "groupings": [grouping.to_json()],
        "multistage": rows,
    }


def make_curriculum() -> dict[str, Any]:
    """As the pipeline writes it: a plain training and one with a curriculum."""
    entries = {"uniform": {}, "speed, min-snr": {"timestep_sampler": "speed", "loss_weight": "min-snr"}}
    rows = [
        {"entry": name, "seed": seed, "curve": _curve(0.5 - 0.1 * place + 0.02 * seed)}
        for place, name in enumerate(entries)
        for seed in SEEDS
    ]
    common = _common("digits-curricula", {"curriculum": {**SECTION, "entries": entries}})
    return {**common, "base": {"macs": MACS, "params": 463_249}, "curriculum": rows}


def _common(name: str, sections: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "prunekit-manifest/1",
        "recipe": name,
        "created": "2025-11-21T03:40:12+00:00",
        "commit": "5d41402abc4b2a76b9719d911017c592f00dbabe",
        "prunekit": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.8.0"},
        "device": "cpu",
        "threads": 1,
        "config": {
            "name": name,
            "description": "Trainings beside each other.",
            "base": {"train": TRAIN},
            "data": DATA,
            **sections,
        },
        "seeds": {"training": list(SEEDS), "sampling": [0]},
        "seconds": {"first, seed 0": 129.5},
        "ledger": [both_ways("first, seed 0", "training", 51_200, MACS).to_json()],
    }


def _curve(end: float) -> list[dict[str, Any]]:
    return [
        {
            "training_macs": look * 441_266_995_200,
            "loss": 0.08 + 0.02 / look,
            "fid": float(end * (1 + np.log(4 / look))),
            "features": {"name": "digits-cnn", "sha256": "cd" * 32},
            "count": 512,
        }
        for look in (1, 2, 4)
    ]
