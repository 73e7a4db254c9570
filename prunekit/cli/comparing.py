"""The command that compares two models: ``consistency``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._missing import check_base
from prunekit.cli.console import emit, print_table, refuse_inputs, tell
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_comparison, suggest
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.sample_command import SamplerOption, Steps
from prunekit.cli.shared_options import ConfigOption, Exists, Json
from prunekit.limits import MAX_SEED

if TYPE_CHECKING:
    from prunekit.results.consistency_results import ConsistencyFile, Summary

__all__ = ["COMMANDS"]

_ROWS = 10  # of the table; every evaluation is in the file

_Model = "file, diffusers folder, slim folder, experts folder, embedded:digits, or embedded:fashion."


def consistency(
    a: Annotated[str, typer.Argument(help=f"One model: {_Model}"), Exists(check_base)],
    b: Annotated[
        str,
        typer.Argument(help="The other model, of any kind; noise schedule and image size must be the same."),
        Exists(check_base),
    ],
    config: ConfigOption = None,
    config_b: Annotated[
        Path | None, typer.Option("--config-b", help="The same for the second model (default: none).")
    ] = None,
    count: Annotated[int, typer.Option(help="Number of pairs.")] = 64,
    sampler: SamplerOption = "ddim",
    steps: Steps = 50,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Seed of the initial noise, which is the same for both models.")
    ] = 0,
    teacher_forced: Annotated[
        bool,
        typer.Option(
            help="Evaluate the second model on the first model's states too, so that earlier differences do not add up."
        ),
    ] = True,
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("consistency"),
    json: Json = False,
    *,
    reading: ReadingOptions,
) -> None:
    """Measure how similar two models' outputs are for the same noise, compared with shuffled pairs, and the seams of experts."""
    from prunekit.consistency import ConsistencyOptions
    from prunekit.report import describe_consistency
    from prunekit.steps.opening import is_base, open_model
    from prunekit.steps.two_models import check_folder, compare, write_comparison

    options = ConsistencyOptions(sampler, steps, count, seed, teacher_forced)
    check_folder(output)
    refuse_inputs(output, [a, b, config, config_b], inside=True)
    bases = [is_base(each) for each in (a, b)]
    asked = [reading.asked if its or not any(bases) else None for its in bases]  # without a base they are refused
    opened = open_model(a, config, asked=asked[0]), open_model(b, config_b, asked=asked[1])
    compared = compare(*opened, (a, b), options)
    with writing(output):
        write_comparison(compared, output)
    if json:
        emit(True, compared.data.to_json())
        return
    _show_steps(compared.data)
    _show_seams(compared.data)
    tell(describe_consistency(compared.data))
    tell(f"Written to {output}")
    suggest(after_comparison(b, a))


def _show_steps(data: "ConsistencyFile") -> None:
    """About ten of the evaluations, the first and the last among them."""
    steps = data.steps
    last = len(steps) - 1
    rows = min(_ROWS, len(steps))
    picked = sorted({round(i * last / max(rows - 1, 1)) for i in range(rows)})
    forced = data.settings.teacher_forced
    grouped = [letter for letter in "ab" if data.models[letter].groups is not None]
    header = ["t", *(f"group of {letter.upper()}" for letter in grouped), "SSIM", "shuffled", "correlation", "shuffled"]
    header += ["MSE", "shuffled", *(["MSE on A's states"] if forced else [])]
    table = []
    for step in (steps[i] for i in picked):
        row = [f"{step.timestep:g}", *(str(step.groups[letter]) for letter in grouped)]
        for measure, form in (("ssim", ".3f"), ("correlation", ".3f"), ("mse", ".1e")):
            row += [_cell(getattr(step.same, measure), form), _cell(getattr(step.shuffled, measure), form)]
        table.append(row + ([_cell(None if step.forced is None else step.forced.mse, ".1e")] if forced else []))
    names = f"A = {data.models['a'].name}, B = {data.models['b'].name}"
    title = f"Predictions of the clean image from the same noise, {len(picked)} of {len(steps)} evaluations: {names}"
    print_table(title, header, table)


def _show_seams(data: "ConsistencyFile") -> None:
    if not data.seams:
        return
    names: Sequence[str] = ("jump", "cleaner", "noisier", "ratio")
    rows = [
        [seam.model.upper(), str(seam.timestep), "|".join(map(str, seam.groups))]
        + [_cell(getattr(seam, name), ".2f" if name == "ratio" else ".4f") for name in names]
        for seam in data.seams
    ]
    header = ["of", "t", "groups", "jump", "cleaner's", "noisier's", "ratio"]
    print_table("Seams: RMS between neighbouring experts, and of each from the other model", header, rows)


def _cell(found: "Summary | None", form: str) -> str:
    """Mean ± standard error; a dash where it is undefined."""
    if found is None or found.mean is None:
        return "–"
    return format(found.mean, form) + ("" if found.se is None else f" ± {format(found.se, form)}")


COMMANDS = (consistency,)
