"""What every command owes its user: tables that fit, errors as JSON, defaults in the help, and the next command."""

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Typed, done, typed
from typer.main import get_command

from prunekit.cli.app import MODULES, app
from prunekit.cli.console import print_table
from prunekit.training import TrainOptions

COMMANDS = get_command(app)
WITHOUT = {"schema"}  # its output is a file's content, with nothing after it


@pytest.mark.parametrize("name", MODULES)
def test_the_help_of_every_option_says_its_default(name: str) -> None:
    options = [one for one in COMMANDS.get_command(None, name).params if one.param_type_name == "option"]
    silent = [
        one.opts[0]
        for one in options
        if one.default is None
        and not (one.required or one.is_flag)
        and "default" not in one.help.lower()
        and "May be repeated" not in one.help
    ]
    assert silent == []


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_the_defaults_of_training_in_the_help_are_those_of_the_loop(name: str) -> None:
    from prunekit.recipe import FinetuneOptions

    settings = TrainOptions() if name == "train" else FinetuneOptions().train
    shown = {one.name: one.help for one in COMMANDS.get_command(None, name).params if "default: " in (one.help or "")}
    checked = 0
    for field, value in vars(settings).items():
        if field in shown:
            told = shown[field].split("default: ")[1].split(")")[0]
            own = dict(part.split(" for ")[::-1] for part in told.split(", ")) if " for " in told else {name: told}
            default = f"{value:g}" if isinstance(value, float) else "none" if value is None else str(value)
            assert own[name] == default, field
            checked += 1
    assert checked > 12


@pytest.mark.parametrize(
    ("line", "kind", "keys"),
    [
        ("prunekit allocate --budget 0.3 --rule linear --json", "BudgetError", {"feasible"}),
        ("prunekit cost nowhere.pt --json", "MissingFileError", set()),
        ("prunekit prune --colour --json", "InputError", set()),
        ("prunekit allocate --budget 0.3 --rule lineal --json", "InputError", set()),
        ("prunekit nothing --json", "InputError", set()),
    ],
)
def test_an_error_is_json_too(tmp_path: Path, line: str, kind: str, keys: set[str]) -> None:
    with contextlib.chdir(tmp_path):
        result = typed(line)
    error = result.json["error"]
    assert result.code == error["exit_code"] == 2
    assert error["type"] == kind
    assert f"prunekit: {error['message']}\n" == result.err
    assert error.keys() == {"type", "message", "exit_code"} | keys


def test_a_message_is_printed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.cli import planning

    def twice(*_: object) -> None:
        for _ in range(2):
            logging.getLogger("prunekit.anything").warning("It is so.")

    monkeypatch.setattr(planning, "show_allocation", twice)
    with contextlib.chdir(tmp_path):
        assert done("prunekit allocate --budget 0.8").err == "prunekit: It is so.\n"


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_a_table_fits_the_terminal_and_loses_no_number(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    header = ["module", "operator", *(f"counter {i}" for i in range(8))]
    rows = [
        [
            f"up_blocks.{row}.attentions.0.transformer",
            "scaled_dot_product",
            *(f"{10**9 + row * 8 + i:,}" for i in range(8)),
        ]
        for row in range(3)
    ]
    print_table("Whole", header, rows)
    whole = capsys.readouterr().out
    assert max(map(len, whole.splitlines())) > columns
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table("Fitted", header, rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    fitted = {word for line in lines for word in line.split()}
    assert {word for word in whole.split() if word[:1].isdigit()} <= fitted
    assert {word for word in fitted if word.startswith("…")}  # the names' ends, which differ
    assert sum(line.lstrip().startswith("module") for line in lines) > 1


def wide(result: Typed) -> list[str]:
    """Lines that a terminal of 80 columns would fold, except commands to be pasted."""
    return [line for line in result.out.splitlines() if len(line) > 80 and not line.startswith("Next: ")]


@pytest.mark.parametrize(
    "line",
    [
        "prunekit",
        "prunekit --help",
        "prunekit groups --method snr",
        "prunekit allocate --budget 0.8 --base embedded:digits",
        "prunekit cost embedded:digits",
        "prunekit cost experts",
        "prunekit consistency base.pt experts --count 2 --num-inference-steps 2 --output OUT/c",
        "prunekit report .",
        *(f"prunekit {name} --help" for name in MODULES),
    ],
)
def test_nothing_is_wider_than_80_columns(
    line: str, typed_once: dict[str, Typed], desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(desk, tmp_path / "desk")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path / "desk")
    assert wide(done(line.replace("OUT", str(tmp_path / "out")))) == []


def test_what_the_main_job_printed_has_tables_of_at_most_80_columns(typed_once: dict[str, Typed]) -> None:
    """Without ``COLUMNS``, as in a pipe: these tables need no fitting."""
    for name in ("allocate", "prune 3", "prune", "evaluate"):
        lines = typed_once[name].out.splitlines()
        (at, *_) = [i for i, line in enumerate(lines) if line.startswith("──")]
        assert max(map(len, lines[at - 1 : at + 6])) <= 80, name


def test_every_command_of_the_main_job_ends_with_the_next_one(typed_once: dict[str, Typed]) -> None:
    following = {
        name: next(line for line in reversed(result.out.splitlines()) if line.startswith("Next: ")).removeprefix(
            "Next: "
        )
        for name, result in typed_once.items()
    }
    assert following == {
        "allocate": "prunekit prune BASE",
        "prune 3": "prunekit prune embedded:digits --group 0 --group 1 --group 2 --group 4",
        "finetune 3": "prunekit prune embedded:digits --group 0 --group 1 --group 2 --group 4",
        "prune": "prunekit finetune slim",
        "assemble": "prunekit evaluate experts --base base.pt",
        "sample": "prunekit evaluate experts/ --base base.pt",
        "evaluate": "prunekit report .",
        "importance": "prunekit prune base.pt",
    }


def test_an_evaluation_without_a_plan_is_not_followed_by_a_report_that_would_be_refused(tmp_path: Path) -> None:
    few = "--count 8 --seeds 1 --loss-samples 4 --num-inference-steps 2"
    with contextlib.chdir(tmp_path):
        said = done(f"prunekit evaluate embedded:digits {few}").out.splitlines()
    assert said[-1] == "Next: prunekit allocate --budget 0.8 --base embedded:digits"
    assert "group              model" in said  # it is no expert


def test_json_has_no_suggestion(tmp_path: Path) -> None:
    with contextlib.chdir(tmp_path):
        for line in ("groups", "allocate --budget 0.8"):
            assert "Next" not in json.dumps(done(f"prunekit {line} --json").json)


@pytest.mark.parametrize("line", ["", "--help", "groups --help", "groups --groups 3"])
def test_a_closed_output_ends_a_command_without_a_word(line: str, tmp_path: Path) -> None:
    """As with ``| head``: the exit code is that of a program that the signal ended, and a file that was made is there."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", "from prunekit.cli.app import main; main()", *line.split()]
    ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, check=False)  # noqa: S603
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, b"")
    assert (tmp_path / "groups.json").is_file() == (line == "groups --groups 3")
