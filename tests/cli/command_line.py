"""Typing a command line, and what came of it."""

import contextlib
import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prunekit.cli.app import main

TINY = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Typed:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """All of standard output as JSON; anything else there is an error."""
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line of standard error, without what is told of the base and, on a busy machine, of the progress."""
        told = re.compile(r"does not say its noise schedule and prediction type|s so far\)")
        (line,) = [line for line in self.err.splitlines() if line.strip() and not told.search(line)]
        return line


def typed(line: str) -> Typed:
    """Type a command line where the process stands."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", line.split())
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Typed(code, out.getvalue(), err.getvalue())


def done(line: str) -> Typed:
    """Type a command line that must succeed."""
    result = typed(line)
    assert result.code == 0, result.err
    return result


def listing(folder: Path) -> dict[str, str]:
    """Every path with the hash of its content, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
    }
