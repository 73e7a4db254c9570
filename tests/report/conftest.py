"""A run folder as the pipeline leaves it: five timestep groups, twenty channel groups, 8×8 images."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparison_manifest import make_curriculum, make_multistage
from evidence_manifest import make_evidence, make_strips
from large_manifest import enlarged, large_importance, large_samples
from PIL import Image

from prunekit._files import json_hash
from prunekit.allocation import allocate
from prunekit.groups import make_groups
from prunekit.report import write_all_reports, write_report
from prunekit.schedule import NoiseSchedule, sampler_timesteps

BASE_MACS = 4_718_592
BASE_PARAMS = 361_217
CHANNEL_GROUPS = {
    "conv_in": 32,
    "down_blocks.0.resnets.0.conv1": 32,
    "down_blocks.0.resnets.1.conv1": 32,
    "down_blocks.0.downsamplers.0.conv": 32,
    "down_blocks.1.resnets.0.conv1": 64,
    "down_blocks.1.attentions.0.to_v": 64,
    "down_blocks.1.resnets.1.conv1": 64,
    "down_blocks.1.attentions.1.to_v": 64,
    "mid_block.resnets.0.conv1": 64,
    "mid_block.attentions.0.to_v": 64,
    "mid_block.resnets.1.conv1": 64,
    "up_blocks.0.resnets.0.conv1": 64,
    "up_blocks.0.attentions.0.to_v": 64,
    "up_blocks.0.resnets.1.conv1": 64,
    "up_blocks.0.resnets.2.conv1": 64,
    "up_blocks.0.upsamplers.0.conv": 64,
    "up_blocks.1.resnets.0.conv1": 32,
    "up_blocks.1.resnets.1.conv1": 32,
    "up_blocks.1.resnets.2.conv1": 32,
    "conv_norm_out": 32,
}
MEASUREMENT = """# How fast it is

Fast, see [this](../other.md), [itself](speed.md) and <b>this</b>.

![A white picture of the speed](fast.png)

