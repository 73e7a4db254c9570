"""The command ``groups``, which cuts the timesteps. Methods that need only the noise schedule do not import torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunekit._files import write_json
from prunekit._json import JsonObject
from prunekit._kinds import PICTURE, FileKind, has_format
from prunekit._missing import check_base
from prunekit.choices import CutRule, GroupingName, ScheduleName
from prunekit.cli.console import data_options, emit, print_table, refuse_existing, resolution_of, tell
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_groups, suggest
from prunekit.cli.reading_options import PredictionOption, WeightsOption
from prunekit.cli.shared_options import ConfigOption, DataOption, Exists, Json, Overwrite, Resolution, Seed
from prunekit.errors import InputError
from prunekit.groups import METHODS, Grouping
from prunekit.results.formats import GROUPS, SENSITIVITY
from prunekit.schedule import NoiseSchedule
from prunekit.steps.budgets import cut_with_evidence

if TYPE_CHECKING:
    from prunekit.checkpoint import Base

__all__ = ["COMMANDS"]


ScheduleOption = Annotated[
    ScheduleName | None,
    typer.Option(
        "--noise-schedule", help="Noise schedule that the model was trained with (default: the base's, else linear)."
    ),
]
TimestepsOption = Annotated[
    int | None, typer.Option("--num-timesteps", help="Number of training timesteps T (default: the base's, else 1000).")
]
_NEEDED = {
    "--base": "the network whose gradients are compared, such as base.pt",
    "--data": "the images to look at, such as digits, or the --base that was trained on them",
}
CutsOption = Annotated[
    str | None, typer.Option("--cuts", help="Cut at these timesteps instead, e.g. 250,600 (default: by --method).")
]


def groups(
    count: Annotated[int, typer.Option("--groups", "--num-groups", help="Number of timestep groups.")] = 5,
    method: Annotated[
        GroupingName, typer.Option(help="How to cut the timesteps. similarity needs images, gradient needs a base.")
    ] = "uniform",
    cuts: CutsOption = None,
    sensitivity: Annotated[
        Path | None,
        typer.Option(
            help="Cut where the amplification in this file changes, which `prunekit sensitivity` measured on many groups, such as "
            "25 (default: by --method)."
        ),
    ] = None,
    noise_schedule: ScheduleOption = None,
    num_timesteps: TimestepsOption = None,
    data: DataOption = None,
    resolution: Resolution = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            help="Base whose noise schedule is used. The methods similarity and gradient use its images too (default: none).",
        ),
        Exists(check_base),
    ] = None,
    config: ConfigOption = None,
    weights: WeightsOption = None,
    prediction_type: PredictionOption = None,
    eta: Annotated[
        float | None,
        typer.Option(help="For similarity: difference at which pixels still count as equal (default: 2/255)."),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="For similarity in three groups: smallest mean similarity (default: calibrated)."),
    ] = None,
    rule: Annotated[
        CutRule | None,
        typer.Option(
            help="For similarity: stages (published, three groups) or dynamic (any number). Default: stages for three groups, "
            "else dynamic."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Number of pairs of image and noise; for gradient, of draws per bin of timesteps "
            "(default: 64 and 512)."
        ),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(help="Number of timesteps that are measured, or of bins (default: 64 and 32).")
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="MiB that similarity may use, without the images (default: 256).")
    ] = None,
    seed: Seed = 0,
    output: Annotated[
        Path,
        typer.Option(
            help="File to write. A picture of the measurements is written next to it (.png). Earlier groups are replaced."
        ),
    ] = Path("groups.json"),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Cut the timesteps into groups and write groups.json. Group 0 is the cleanest."""
    refuse_existing(output, overwrite, FileKind("groups", has_format(GROUPS)), [base, config, data, sensitivity])
    asked = _given(kind=noise_schedule, num_timesteps=num_timesteps)
    source = _Source(data, resolution, base, config, asked, _given(weights=weights, prediction_type=prediction_type))
    looks = _given(eta=eta, alpha=alpha, rule=rule, samples=samples, nodes=nodes, memory_mib=memory)
    if sensitivity is not None and (cuts is not None or method != "uniform"):
        other = "--cuts" if cuts is not None else f"--method {method}"
        raise InputError(f"Got --sensitivity with {other}; expected one of the two.")
    if cuts is not None or sensitivity is not None or method in METHODS:
        named = [*looks, *_given(data=data, resolution=resolution)]
        if named:
            instead = "--cuts" if cuts is not None else f"--method {method}" if sensitivity is None else "--sensitivity"
            raise InputError(
                f"Got {_flags(named)} with {instead}, which looks at no images; "
                "expected it with --method similarity or gradient."
            )
        if sensitivity is not None:
            schedule, made = _from_file(sensitivity, source, count)
        else:
            schedule = source.schedule()
            made = cut_with_evidence(schedule, count, method, _cuts(cuts))
    else:
        if output.suffix != ".png":  # refused later
            refuse_existing(output.with_suffix(".png"), overwrite, PICTURE, [base, config, data])
        schedule, made = _measured(source, {"method": method, "count": count, "seed": seed, **looks}, output)
    _show_groups(made, schedule, output, json)
    if not json:
        suggest(after_groups(base, output, config))


