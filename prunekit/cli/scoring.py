"""The command ``importance``."""

from pathlib import Path
from typing import Annotated

import typer

from prunekit._kinds import PICTURE, FileKind
from prunekit.cli.console import data_options, emit, refuse_existing, refuse_inputs
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_importance, suggest
from prunekit.cli.pruning_choices import (
    BasePath,
    CriterionOption,
    HeadOption,
    NormOption,
    Samples,
    ShrinkOption,
    check_timesteps,
)
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import ConfigOption, DataOption, InputsOption, Json, Overwrite, Resolution, Seed
from prunekit.errors import InputError, PrunekitError

__all__ = ["COMMANDS"]


def importance(
    base: BasePath,
    config: ConfigOption = None,
    inputs: InputsOption = None,
    criterion: CriterionOption = "taylor",
    groups: Annotated[
        Path | None,
        typer.Option(
            "--groups-file",
            help="groups.json or allocation.json (default: the one that is here, else 5 uniform groups).",
        ),
    ] = None,
    data: DataOption = None,
    resolution: Resolution = None,
    samples: Samples = 256,
    norm_mode: NormOption = "even",
    head_mode: HeadOption = "whole",
    shrink: ShrinkOption = "width",
    seed: Seed = 0,
    output: Annotated[
        Path,
        typer.Option(
            help="File to write (.json or .npz). A heatmap is written next to it (.png). Earlier scores are replaced."
        ),
    ] = Path("importance.json"),
    overwrite: Overwrite = False,
    json: Json = False,
    *,
    reading: ReadingOptions,
) -> None:
    """Score every channel for every timestep group, and residual branches if asked, and write importance.json and a heatmap."""
    from prunekit._json import read_json
    from prunekit.groups import TimestepGroups, make_groups
    from prunekit.recipe import PruneOptions
    from prunekit.report import heatmap_png
    from prunekit.steps.bases import open_base
    from prunekit.steps.bench import Bench, score_groups
    from prunekit.steps.image_choice import images_of, needs_images

    refuse_existing(output, overwrite, FileKind("importance map", _is_map), [base, config, inputs, groups, data])
    if output.suffix not in (".json", ".npz"):
        raise InputError(f"Got --output {output}; expected a file name that ends with .json or .npz.")
    picture = output.with_suffix(".png")
    refuse_existing(picture, overwrite, PICTURE, [base, config, inputs, groups, data])
    refuse_inputs(output, [base], inside=True)
    loaded = open_base(base, config, inputs, reading.asked)
    others = data_options(data, resolution)
    asked = others is not None or needs_images(criterion)
    images = images_of(loaded, others, base).train if asked else None
    options = PruneOptions(criterion=criterion, samples=samples, seed=seed)
    standing = groups or next((p for p in (Path("groups.json"), Path("allocation.json")) if p.is_file()), None)
    partition = TimestepGroups.from_json(read_json(standing), standing) if standing else make_groups(loaded.schedule)
    check_timesteps(partition, loaded.schedule, base)
    scores = score_groups(Bench.of(loaded, norm_mode, head_mode, shrink=shrink), images, partition, options)
    with writing(output, picture):
        scores.save(output)
        heatmap_png(scores.to_json(), picture)
    facts = {
        "output": str(output),
        "heatmap": str(picture),
        "criterion": criterion,
        "channel_groups": len(scores.channels),
        "branches": len(scores.branches),
    }
    scored = f"{len(scores.channels)} channel groups"
    scored += f" and {len(scores.branches)} residual branches" if scores.branches else ""
    emit(json, facts, [f"Scored {scored} for {len(partition)} timestep groups: {output}, {picture}"])
    if not json:
        suggest(after_importance(base))


def _is_map(path: Path) -> bool:
    """Whether a file is an importance map."""
    from prunekit.importance import ImportanceMap

    try:
        ImportanceMap.load(path)
    except PrunekitError:
        return False
    return True


COMMANDS = (importance,)
"""The commands of this module."""
