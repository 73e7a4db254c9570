"""A finished run, read once and checked. Tables, pictures and the page are made from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit._containers import read_npz
from prunekit._json import JsonDict, read_json
from prunekit.allocation import Allocation
from prunekit.errors import FileFormatError, LimitError
from prunekit.ledger import LedgerRow
from prunekit.results.expert_results import Assembled, BaseResult, Expert, ExpertsManifest, GroupLoss, Metrics
from prunekit.results.formats import IMPORTANCE, MANIFEST
from prunekit.results.planning_files import ImportanceFile
from prunekit.results.reading_manifests import AGAIN, Manifest, of_kind
from prunekit.schedule import NoiseSchedule

__all__ = ["RunResults", "read_importance", "read_run", "read_samples"]

_SAMPLES_FIRST = ("base", "experts")


@dataclass(frozen=True)
class RunResults:
    """Everything a report shows.

    Args:
        manifest: the content of ``manifest.json``.
        schedule: the base's noise schedule.
        allocation: the targets per timestep group.
        ledger: empty if not kept.
        importance: the content of ``importance.json``, or None.
        samples: model name → images, uint8, shape (count, height, width, channels); the base first.
    """

    manifest: ExpertsManifest
    schedule: NoiseSchedule
    allocation: Allocation
    ledger: tuple[LedgerRow, ...] = ()
    importance: ImportanceFile | None = None
    samples: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return self.manifest.recipe

    @property
    def base(self) -> BaseResult:
        """The base model."""
        return self.manifest.base

    @cached_property
    def experts(self) -> Mapping[int, Expert]:
        """The experts by timestep group; empty if none were made."""
        return {expert.group: expert for expert in self.manifest.experts or ()}

    @property
    def assembled(self) -> Assembled | None:
        """The experts as one denoiser; None if they were not assembled."""
        return self.manifest.assembled

    @property
    def losses(self) -> Sequence[GroupLoss]:
        """Held-out losses of the timestep groups; empty if not measured."""
        return self.manifest.losses or ()

    @property
    def metrics(self) -> Metrics | None:
        """Sample quality; None if not measured."""
        metrics = self.manifest.metrics
        return metrics if metrics is not None and metrics.rows else None

    @classmethod
    def from_manifest(
        cls,
        manifest: Manifest | JsonDict,
        importance: ImportanceFile | None = None,
        samples: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> "RunResults":
        """Read a manifest, as JSON or as read before; missing optional parts stay empty.

        Raises:
            FileFormatError: a part cannot be read, or a required part is missing.
        """
        manifest = of_kind(ExpertsManifest, manifest)
        try:
            results = cls(
                manifest=manifest,
                schedule=NoiseSchedule.from_config(manifest.base.noise_schedule),
                allocation=Allocation.from_json(manifest.allocation, "The manifest's allocation"),
                ledger=tuple(map(LedgerRow.from_json, manifest.ledger or ())),
                importance=importance,
                samples=samples or {},
            )
        except FileFormatError:
            raise
        except ValueError as error:
            raise FileFormatError(f"The manifest cannot be read ({str(error).rstrip('.')}); {AGAIN}.") from error
        _check_groups(results)
        return results


def read_run(run_folder: Path | str) -> RunResults:
    """Read ``manifest.json`` and, if they exist, ``importance.json`` and ``samples/*.npz``.

    Raises:
        MissingFileError: there is no manifest.
        FileFormatError: a file cannot be read.
    """
    run_folder = Path(run_folder)
    path = run_folder / "manifest.json"
    manifest = ExpertsManifest.of(read_json(path, MANIFEST), str(path), AGAIN)
    return RunResults.from_manifest(manifest, read_importance(run_folder), read_samples(run_folder))


def read_importance(run_folder: Path | str) -> ImportanceFile | None:
    """Read ``importance.json``; None if there is none.

    Raises:
        FileFormatError: the file cannot be read.
    """
    run_folder = Path(run_folder)
    path = run_folder / "importance.json"
    if not path.is_file():
        return None
    data = read_json(path, IMPORTANCE)
    return ImportanceFile.of(data, str(path), "make it again with `prunekit importance`")


def read_samples(run_folder: Path | str) -> dict[str, NDArray[np.uint8]]:
    """Images in ``samples/*.npz`` by the files' stems: the base's first, then the experts', then others by name.

    Raises:
        FileFormatError: a file has no images.
    """
    run_folder = Path(run_folder)
    paths = {path.stem: path for path in sorted((run_folder / "samples").glob("*.npz"))}
    names = [name for name in _SAMPLES_FIRST if name in paths]
    names += [name for name in paths if name not in names]
    return {name: _read_images(paths[name]) for name in names}


def _read_images(path: Path) -> NDArray[np.uint8]:
    try:
        images: NDArray[np.uint8] = read_npz(path, lambda names: ["images"])["images"]
    except (FileFormatError, KeyError) as error:
        if isinstance(error, LimitError):
            raise
        raise FileFormatError(
            f"{path} has no readable array `images` ({error}); sample again with `prunekit sample`."
        ) from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise FileFormatError(
            f"{path} holds {images.dtype} of shape {images.shape}; expected uint8 (count, height, width, 1 or 3)."
        )
    return images


def _check_groups(results: RunResults) -> None:
    expected, got = results.allocation.num_timesteps, results.schedule.num_timesteps
    if expected != got:
        raise FileFormatError(
            f"The manifest's allocation has {expected} timesteps and its noise schedule {got}; "
            "they belong to different runs."
        )
    known = {group.index for group in results.allocation.groups}
    strange = {*results.experts, *(loss.group for loss in results.losses)} - known
    if strange:
        raise FileFormatError(
            f"The manifest has results for timestep group {min(strange)}; its allocation has 0 … {len(known) - 1}."
        )
