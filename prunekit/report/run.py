"""A finished run, read once and checked. Tables, pictures and the page are made from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunekit._containers import read_npz
from prunekit._json import checked, read_document
from prunekit._types import JsonDict
from prunekit.allocation import Allocation
from prunekit.errors import FileFormatError, LimitError
from prunekit.ledger import LedgerRow
from prunekit.report.doubts import metric_label
from prunekit.report.estimate import Estimate
from prunekit.report.forms import AGAIN, MANIFEST_FORMAT, ImportanceForm, MetricsForm, RunForm, read_manifest
from prunekit.schedule import NoiseSchedule

__all__ = [
    "MANIFEST_FORMAT",
    "Assembled",
    "Base",
    "Expert",
    "GroupLoss",
    "MetricRow",
    "Metrics",
    "RunResults",
    "read_importance",
    "read_run",
    "read_samples",
]

IMPORTANCE_FORMAT = "prunekit-importance/1"
_SAMPLES_FIRST = ("base", "experts")


@dataclass(frozen=True)
class Base:
    """The model from which the run started: MACs per sample per evaluation, parameters, and its noise schedule."""

    macs: int
    params: int
    sha256: str | None
    data: Mapping[str, Any]
    noise_schedule: NoiseSchedule


@dataclass(frozen=True)
class Expert:
    """The slim model of one timestep group (0 = cleanest); ``widths`` maps a channel group to (before, after)."""

    group: int
    target_macs: int | None
    macs: int
    params: int
    widths: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Assembled:
    """The experts as one denoiser: mean MACs over the sampler's steps, and the parameters of all experts together."""

    mean_macs: float
    mean_mac_ratio: float
    params: int


@dataclass(frozen=True)
class GroupLoss:
    """Held-out denoising loss in one timestep group; ``difference`` is expert − base, paired."""

    group: int
    base: Estimate | None
    pruned: Estimate | None
    expert: Estimate | None
    difference: Estimate | None


@dataclass(frozen=True)
class MetricRow:
    """Sample quality and cost of one model; the differences from the base, if measured, are paired."""

    model: str
    fid: Estimate | None
    kid: Estimate | None
    seconds_per_image: float | None
    mean_macs: float | None
    mac_ratio: float | None
    fid_difference: Estimate | None = None
    kid_difference: Estimate | None = None


@dataclass(frozen=True)
class Metrics:
    """FID and KID of several models under one feature extractor, sample count and sampler.

    ``features`` is empty if no extractor knows the pictures; ``no_features`` then says why.
    """

    features: Mapping[str, Any]
    count: int
    sampler: str
    steps: int | None
    seeds: tuple[int, ...]
    rows: tuple[MetricRow, ...]
    count_real: int | None = None
    no_features: str = ""

    @classmethod
    def from_json(cls, data: JsonDict | None) -> "Metrics | None":
        """Read the ``metrics`` part of a manifest or of an evaluation; None if nothing was measured."""
        if not data or not data.get("rows"):
            return None
        checked(MetricsForm, data, "The figures of sample quality", AGAIN)
        rows = tuple(map(_metric_row, data["rows"]))
        seeds = tuple(int(seed) for seed in data.get("seeds") or ())
        features, sampler, real = data.get("features") or {}, str(data.get("sampler", "")), data.get("count_real")
        about = None if real is None else int(real), str(data.get("no_features") or "")
        return cls(features, int(data["count"]), sampler, data.get("steps"), seeds, rows, *about)

    def label(self, name: str) -> str:
        """The full name of a metric, see :func:`prunekit.report.doubts.metric_label`."""
        return metric_label(name, self.features, self.count)

    @property
    def stated(self) -> dict[str, Any]:
        """The facts that decide whether a claim may rest on FID and KID, see :func:`prunekit.report.doubts.doubt_of`."""
        return {
            "features": self.features,
            "no_features": self.no_features,
            "count": self.count,
            "count_real": self.count_real,
        }

    def row(self, model: str) -> MetricRow | None:
        """The row of one model."""
        return next((row for row in self.rows if row.model == model), None)

    @property
    def judged(self) -> MetricRow | None:
        """The row that the page's claim is about: the experts if there are any, otherwise the first model except the base."""
        return self.row("experts") or next((row for row in self.rows if row.model != "base"), None)


