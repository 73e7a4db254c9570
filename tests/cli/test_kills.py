"""Commands that are killed and started again, in real processes; benchmarks/kills.py does it twenty times each."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from forking import forked

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def killed(command: str, where: Path) -> None:
    """Kill a command by SIGKILL and by Ctrl-C, with half the training of the benchmark; ``found.json`` has the counts."""
    sys.path.insert(0, str(BENCHMARKS))
    import kills

    case = kills.CASES[command]
    line, *before = (
        text.replace("--max-train-steps 120", "--max-train-steps 60") for text in (case.line, *case.before)
    )
    recipe = copy.deepcopy(kills.RECIPE)
    for section in ("base", "finetune"):
        recipe[section]["train"] |= {"steps": 20, "checkpoint_every": 4}
    kills.RECIPE = recipe
    moments = kills.random.Random(0)
    found = kills.measure(command, replace(case, line=line, before=tuple(before)), 2, moments, where)
    (where / "found.json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "prune", "finetune", "assemble", "run"])
def test_a_command_that_is_killed_ends_in_the_same_bytes_when_it_is_started_again(command, tmp_path):
    """Once by SIGKILL, once by Ctrl-C."""
    process = forked(killed, command, tmp_path)
    process.join()
    assert process.exitcode == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["differing"] == []
    assert (found["kills"], found["ctrl_c"], found["equal"]) == (2, 1, 2)
