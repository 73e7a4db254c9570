"""Commands that are killed and started again, in real processes; benchmarks/kills.py does it twenty times each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "prune", "finetune", "assemble", "run"])
def test_a_command_that_is_killed_ends_in_the_same_bytes_when_it_is_started_again(command):
    """Once by SIGKILL, once by Ctrl-C."""
    process = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, SCRIPT, "--only", command, "--kills", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stdout + process.stderr