@dataclass(frozen=True)
class RunResults:
    """Everything a report shows.

    Args:
        manifest: ``manifest.json`` as read.
        base: the base model.
        allocation: the targets per timestep group.
        experts: by timestep group; empty if none were made.
        assembled: None if the experts were not assembled.
        losses: empty if not measured.
        metrics: None if not measured.
        ledger: empty if not kept.
        importance: ``importance.json`` as read, or None.
        samples: model name → images, uint8, shape (count, height, width, channels); the base first.
    """

    manifest: Mapping[str, Any]
    base: Base
    allocation: Allocation
    experts: Mapping[int, Expert] = field(default_factory=dict)
    assembled: Assembled | None = None
    losses: tuple[GroupLoss, ...] = ()
    metrics: Metrics | None = None
    ledger: tuple[LedgerRow, ...] = ()
    importance: Mapping[str, Any] | None = None
    samples: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def recipe(self) -> str:
        """Name of the recipe."""
        return str(self.manifest.get("recipe", "unnamed"))

    @classmethod
    def from_manifest(
        cls,
        manifest: JsonDict,
        importance: JsonDict | None = None,
        samples: Mapping[str, NDArray[np.uint8]] | None = None,
    ) -> "RunResults":
        """Read a manifest; missing optional parts stay empty.

        Raises:
            FileFormatError: a part cannot be read, or a required part is missing.
        """
        if manifest.get("format") != MANIFEST_FORMAT:
            raise FileFormatError(
                f"The manifest has format {manifest.get('format')!r}; expected {MANIFEST_FORMAT!r}. "
                "Run the recipe again with this version."
            )
        checked(RunForm, manifest, "The manifest", AGAIN)
        try:
            results = cls(
                manifest=manifest,
                base=_base(manifest["base"]),
                allocation=Allocation.from_json(manifest["allocation"], "The manifest's allocation"),
                experts={int(entry["group"]): _expert(entry) for entry in manifest.get("experts") or ()},
                assembled=_assembled(manifest.get("assembled")),
                losses=tuple(_group_loss(entry) for entry in manifest.get("losses") or ()),
                metrics=Metrics.from_json(manifest.get("metrics")),
                ledger=tuple(LedgerRow.from_json(entry) for entry in manifest.get("ledger") or ()),
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
    return RunResults.from_manifest(read_manifest(run_folder), read_importance(run_folder), read_samples(run_folder))


def read_importance(run_folder: Path | str) -> JsonDict | None:
    """Read ``importance.json``; None if there is none.

    Raises:
        FileFormatError: the file cannot be read.
    """
    run_folder = Path(run_folder)
    path = run_folder / "importance.json"
    if not path.is_file():
        return None
    found: Any = read_document(path, ImportanceForm, IMPORTANCE_FORMAT, "make it again with `prunekit importance`")
    return dict(found)


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
    expected, got = results.allocation.num_timesteps, results.base.noise_schedule.num_timesteps
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


def _base(data: JsonDict) -> Base:
    return Base(
        int(data["macs"]),
        int(data["params"]),
        data.get("sha256"),
        data.get("data") or {},
        NoiseSchedule.from_config(data["noise_schedule"]),
    )


def _expert(data: JsonDict) -> Expert:
    widths = {str(name): (int(pair[0]), int(pair[1])) for name, pair in (data.get("widths") or {}).items()}
    target = data.get("target_macs")
    return Expert(
        int(data["group"]), None if target is None else int(target), int(data["macs"]), int(data["params"]), widths
    )


def _assembled(data: JsonDict | None) -> Assembled | None:
    if not data:
        return None
    return Assembled(float(data["mean_macs"]), float(data["mean_mac_ratio"]), int(data["params"]))


def _group_loss(data: JsonDict) -> GroupLoss:
    base, pruned, expert, difference = (
        Estimate.from_json(data.get(key)) for key in ("base", "pruned", "expert", "difference")
    )
    return GroupLoss(int(data["group"]), base, pruned, expert, difference)


def _metric_row(row: JsonDict) -> MetricRow:
    fid, kid, *differences = (
        Estimate.from_json(row.get(key)) for key in ("fid", "kid", "fid_difference", "kid_difference")
    )
    seconds, macs, ratio = (row.get(key) for key in ("seconds_per_image", "mean_macs", "mac_ratio"))
    return MetricRow(str(row["model"]), fid, kid, seconds, macs, ratio, *differences)
