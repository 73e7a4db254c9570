"""Compares two models of any kind, and writes the figures, the pairs of images and the curves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import prunekit
from prunekit._files import atomic_folder, write_json
from prunekit._files import check_folder as check_place
from prunekit._kinds import FolderKind, has_format
from prunekit.consistency import Consistency, ConsistencyOptions, Denoiser, measure_consistency
from prunekit.errors import InputError
from prunekit.report import curves_png, pairs_png
from prunekit.results.consistency_results import ConsistencyFile
from prunekit.results.formats import CONSISTENCY
from prunekit.sampling import to_images
from prunekit.steps.budgets import evaluations
from prunekit.steps.image_choice import check_told_nothing
from prunekit.steps.opening import Opened
from prunekit.training import weights_hash

__all__ = ["FOLDER", "Compared", "check_folder", "compare", "write_comparison"]

_FIGURES = "consistency.json"
FOLDER = FolderKind("comparison", ("pairs.png", "curves.png"), marker=_FIGURES, is_ours=has_format(CONSISTENCY))
"""Files that :func:`write_comparison` may replace."""


@dataclass(frozen=True, eq=False)
class Compared:
    """The consistency of two models, and the content of ``consistency.json``."""

    found: Consistency
    data: ConsistencyFile


def check_folder(folder: Path) -> None:
    """Refuse a folder for results if other files in it would be lost.

    Raises:
        InputError: the path is a file, or a folder with anything but an earlier comparison in it.
    """
    check_place(folder, FOLDER)


def compare(
    a: Opened,
    b: Opened,
    names: tuple[str, str],
    options: ConsistencyOptions,
    report: Callable[[int, int], None] | None = None,
) -> Compared:
    """Measure how similar two opened models are, see :func:`prunekit.consistency.measure_consistency`.

    Args:
        a: one model.
        b: the other.
        names: the models' names in the results.
        options: counts, sampler and seed.
        report: called with (evaluations done, total evaluations).

    Raises:
        InputError: they make images of different shapes or follow different noise schedules, or the sampler cannot be used.
    """
    for opened in (a, b):
        check_told_nothing(opened.spec, "expected models of plain pictures, which can be compared so far")
    special = next((name for name, opened in zip(names, (a, b), strict=True) if opened.spec.num_classes), None)
    if special is not None or a.latent or b.latent:
        what = "a model makes latents" if special is None else f"{special} takes classes"
        raise InputError(
            f"Got models of which {what}; expected models of plain pictures, which can be compared so far."
        )
    if a.shape != b.shape:
        raise InputError(
            f"{names[0]} makes samples of shape {a.shape} and {names[1]} of {b.shape} (channels, height, width); "
            "expected the same, to compare them pixel by pixel."
        )
    evaluations(a.schedule, options.sampler, options.steps)  # refuses a sampler that cannot take this number of steps
    one, other = (Denoiser(opened.model, opened.parameterization) for opened in (a, b))
    found = measure_consistency(one, other, a.shape, options, report)
    models = {
        letter: {
            "name": name,
            "architecture": opened.spec.class_name,
            "prediction_type": opened.prediction_type,
            "groups": None if denoiser.groups is None else [[group.start, group.stop] for group in denoiser.groups],
            "weights_sha256": weights_hash(opened.model),
        }
        for letter, name, opened, denoiser in zip("ab", names, (a, b), (one, other), strict=True)
    }
    head = {"format": CONSISTENCY, "prunekit": prunekit.__version__, "models": models}
    data = {**head, "noise_schedule": a.schedule.to_config(), **found.to_json()}
    return Compared(found, ConsistencyFile.of(data, "The comparison"))


def write_comparison(compared: Compared, folder: Path) -> None:
    """Write ``consistency.json``, ``pairs.png`` and ``curves.png``, either all or none."""
    names = [compared.data.models[letter].name for letter in "ab"]
    a, b, shuffled = (to_images(images).permute(0, 2, 3, 1).numpy() for images in compared.found.images)
    with atomic_folder(folder, FOLDER) as part:
        write_json(part / _FIGURES, compared.data.to_json())
        pairs_png(a, b, shuffled, names, part / "pairs.png")
        curves_png(compared.data, part / "curves.png")
