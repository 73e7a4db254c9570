"""Messages of the library name its own arguments; a command's user reads the flags that it has."""

import re
from pathlib import Path

import pytest

import prunekit
from prunekit.checkpoint import load_base
from prunekit.errors import FileFormatError

LIBRARY = Path(prunekit.__file__).parent
COMMANDS = {
    "recipe/endpoints.py",
    "recipe/reference.py",
    "report/provenance.py",
    "runs/manifest.py",
}  # write command lines, of prunekit or git
COMMAND = re.compile(r"`prunekit [^`]*`")
FLAG = re.compile(r"(?<![\w`-])--[a-z]+(-[a-z]+)*")


def test_an_error_names_the_flag_on_the_command_line_and_the_argument_in_python(run, tmp_path):
    import torch

    torch.save({"layer.weight": torch.zeros(2, 2)}, "bare.pt")
    code, _, err = run("cost", "bare.pt")
    assert code == 2
    assert "by --config." in err
    with pytest.raises(FileFormatError, match="by `config`"):
        load_base("bare.pt")


def test_an_argument_that_the_command_does_not_have_stays_an_argument(run):
    code, _, err = run("allocate", "--budget", "0.3", "--rule", "linear")
    assert code == 2
    assert "or the --rule auto" in err
    assert "`" not in err


def test_no_message_outside_the_command_line_names_a_flag():
    found = {
        f"{path.relative_to(LIBRARY)}: {line.strip()}"
        for path in sorted(LIBRARY.rglob("*.py"))
        if path.relative_to(LIBRARY).parts[0] != "cli" and str(path.relative_to(LIBRARY)) not in COMMANDS
        for line in path.read_text().splitlines()
        if FLAG.search(COMMAND.sub("", line))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("allocate --budget abc", "Got --budget 'abc'; expected a number;"),
        ("prune embedded:digits --target 80%", "Got --target '80%'; expected a number;"),
        ("groups --num-groups five", "Got --groups 'five'; expected a whole number;"),
        ("train --data digits --max-train-steps 1e3", "Got --max-train-steps '1e3'; expected a whole number;"),
        ("allocate --groups groups.json", "expected a whole number; for a file use --groups-file;"),
    ],
)
def test_a_text_where_a_number_belongs_is_shown(run, line, said):
    code, _, err = run(*line.split())
    assert code == 2
    assert said in err
    assert f"prunekit {line.split()[0]} --help` lists" in err
    assert len(err.splitlines()) == 1
