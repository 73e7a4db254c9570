"""What an allocation is planned for and from: the network, and the losses, recoveries and sensitivity that were recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit._json import read_json
from prunekit.allocation import Frontier, Recoveries, Sensitivity, read_frontiers
from prunekit.allocation.frontier import RECORD
from prunekit.cli.pruning_choices import check_timesteps
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.results.formats import RECOVERIES, SENSITIVITY
from prunekit.schedule import NoiseSchedule
from prunekit.steps.standing import slims_in

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PlannedNetwork", "Recorded"]


@dataclass(frozen=True)
class PlannedNetwork:
    """What an allocation needs to know of the network that will be pruned."""

    schedule: NoiseSchedule
    macs: int
    floor: float
    model: "nn.Module"
    sha256: str

    @classmethod
    def of(
        cls,
        base: str,
        config: Path | None,
        inputs: Path | None,
        data: str | None,
        asked: Mapping[str, str | int | None],
    ) -> "PlannedNetwork":
        """Follow the base; a noise schedule from the options replaces its own."""
        from prunekit.checkpoint import Asked
        from prunekit.recipe import PruneOptions
        from prunekit.steps.bases import open_base
        from prunekit.steps.bench import Bench
        from prunekit.steps.data_shapes import as_encoded, encoded_images
        from prunekit.steps.reach import Reach

        kind, count = asked["kind"], asked["num_timesteps"]
        if count is not None and kind is None:
            raise InputError("Got --num-timesteps with --base, without --noise-schedule; expected both, or neither.")
        text = str(kind) if count is None else f"{kind}:{count}"
        loaded = open_base(base, config, inputs, None if kind is None else Asked(noise_schedule=text))
        loaded = loaded if data is None else as_encoded(loaded, encoded_images(data).train)
        bench = Bench.of(loaded)
        return cls(loaded.schedule, bench.macs, Reach.of(bench, PruneOptions()).floor, loaded.model, loaded.sha256)

    def check(self, groups: TimestepGroups, base: str) -> None:
        """Refuse groups that were cut for another number of timesteps."""
        check_timesteps(groups, self.schedule, base)

    def check_recoveries(self, recoveries: Recoveries, path: Path) -> None:
        """Refuse recoveries of another network."""
        if self.sha256 and recoveries.base_sha256 and self.sha256 != recoveries.base_sha256:
            raise InputError(f"{path} is of another base than --base; make it again with `prunekit recover`.")


@dataclass(frozen=True)
class Recorded:
    """The files with which rule ``measured`` decides.

    Args:
        journals: folder with the journals of searches.
        recoveries: what short fine-tunings recover.
        sensitivity: how the sampler carries errors.

    Raises:
        InputError: there are no journals, and one of the others.
    """

    journals: Path | None
    recoveries: Path | None
    sensitivity: Path | None

    def __post_init__(self) -> None:
        if self.recoveries is not None and self.journals is None:
            raise InputError(
                "Got --recoveries without --journals; expected both, since they correct the losses that journals record."
            )
        if self.sensitivity is not None and self.journals is None:
            raise InputError(
                "Got --sensitivity without --journals; expected both, since it weighs the losses that journals record."
            )

    def frontiers(self, groups: TimestepGroups, network: PlannedNetwork | None) -> tuple[Frontier, ...]:
        """The frontiers, corrected for what a short fine-tuning recovers if that is known; none without journals.

        Raises:
            InputError: the files are of other groups or of another base.
        """
        if self.journals is None:
            return ()
        frontiers, path = read_frontiers(self.journals, len(groups)), self.recoveries
        if network is not None and frontiers[0].base_macs != network.macs:
            raise InputError(
                f"{self.journals} was searched in a base of {frontiers[0].base_macs:,} MACs and --base has {network.macs:,}; "
                f"{RECORD}."
            )
        self._check_searched(self.journals, groups, network)
        if path is None:
            return frontiers
        found = Recoveries.from_json(read_json(path, RECOVERIES), path)
        if found.base_macs != frontiers[0].base_macs:
            raise InputError(
                f"{path} is of a base of {found.base_macs:,} MACs and {self.journals} of one of {frontiers[0].base_macs:,}; "
                "expected one base."
            )
        if network is not None:
            network.check_recoveries(found, path)
        points = found.of_each(groups)
        return tuple(one.corrected(known) for one, known in zip(frontiers, points, strict=True))

    def _check_searched(self, journals: Path, groups: TimestepGroups, network: PlannedNetwork | None) -> None:
        """Refuse searches for other timestep groups or of another base, if slim models lie beside their journals."""
        for slim in slims_in(journals, all_readable=True):
            if slim.group.index >= len(groups):
                continue  # read_frontiers refuses its journal
            found, group = slim.group, groups[slim.group.index]
            if found != group or slim.num_timesteps != groups.num_timesteps:
                raise InputError(
                    f"{journals} was searched for timesteps {found.start}–{found.stop - 1} of {slim.num_timesteps} as group "
                    f"{group.index} and the allocation is for {group.start}–{group.stop - 1} of {groups.num_timesteps}; {RECORD}."
                )
            of = slim.provenance.get("base_sha256")
            if network is not None and network.sha256 and of and of != network.sha256:
                raise InputError(f"{journals} was searched in another base than --base; {RECORD}.")

    def weights(self, network: PlannedNetwork | None, schedule: NoiseSchedule) -> Sensitivity | None:
        """The sensitivity by which losses are weighed; None without its file.

        Raises:
            InputError: it is of another network.
        """
        if self.sensitivity is None:
            return None
        found = Sensitivity.from_json(read_json(self.sensitivity, SENSITIVITY), self.sensitivity)
        if network is not None:
            from prunekit.training import weights_hash

            found.check_weights(weights_hash(network.model))
            found.check_schedule(network.schedule)
        elif not found.is_of(schedule):
            raise InputError(
                f"{self.sensitivity} was measured with another noise schedule than the timestep groups or the options; name the "
                "model by --base, or measure it again with `prunekit sensitivity`."
            )
        return found