@dataclass(frozen=True)
class _Source:
    """The noise schedule for which timesteps are cut, with a base and images if they are given."""

    data: str | None
    resolution: str | None
    base: str | None
    config: Path | None
    asked: JsonObject  # options of the noise schedule
    reading: dict[str, str]  # options for reading the base

    def opened(self) -> "Base":
        """The base; a noise schedule from the options replaces its own.

        Raises:
            InputError: a number of timesteps was given without a kind of schedule.
        """
        from prunekit.checkpoint import Asked
        from prunekit.steps.bases import open_base

        kind, count = self.asked.get("kind"), self.asked.get("num_timesteps")
        if count is not None and kind is None:
            raise InputError("Got --num-timesteps with --base, without --noise-schedule; expected both, or neither.")
        text = kind if count is None else f"{kind}:{count}"
        return open_base(str(self.base), self.config, asked=Asked(noise_schedule=text, **self.reading))

    def schedule(self) -> NoiseSchedule:
        """The base's noise schedule; without a base, the one from the options.

        Raises:
            InputError: options of a base were given without a base.
        """
        if self.base is not None:
            return self.opened().schedule
        if self.config is not None or self.reading:
            given = [*(["config"] if self.config else []), *self.reading]
            raise InputError(f"Got {_flags(given)} without --base; expected both.")
        return NoiseSchedule.from_config({"kind": "linear", "num_timesteps": 1000} | self.asked)


def _measured(source: _Source, chosen: JsonObject, output: Path) -> tuple[NoiseSchedule, Grouping]:
    """Groups by measurements on images or a base; checks the output paths before it measures."""
    from prunekit.data import load_images
    from prunekit.recipe import GroupOptions
    from prunekit.steps.cutting import method_of
    from prunekit.steps.image_choice import images_of
    from prunekit.steps.placing import placed

    if output.suffix == ".png":
        raise InputError(
            f"Got --output {output}; expected the name of a file to write; a picture is written next to it as .png."
        )
    options = GroupOptions(**chosen)
    if source.base is None:
        if options.method == "gradient" or source.data is None:
            needed = "--base" if options.method == "gradient" else "--data"
            raise InputError(f"Got --method {options.method} without {needed}; expected {_NEEDED[needed]}.")
        schedule = source.schedule()
        method = method_of(options, load_images(source.data, resolution_of(source.resolution)).train)
        return schedule, method(schedule, options.count)
    base = source.opened()
    images = images_of(base, data_options(source.data, source.resolution), source.base)
    with placed(base.model):
        return base.schedule, method_of(options, images.train, base)(base.schedule, options.count)


def _from_file(path: Path, source: _Source, count: int) -> tuple[NoiseSchedule, Grouping]:
    """The noise schedule of a sensitivity, and groups cut where it changes.

    Raises:
        InputError: the base or the options have another noise schedule, or the base other weights.
    """
    from prunekit._json import read_json
    from prunekit.allocation import BySensitivity, Sensitivity

    found = Sensitivity.from_json(read_json(path, SENSITIVITY), path)
    if source.base is None:
        asked = source.schedule()
    else:
        from prunekit.training import weights_hash

        base = source.opened()
        found.check_weights(weights_hash(base.model))
        asked = base.schedule
    schedule = found.noise_schedule or asked
    is_told = source.base is not None or bool(source.asked)
    if is_told and not schedule.is_close(asked):
        told = "--base" if source.base is not None else "the options"
        raise InputError(
            f"{path} was measured with another noise schedule than that of {told}; leave it out, or measure the sensitivity again "
            "with `prunekit sensitivity`."
        )
    return schedule, BySensitivity(found)(schedule, count)


def _show_groups(made: Grouping, schedule: NoiseSchedule, output: Path, json: bool) -> None:
    """Write the groups and their picture, and print the groups."""
    data = {**made.to_json(), "noise_schedule": schedule.to_config()}
    written, picture = str(output), output.with_suffix(".png")
    with writing(output):
        write_json(output, data)
        if made.evidence.matrix is not None:
            from prunekit.report import grouping_png

            grouping_png(made, picture)
            written += f", {picture}"
        elif picture.is_file() and PICTURE.recognises(picture):
            picture.unlink()  # of the groups that these have replaced
    if json:
        emit(True, data)
        return
    snr_db, sigma = schedule.snr_db, schedule.sigma
    rows = [
        [
            str(g.index),
            f"{g.start}–{g.stop - 1}",
            str(len(g)),
            f"{snr_db[g.start]:.1f} … {snr_db[g.stop - 1]:.1f}",
            f"{sigma[g.start]:.4g} … {sigma[g.stop - 1]:.4g}",
        ]
        for g in made.groups
    ]
    title = f"{len(made.groups)} timestep groups ({made.groups.method})"
    print_table(title, ["group", "timesteps", "count", "SNR dB", "sigma"], rows)
    facts = made.evidence.facts
    if "alpha" in facts:
        tell(f"Three stages with alpha {facts['alpha']:g} ({facts['alpha_from']}) and eta {facts['eta']:.4g}.")
    tell(f"Cuts: {', '.join(map(str, made.groups.cuts)) or 'none'}. Written to {written}")


def _given(**options: Any) -> JsonObject:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def _flags(names: Iterable[str]) -> str:
    """Options as the user types them."""
    typed = {"kind": "noise-schedule", "memory_mib": "memory"}
    return ", ".join(f"--{typed.get(name, name.replace('_', '-'))}" for name in names)


def _cuts(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        if "_" in text:  # Python reads 1_00 as 100
            raise ValueError
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"Got --cuts {text!r}; expected rising integers with commas between, e.g. 250,600.") from error


COMMANDS = (groups,)
