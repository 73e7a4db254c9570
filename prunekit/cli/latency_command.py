"""The command ``latency``: measures the layer times that targets of latency are planned with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunekit._kinds import FileKind, has_format
from prunekit.choices import TimedPrecision
from prunekit.cli.console import emit, refuse_existing, refuse_inputs, tell
from prunekit.cli.constraining import Constraining
from prunekit.cli.interrupts import writing
from prunekit.cli.next_steps import after_latency, suggest
from prunekit.cli.pruning_choices import BasePath
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import ConfigOption, InputsOption, Json, Overwrite, Seed
from prunekit.results.formats import LATENCY

if TYPE_CHECKING:
    from prunekit.cost import LatencyTable

__all__ = ["COMMANDS"]


def latency(
    base: BasePath,
    config: ConfigOption = None,
    inputs: InputsOption = None,
    device: Annotated[
        str, typer.Option(help="Where to measure: cpu, cuda, cuda:1, … A GPU is timed by events of its own queue.")
    ] = "cpu",
    batch_size: Annotated[int, typer.Option(help="Samples in a batch. Times are for the whole batch.", min=1)] = 16,
    dtype: Annotated[TimedPrecision, typer.Option(help="Type of weights and activations.")] = "float32",
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Measure the networks compiled by torch.compile (default: as they are).")
    ] = False,
    repeats: Annotated[int, typer.Option(help="How often each time is measured. The shortest counts.", min=1)] = 5,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="File to write. An earlier table is replaced.")] = Path("latency.json"),
    overwrite: Overwrite = False,
    json: Json = False,
    *,
    constraining: Constraining,
    reading: ReadingOptions,
) -> None:
    """Measure how long a base's layers take at several widths, for targets of latency; the file can be used on any machine."""
    from prunekit._files import write_json
    from prunekit.cost import LatencyOptions
    from prunekit.cost.clocks import device_named
    from prunekit.steps.bases import open_base
    from prunekit.steps.bench import Bench

    refuse_existing(output, overwrite, FileKind("table of layer times", has_format(LATENCY)), [base, config, inputs])
    refuse_inputs(output, [base], inside=True)
    device_named(device)  # refuses one that is not there before the base is read
    options = LatencyOptions(
        batch_size=batch_size, repeats=repeats, seed=seed, device=device, dtype=dtype, compiled=compiled
    )
    loaded = open_base(base, config, inputs, reading.asked)
    bench = Bench.of(loaded, constraining.norm_mode, constraining.head_mode, constraining.constraints)
    table = bench.measured(options)
    with writing(output):
        write_json(output, table.to_json())
    if json:
        emit(True, _facts(output, table))
        return
    tell(table.describe())
    tell(f"The whole network takes {1e3 * table.base_seconds:.4g} ms per batch. Written to {output}")
    suggest(after_latency(base, output))


def _facts(output: Path, table: "LatencyTable") -> dict[str, object]:
    """What was measured, JSON-able; the times themselves are in the file."""
    return {"output": str(output), **table.about(), "base_seconds": table.base_seconds}


COMMANDS = (latency,)
"""The commands of this module."""
