"""A run of a large network: many channel groups with long names, uneven timestep groups, colour images that are not square."""

import json
from typing import Any

import numpy as np

from prunekit.allocation import allocate
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule, sampler_timesteps

__all__ = ["enlarged", "large_importance", "large_samples"]

CUTS = [10, 35, 60, 400, 420, 700, 990]
NAMES = {
    f"down_blocks.{block}.attentions.{layer}.transformer_blocks.0.feed_forward_{part}": 1280
    for block in range(4)
    for layer in range(6)
    for part in ("inner", "outer", "gate", "to_out_projection")
}


def enlarged(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a run with other groups and networks."""
    generator, schedule = np.random.default_rng(2), NoiseSchedule.linear(1000)
    groups = TimestepGroups.from_cuts(1000, CUTS, "similarity")
    allocation = allocate(groups, schedule, 0.8, sampler_timesteps(1000, 50), rule="snr").for_model(10**12)
    targets = [target.target_macs or 0 for target in allocation.groups]
    experts = [
        {
            "group": group,
            "target_macs": macs,
            "macs": macs,
            "params": 860_000_000,
            "widths": {name: [size, int(generator.integers(64, size + 1))] for name, size in NAMES.items()},
        }
        for group, macs in enumerate(targets)
    ]
    ratio = allocation.mean_mac_ratio
    loss = {key: {"mean": 0.1234567, "se": 1e-5} for key in ("base", "pruned", "expert")}
    costs = {"seconds_alone": 0.0123, "params": 860_000_000, "params_resident": 860_000_000}
    rows = [{**row, **costs, "fid_difference": {"mean": 0.1891, "se": 0.0123}} for row in manifest["metrics"]["rows"]]
    return {
        **manifest,
        "metrics": {**manifest["metrics"], "batch_size": 256, "rows": rows},
        "recipe": "a-recipe-with-a-long-name-for-a-large-latent-network",
        "base": {**manifest["base"], "macs": 10**12, "params": 860_000_000},
        "allocation": json.loads(json.dumps(allocation.to_json())),
        "experts": experts,
        "assembled": {"mean_macs": ratio * 1e12, "mean_mac_ratio": ratio, "params": 8 * 860_000_000},
        "losses": [
            {"group": group, **loss, "difference": {"mean": 1e-6, "se": 1e-7}} for group in range(len(CUTS) + 1)
        ],
    }


def large_importance(importance: dict[str, Any]) -> dict[str, Any]:
    """The importance map of this run."""
    generator, edges = np.random.default_rng(4), [0, *CUTS, 1000]
    return {
        **importance,
        "timestep_groups": [{"index": i, "start": edges[i], "stop": edges[i + 1]} for i in range(len(CUTS) + 1)],
        "channel_groups": [{"name": name, "size": 2} for name in NAMES],
        "left_whole": {"conv_in_of_a_network_with_a_long_name": "it is tied to another"},
        "scores": [[np.exp(generator.normal(0, 3, 2)).tolist() for _ in NAMES] for _ in range(len(CUTS) + 1)],
    }


def large_samples() -> dict[str, np.ndarray]:
    """Colour images of 48 by 64 pixels."""
    generator = np.random.default_rng(3)
    return {name: generator.integers(0, 90, (20, 48, 64, 3), dtype=np.uint8) for name in ("base", "experts")}
