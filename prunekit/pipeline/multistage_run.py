"""A recipe's comparison of one network, networks for stages and multi-decoder networks, as a resumable run."""

import dataclasses
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from prunekit._files import read_json, write_json
from prunekit.checkpoint import Base, ModelSpec, save_base
from prunekit.groups import TimestepGroups
from prunekit.pipeline.manifest import environment
from prunekit.pipeline.multistage import Contest
from prunekit.pipeline.observing import training_reporter
from prunekit.pipeline.planning import cut_groups
from prunekit.pipeline.resumable import ResumableRun
from prunekit.pipeline.stages import check_images, open_base
from prunekit.recipe import GroupOptions, MultistageOptions
from prunekit.report import write_multistage_report
from prunekit.schedule import NoiseSchedule

__all__ = ["MultistageRun"]

_UNIFIED = "unified-0.pt"


class MultistageRun(ResumableRun):
    """One recipe with a ``multistage`` section in one folder."""

    def execute(self) -> Path:
        """Train and measure every network; returns the manifest's path."""
        base, names = self.recipe.base, []
        options = dataclasses.asdict(self._options)
        shared = {"base": base, "data": self.recipe.data, "evaluation": self.recipe.evaluation}
        shared |= {"images": self._data_hash(), "contest": {k: options[k] for k in ("draw", "looks", "sampler", "sampling_steps")}}
        for grouping in range(len(self._options.groupings)):
            needs = "unified" if self._options.groupings[grouping].method == "gradient" else ""
            for network, seed in self._entries(grouping):
                if network == "unified":
                    names.append(self._compete(shared, network, grouping, seed, ""))
            cut = {"grouping": dataclasses.asdict(self._options.groupings[grouping]), **shared}
            after = "unified, seed 0" if needs else ""
            self._stage(f"grouping {grouping}", cut, [_groups_file(grouping)], partial(self._cut, grouping), after)
            for network, seed in self._entries(grouping):
                if network != "unified":
                    names.append(self._compete(shared, network, grouping, seed, f"grouping {grouping}"))
        return self._manifest(names)

    @property
    def _options(self) -> MultistageOptions:
        assert self.recipe.multistage is not None  # noqa: S101 - this class is for recipes with the section
        return self.recipe.multistage
