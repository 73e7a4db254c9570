"""The command ``recover``: what a short fine-tuning recovers of each timestep group's loss."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._files import write_json
from prunekit._kinds import FileKind, has_format
from prunekit._missing import check_base, check_slim
from prunekit.cli.console import data_options, emit, print_table, refuse_existing, refuse_inputs, tell
from prunekit.cli.interrupts import keeping, writing
from prunekit.cli.next_steps import after_recover, suggest
from prunekit.cli.output_lock import alone_with
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import (
    ConfigOption,
    DataOption,
    Exists,
    InputsOption,
    Json,
    Overwrite,
    Resolution,
    Seed,
)
from prunekit.errors import InputError
from prunekit.results.formats import RECOVERIES

if TYPE_CHECKING:
    from prunekit.allocation import Recoveries

__all__ = ["COMMANDS"]


def recover(
    base: Annotated[
        str,
        typer.Argument(help="The base of the slim models: a file, a folder or embedded:digits."),
        Exists(check_base),
    ],
    slims: Annotated[
        list[Path],
        typer.Argument(help="Folders of slim models, one for each size, e.g. frontiers.", exists=False),
        Exists(check_slim),
    ],
    config: ConfigOption = None,
    inputs: InputsOption = None,
    data: DataOption = None,
    resolution: Resolution = None,
    steps: Annotated[int, typer.Option("--max-train-steps", help="Train steps of each network.")] = 200,
    batch_size: Annotated[int, typer.Option("--train-batch-size", help="Images per step.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="Learning rate after the warm-up.")] = 5e-4,
    overlap: Annotated[
        int, typer.Option(help="Number of timesteps beyond the group's borders that are trained on too.")
    ] = 20,
    samples: Annotated[int, typer.Option(help="Draws on which each loss is measured.")] = 256,
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Also train the whole network for each group, as `finetune --all` does; it is left alone otherwise.",
        ),
    ] = False,
    *,
    reading: ReadingOptions,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="File to write. Earlier recoveries are replaced.")] = Path(
        "recoveries.json"
    ),
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train slim models for a short time, and measure what that recovers of each timestep group's loss.

    With the file, allocate corrects the losses of journals, which are before fine-tuning. The models themselves stay as they are.
    An interrupted command goes on with the next network.
    """
    from prunekit.recipe import FinetuneOptions, PruneOptions
    from prunekit.runs.group_recoveries import Recovering
    from prunekit.steps.bases import open_base
    from prunekit.steps.recovering import shortened
    from prunekit.training import TrainOptions

    if output.suffix != ".json":
        raise InputError(f"Got --output {output}; expected a file name that ends with .json.")
    if samples < 1:
        raise InputError(f"Got --samples {samples}; expected at least 1.")
    refuse_existing(
        output, overwrite, FileKind("recoveries", has_format(RECOVERIES)), [base, config, inputs, data, *slims]
    )
    refuse_inputs(output, [base, *slims], inside=True)
    train = TrainOptions(
        steps=steps, batch_size=batch_size, learning_rate=learning_rate, warmup_steps=30, ema_decay=0.995, seed=seed
    )
    options = shortened(FinetuneOptions(overlap, only_pruned=not every, variance="vlb", train=train), steps)
    probed = PruneOptions(samples=samples, seed=seed)
    opened = open_base(base, config, inputs, reading.asked)
    recovering = Recovering(opened, slims, output, options, probed, data_options(data, resolution))
    with alone_with(output, overwrite=True), keeping(recovering.saved):
        found = recovering.make()
        with writing(output):
            write_json(output, found.to_json())
    recovering.drop()
    if json:
        emit(True, {"output": str(output), **found.to_json()})
        return
    _show(found)
    tell(f"Written to {output}")
    cut = [one.group for one in found.groups]
    suggest(*after_recover(base, slims[0], output, cut, opened.schedule))


def _show(found: "Recoveries") -> None:
    """Print recoveries as a table."""
    from prunekit.report.wording import number_text

    rows = [
        [
            str(one.group.index),
            f"{one.group.start}–{one.group.stop - 1}",
            f"{point.macs / found.base_macs:.3f}",
            number_text(point.before, 4),
            number_text(point.after, 4),
            f"{100 * (point.after / point.before - 1):+.1f} %",
        ]
        for one in found.groups
        for point in one.points
    ]
    title = f"Losses before and after {found.steps} train steps"
    print_table(title, ["group", "timesteps", "of the MACs", "before", "after", "change"], rows)


COMMANDS = (recover,)
"""The commands of this module."""
