"""Layer times from a file, which is measured and written if it does not exist."""

from pathlib import Path

from torch import nn

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.cost import CostModel, LatencyOptions, LatencyTable
from prunekit.errors import InputError
from prunekit.graph import ChannelGraph, with_branches
from prunekit.graph.forward_pass import Inputs

__all__ = ["measure_times", "read_times", "times_in"]


def times_in(
    path: Path | str, batch_size: int | None, model: nn.Module, graph: ChannelGraph, inputs: Inputs
) -> LatencyTable:
    """The layer times in a file. If there is no such file, they are measured on the model's device and written.

    Args:
        path: the file.
        batch_size: samples in a batch; those of the file if missing, or :class:`~prunekit.cost.LatencyOptions`' default.
        model: the full network.
        graph: its channel groups.
        inputs: arguments of one forward pass at batch 1.

    Raises:
        FileFormatError: the file is no table of layer times.
        InputError: the table was measured for another batch size.
    """
    if Path(path).is_file():
        return read_times(path, batch_size)
    options = LatencyOptions() if batch_size is None else LatencyOptions(batch_size=batch_size)
    table = measure_times(model, graph, inputs, options)
    write_json(Path(path), table.to_json())
    return table


def measure_times(model: nn.Module, graph: ChannelGraph, inputs: Inputs, options: LatencyOptions) -> LatencyTable:
    """Layer times measured now, of widths and residual branches, so that the table serves every way to shrink.

    Args:
        model: the full network.
        graph: its channel groups.
        inputs: arguments of one forward pass at batch 1.
        options: how to measure.

    Raises:
        GraphError: no layer of the cost model runs.
        InputError: this machine does not have the options' device.
    """
    whole = with_branches(graph, model, inputs).shrinking("both")
    return LatencyTable.of(model, whole, CostModel.of(model, whole, inputs), inputs, options)


def read_times(path: Path | str, batch_size: int | None = None) -> LatencyTable:
    """The layer times in a file, which may be another machine's.

    Args:
        path: the file.
        batch_size: samples in a batch that the times must be for; any if missing.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: the file is no table of layer times.
        InputError: the table was measured for another batch size.
    """
    table = LatencyTable.from_json(read_json(Path(path)), path)
    if batch_size not in (None, table.batch_size):
        raise InputError(
            f"{path} has layer times for batches of {table.batch_size}, and `latency_batch_size` asks for {batch_size}; name a "
            "new file as `latency_table`, to which they are measured, or leave the batch size out."
        )
    return table
