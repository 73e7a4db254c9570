"""Experts on a batch whose samples have timesteps of all groups, beside the base and beside the passes that any router needs.

Five unpruned experts stand for a base, so that all differences are the routing's. `passes` runs the base on each group's samples
without a router; no router that runs the experts one after the other is faster. Samplers give all samples one timestep.
Processor time of one thread, medians of rounds in which all ways run in turn.
Writes reports/engine/mixed_timesteps.json and .md: python benchmarks/mixed_timesteps.py
"""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _manifest import REPORTS, markdown_table, publish
from cifar_unet import CIFAR_UNET, cifar_unet

from prunekit._files import atomic_path
from prunekit.checkpoint import Base, ModelSpec
from prunekit.cost.clocks import seconds_of
from prunekit.graph import PruningPlan, trace
from prunekit.groups import TimestepGroups, make_groups
from prunekit.nets import TimestepExperts
from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.slim import SlimModel
from prunekit.steps.bases import open_base

GROUPS = 5
BATCHES = {"digits": (16, 64), "fashion": (16, 64), "cifar": (16,)}
ROUNDS = {"digits": 41, "fashion": 41, "cifar": 7}
WAYS = ("base", "one timestep", "passes", "mixed")


def base_of(network: str) -> Base:
    """An embedded base, or CIFAR-10's U-Net with random weights."""
    if network != "cifar":
        return open_base(f"embedded:{network}")
    return Base(cifar_unet()[0], ModelSpec("UNet2DModel", CIFAR_UNET), Parameterization(NoiseSchedule.linear()))


def experts_of(base: Base, groups: TimestepGroups) -> TimestepExperts:
    """The base's network once for each group, unpruned."""
    plan = PruningPlan({}, trace(base.model, base.spec.example_inputs()).fingerprint)
    slims = [
        SlimModel(
            copy.deepcopy(base.model), base.spec, plan, {}, group, base.schedule.num_timesteps, 1, 1, base.about()
        )
        for group in groups
    ]
    return TimestepExperts(groups, slims).eval()


def ways(base: Base, batch: int) -> dict[str, Callable[[], object]]:
    """What is timed."""
    groups = make_groups(base.schedule, count=GROUPS)
    experts, model, shape = experts_of(base, groups), base.model.eval(), base.spec.example_inputs()["sample"].shape[1:]
    x, mixed = torch.randn(batch, *shape), torch.arange(batch) * base.schedule.num_timesteps // batch
    rows = [((mixed >= group.start) & (mixed < group.stop)).nonzero().squeeze(1) for group in groups]
    parts = [(x[own], mixed[own]) for own in rows]
    one = torch.full((batch,), 500)
    found = (lambda: model(x, mixed), lambda: experts(x, one), lambda: [model(*part) for part in parts])
    return dict(zip(WAYS, (*found, lambda: experts(x, mixed)), strict=True))


@torch.inference_mode()
def in_turns(found: dict[str, Callable[[], object]], rounds: int) -> np.ndarray:
    """Processor seconds, shape (rounds, ways); every other round runs in the opposite order."""
    measured = np.zeros((rounds + 1, len(found)))
    for turn in range(rounds + 1):
        for place in range(len(WAYS)) if turn % 2 else reversed(range(len(WAYS))):
            measured[turn, place] = seconds_of(found[WAYS[place]], torch.device("cpu"))
    return measured[1:]


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for network, batches in BATCHES.items():
        base = base_of(network)
        for batch in batches:
            seconds = in_turns(ways(base, batch), ROUNDS[network])
            ratios, middle = np.median(seconds / seconds[:, :1], axis=0), np.median(seconds, axis=0)
            about = {"network": network, "batch": batch, "rounds": ROUNDS[network]}
            rows.append({**about, "seconds": middle.tolist(), "ratios": ratios.tolist()})
    publish("mixed_timesteps", {"groups": GROUPS, "ways": list(WAYS), "rows": rows})
    lines = [
        [
            row["network"],
            f"{row['batch']}",
            f"{1e3 * row['seconds'][0]:.1f}",
            *(f"{ratio:.2f}" for ratio in row["ratios"][1:]),
        ]
        for row in rows
    ]
    said = (
        "# Experts on a batch of mixed timesteps\n\n"
        f"{GROUPS} unpruned experts, so that only the routing differs. Times are shares of the base's on the same batch. `passes` "
        "is the base on each group's samples without a router: what running the experts one after the other takes at least, since "
        "a network takes more time for each sample in a smaller batch. Samplers give all samples one timestep. Processor time of "
        "one thread, medians of rounds in which all ways run in turn. Made by `python benchmarks/mixed_timesteps.py`.\n\n"
    )
    table = markdown_table(["network", "batch", "base, ms", *WAYS[1:]], lines)
    with atomic_path(REPORTS / "mixed_timesteps.md") as part:
        part.write_text(said + table, encoding="utf-8")


if __name__ == "__main__":
    main()
