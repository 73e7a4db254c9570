"""Keeps every short fine-tuning once it has ended, so that an interruption loses none of several."""

from collections.abc import Callable
from pathlib import Path

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.allocation import Recovery
from prunekit.ledger import LedgerRow
from prunekit.results.recovery_files import FinishedRecovery
from prunekit.training.checkpoints import drop_checkpoints

__all__ = ["kept_recovery"]

_Recovered = tuple[Recovery, list[LedgerRow]]


def kept_recovery(file: Path, train: Callable[[Path], _Recovered]) -> _Recovered:
    """A network's recovery with its costs: from a file if an earlier call finished it, otherwise trained now and written there.

    Args:
        file: ends with ``.json``, and has a name for these options and this network alone. The caller removes it.
        train: makes the recovery; it gets the folder for its checkpoints, which are dropped at the end.

    Raises:
        FileFormatError: the file is damaged.
    """
    if file.is_file():
        known = FinishedRecovery.of(read_json(file), str(file), "delete it")
        return Recovery.of(known), list(map(LedgerRow.from_json, known.ledger or ()))
    checkpoints = file.with_suffix("")
    point, rows = train(checkpoints)
    write_json(file, {**vars(point), "ledger": [row.to_json() for row in rows]})
    drop_checkpoints(checkpoints)
    return point, rows