## In numbers
| network | seconds | seconds on another machine with a long name | a remark |
| --- | ---: | ---: | ---: |
| small | 1.0 ± 0.1 | 2.0 ± 0.1 | measured on a machine with one processor |
"""
LEFT_WHOLE = {
    "conv_in": "a skip connection ties its width to every block",
    "time_embedding.linear_2": "all timestep groups read it",
}


def make_manifest() -> dict[str, Any]:
    """The content of ``manifest.json`` with every part there."""
    generator = np.random.default_rng(7)
    schedule = NoiseSchedule.linear(1000)
    groups = make_groups(schedule, 5)
    allocation = allocate(groups, schedule, 0.8, sampler_timesteps(1000, 50)).for_model(BASE_MACS)
    experts = [_expert(target.index, target.target_macs or 0, generator) for target in allocation.groups]
    mean_macs = sum(t.share * e["macs"] for t, e in zip(allocation.groups, experts, strict=True))
    config = {"name": "digits", "seed": 0, "model": {"channels": [32, 64]}, "budget": 0.8}
    return {
        "format": "prunekit-manifest/1",
        "recipe": "digits",
        "created": "2025-11-22T03:40:12+00:00",
        "commit": "5d41402abc4b2a76b9719d911017c592f00dbabe",
        "prunekit": "0.1.0",
        "versions": {"python": "3.11.9", "torch": "2.8.0", "diffusers": "0.35.1"},
        "device": "cpu",
        "threads": 2,
        "seeds": {"base": 0, "experts": 1},
        "config_hash": json_hash(config),
        "config": config,
        "seconds": {"base": 812.4, "importance": 31.02, "prune": 12.9, "finetune": 410.77, "evaluate": 96.3},
        "base": {
            "macs": BASE_MACS,
            "params": BASE_PARAMS,
            "sha256": "ab" * 32,
            "data": {"source": "digits", "resolution": 8},
            "noise_schedule": schedule.to_config(),
        },
        "allocation": json.loads(json.dumps(allocation.to_json())),
        "experts": experts,
        "assembled": {
            "mean_macs": mean_macs,
            "mean_mac_ratio": mean_macs / BASE_MACS,
            "params": sum(expert["params"] for expert in experts),
        },
        "losses": [_loss(index, generator) for index in range(5)],
        "metrics": _metrics(mean_macs),
        "ledger": [
            {"stage": "base", "samples": 384_000, "macs": 384_000 * 3 * BASE_MACS},
            *(
                {"stage": f"finetune group {e['group']}", "samples": 64_000, "macs": 64_000 * 3 * e["macs"]}
                for e in experts
            ),
        ],
    }


def _expert(index: int, target_macs: int, generator: np.random.Generator) -> dict[str, Any]:
    ratio = target_macs / BASE_MACS
    keep = np.clip(np.sqrt(ratio) + generator.normal(0, 0.12, len(CHANNEL_GROUPS)), 0.2, 1.0)
    keep = np.ones_like(keep) if index == 0 else keep
    widths = {
        name: [size, max(4, int(size * part) // 4 * 4)]
        for (name, size), part in zip(CHANNEL_GROUPS.items(), keep, strict=True)
        if name not in LEFT_WHOLE
    }
    macs = target_macs - (int(generator.integers(100, 20_000)) if index else 0)
    return {
        "group": index,
        "target_macs": target_macs,
        "macs": macs,
        "params": int(BASE_PARAMS * ratio**0.9),
        "widths": widths,
    }


def _loss(index: int, generator: np.random.Generator) -> dict[str, Any]:
    base = 0.31 * 0.45**index + 0.004
    difference = base * float(generator.normal(0.004, 0.01))
    return {
        "group": index,
        "base": {"mean": base, "se": base * 0.012},
        "pruned": {"mean": base * (1.02 + 0.09 * index), "se": base * 0.014},
        "expert": {"mean": base + difference, "se": base * 0.012},
        "difference": {"mean": difference, "se": base * 0.003},
    }


def _metrics(mean_macs: float) -> dict[str, Any]:
    return {
        "features": {"name": "digits-cnn", "sha256": "cd" * 32, "accuracy": 0.9872, "resolution": 8},
        "count": 1024,
        "sampler": "ddim",
        "steps": 50,
        "seeds": [0, 1, 2],
        "rows": [
            {
                "model": "base",
                "fid": {"mean": 4.0213, "se": 0.0402},
                "kid": {"mean": 0.00213, "se": 0.00011},
                "seconds_per_image": 0.01312,
                "mean_macs": float(BASE_MACS),
                "mac_ratio": 1.0,
            },
            {
                "model": "experts",
                "fid": {"mean": 4.2104, "se": 0.0497},
                "kid": {"mean": 0.00232, "se": 0.00012},
                "seconds_per_image": 0.01207,
                "mean_macs": mean_macs,
                "mac_ratio": mean_macs / BASE_MACS,
            },
        ],
    }


def make_importance() -> dict[str, Any]:
    """The content of ``importance.json``: one left-whole channel group has a place in the network, one has none."""
    generator = np.random.default_rng(11)
    return {
        "format": "prunekit-importance/1",
        "criterion": "taylor",
        "timestep_groups": [{"index": i, "start": 200 * i, "stop": 200 * (i + 1)} for i in range(5)],
        "channel_groups": [{"name": name, "size": size} for name, size in CHANNEL_GROUPS.items()],
        "left_whole": dict(LEFT_WHOLE),
        "scores": [
            [
                [] if name in LEFT_WHOLE else (np.exp(generator.normal(-place / 6 - row, 0.6, size))).tolist()
                for place, (name, size) in enumerate(CHANNEL_GROUPS.items())
            ]
            for row in range(5)
        ],
    }


def make_samples() -> dict[str, np.ndarray]:
    """Soft blobs of shape (64, 8, 8, 1), nearly the same for both models."""
    generator = np.random.default_rng(3)
    y, x = np.mgrid[0:8, 0:8]
    centres = generator.uniform(2, 5, (64, 2))
    distance = (y - centres[:, 0, None, None]) ** 2 + (x - centres[:, 1, None, None]) ** 2
    base = 255 * np.exp(-((np.sqrt(distance) - 2) ** 2))
    experts = np.clip(base + generator.normal(0, 18, base.shape), 0, 255)
    return {"base": base.astype(np.uint8)[..., None], "experts": experts.astype(np.uint8)[..., None]}


def write_folder(folder: Path, manifest: Any, importance: Any = None, samples: Any = None) -> Path:
    """Write a run folder from its parts; a part that is None is absent."""
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    if importance is not None:
        (folder / "importance.json").write_text(json.dumps(importance))
    for name, images in (samples or {}).items():
        np.savez(folder / "samples" / f"{name}.npz", images=images)
    return folder


@pytest.fixture
def manifest() -> dict[str, Any]:
    return make_manifest()


@pytest.fixture
def importance() -> dict[str, Any]:
    return make_importance()


@pytest.fixture(scope="session")
def samples() -> dict[str, np.ndarray]:
    return make_samples()


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """:func:`write_folder` into a fresh place."""
    return partial(write_folder, tmp_path / "run")


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every part, its report written; tests only read it."""
    folder = write_folder(tmp_path_factory.mktemp("full") / "run", make_manifest(), make_importance(), make_samples())
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every kind and a benchmark, all reports written; tests only read it."""
    folder = tmp_path_factory.mktemp("reports")
    write_folder(folder / "experts", make_manifest(), make_importance(), make_samples())
    stages = {"unified": make_samples()["base"], "separate-networks-uniform": make_samples()["experts"]}
    write_folder(folder / "stages", make_multistage(), samples=stages)
    write_folder(folder / "curricula", make_curriculum())
    write_folder(folder / "large", enlarged(make_manifest()), large_importance(make_importance()), large_samples())
    write_folder(
        folder / "evidence", {**make_evidence(), "method": make_manifest()}, make_importance(), samples=make_strips()
    )
    (folder / "speed").mkdir()
    Image.fromarray(np.full((40, 300, 3), 255, dtype=np.uint8)).save(folder / "speed" / "fast.png")
    (folder / "speed" / "speed.md").write_text(MEASUREMENT)
    write_all_reports(folder)
    return folder
