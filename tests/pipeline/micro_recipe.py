"""One recipe that takes seconds, and an observer that remembers what a run did."""

import copy
from typing import Any

from prunekit.recipe import Recipe

MICRO: dict[str, Any] = {
    "name": "micro",
    "base": {"checkpoint": "embedded:digits"},
    "groups": {"count": 2},
    "allocation": {"budget": 0.8, "rule": "uniform", "steps": 3},
    "prune": {"samples": 16, "batch_size": 16, "search": {"rounds": 2, "shortlist": 3}},
    "finetune": {
        "train": {
            "steps": 4,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "warmup_steps": 1,
            "log_every": 1,
            "checkpoint_every": 1,
        }
    },
    "evaluation": {"samples": 16, "seeds": [0], "loss_samples": 32, "grid": 4},
}
STAGES = [
    "base",
    "groups",
    "allocate",
    "importance",
    "prune group 0",
    "prune group 1",
    "finetune group 0",
    "finetune group 1",
    "assemble",
    "evaluate",
]


class Spy:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, bool]] = []
        self.progressed: list[tuple[str, int, int]] = []

    def stage(self, name: str, kept: bool) -> None:
        self.stages.append((name, kept))

    def progress(self, label: str, done: int, total: int, note: str) -> None:
        self.progressed.append((label, done, total))

    @property
    def made(self) -> list[str]:
        """Stages that were not kept, without the report, which is made every time."""
        return [name for name, kept in self.stages if not kept and name != "report"]


def micro(**changes: Any) -> Recipe:
    """The recipe with other sections (None leaves one out), or with other keys: ``allocation__budget=0.7``."""
    data = copy.deepcopy(MICRO)
    for path, value in changes.items():
        *way, last = path.split("__")
        section = data
        for key in way:
            section = section.setdefault(key, {})
        section[last] = value
    return Recipe.model_validate({key: value for key, value in data.items() if value is not None})


class StopError(Exception):
    pass
