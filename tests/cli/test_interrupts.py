"""Ctrl-C and SIGTERM: what was made is kept, the command that goes on is printed, and the result has the same bytes."""

import io
import json
import os
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from command_line import TINY, listing
from forking import forked_command, succeeded

from prunekit.cli import main
from prunekit.cli.interrupts import ends_at_signals

SIGNALS = pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, id="sigint"), pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.slow)],
)
OFTEN, NEVER = "--checkpointing-minutes 0.002", "--checkpointing-minutes 100"


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    (tmp_path / "model.json").write_text(json.dumps(TINY))
    return tmp_path


def interrupted(folder: Path, words: list[str], number: int, when: Callable[[], bool]) -> str:
    """What a command says that gets a signal once something is the case; empty where it was done before."""
    command, until = forked_command(folder, words), time.monotonic() + 60
    while not when() and command.is_alive() and time.monotonic() < until:
        time.sleep(0.002)
    signalled(command, number)
    command.join()
    said = (folder / "err").read_text()
    assert "Traceback" not in said
    if command.exitcode == 0:
        return ""
    assert command.exitcode == 130, said
    return said.strip().splitlines()[-1]


def signalled(command: BaseProcess, number: int) -> None:
    with suppress(ProcessLookupError):  # it was faster
        assert command.pid
        os.kill(command.pid, number)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:13]) for path in folder.glob("step-*.pt"))


def continued(said: str) -> list[str]:
    """The command that an interrupted one names."""
    return shlex.split(said.split("Continue with: ")[1])


def finished_by_and_by(folder: Path, words: list[str], number: int, checkpoints: Path) -> int:
    """Interrupt a training at random moments, and go on by the command that it names, until it is done; how often that was."""
    moments, saved = random.Random(number), [0]  # noqa: S311 - moments of signals
    while len(saved) < 20:
        known, pause = steps_in(checkpoints), moments.uniform(0, 0.1)

        def later(known: list[int] = known, pause: float = pause) -> bool:
            begun = steps_in(checkpoints) != known
            time.sleep(pause * begun)
            return begun

        said = interrupted(folder, words, number, later if len(saved) < 4 else lambda: False)
        if not said or not steps_in(checkpoints):  # it was done, or the signal came after the result was written
            return len(saved) - 1
        saved.append(steps_in(checkpoints)[-1])
        assert f"the training is saved at step {saved[-1]} in {checkpoints.relative_to(folder)}. " in said
        assert saved[-1] > saved[-2]  # this start went on from the one before
        words = continued(said)
    raise AssertionError("it never came to its end")


class Interrupting:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGTERM)  # workers of xdist ignore SIGINT


def test_an_interruption_that_python_drops_comes_again(capsys):
    def dropped() -> None:
        with ends_at_signals():
            Interrupting()
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        dropped()
    assert capsys.readouterr() == ("", "")


class Late(io.StringIO):
    """A standard output at which Ctrl-C comes when it is flushed, so after the end of the command."""

    def flush(self) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("groups --groups 2 --output groups.json", "Interrupted; groups.json is written."),
        ("prune embedded:digits --group 3 --target 0.9 --proposer uniform", "Interrupted; slim/group-3 is written."),
        ("cost embedded:digits", "Interrupted. Nothing was written."),
    ],
)
def test_a_command_that_is_interrupted_after_its_end_says_what_is_written(words, said, desk, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setattr("sys.argv", ["prunekit", *words.split()])
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Late())
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == f"prunekit: {said}\n"


@pytest.mark.slow
@SIGNALS
def test_an_interrupted_train_ends_in_the_same_bytes(desk, number):
    train = f"prunekit train --config model.json --max-train-steps 40 --train-batch-size 4 {OFTEN} --output".split()
    succeeded(desk, [*train, "whole.pt"])
    checkpoints = desk / "it's mine.pt.checkpoints"
    assert finished_by_and_by(desk, [*train, "it's mine.pt"], number, checkpoints)
    assert (desk / "it's mine.pt").read_bytes() == (desk / "whole.pt").read_bytes()
    assert set(listing(desk)) == {"model.json", "whole.pt", "it's mine.pt", "out", "err"}


@pytest.mark.slow
@SIGNALS
def test_an_interrupted_finetune_ends_in_the_same_bytes(desk, number):
    line = "prunekit prune embedded:digits --group 3 --target 0.8 --proposer oneshot --samples 16"
    succeeded(desk, line.split())
    (desk / "slim" / "search-3.jsonl").unlink()
    shutil.copytree(desk / "slim" / "group-3", desk / "broken" / "group-3")
    tune = f"--max-train-steps 48 --train-batch-size 4 {OFTEN}".split()
    succeeded(desk, ["prunekit", "finetune", "slim/group-3", *tune])
    checkpoints = desk / "broken" / ".group-3.checkpoints"
    words = ["prunekit", "finetune", "broken/group-3", *tune]
    assert finished_by_and_by(desk, words, number, checkpoints)
    assert listing(desk / "broken") == listing(desk / "slim")


def test_a_step_that_no_checkpoint_was_due_at_is_saved_at_once(desk):
    """The step's loss is not reported either; a second Ctrl-C while it saves changes nothing."""
    words = f"prunekit train --config model.json --max-train-steps 5000 --train-batch-size 4 {NEVER}".split()
    checkpoints = desk / "base.pt.checkpoints"
    command = forked_command(desk, words)
    time.sleep(2)
    for _ in range(3):
        signalled(command, signal.SIGINT)
        time.sleep(0.002)
    command.join()
    assert command.exitcode == 130
    (step,) = steps_in(checkpoints)
    assert 0 < step < 5000
    said = (desk / "err").read_text()
    assert f"Interrupted; the training is saved at step {step} in base.pt.checkpoints. Continue with: " in said
    assert said.count("Interrupted") == 1
    assert [path.suffix for path in checkpoints.iterdir()] == [".pt"]


def test_the_command_that_goes_on_does_not_start_anew(desk):
    words = f"prunekit train --config model.json --max-train-steps 5000 {OFTEN} --resume-from-checkpoint no".split()
    said = interrupted(desk, words, signal.SIGINT, lambda: bool(steps_in(desk / "base.pt.checkpoints")))
    assert continued(said) == words[:-2]


@pytest.mark.slow
@SIGNALS
def test_an_interrupted_prune_ends_in_the_same_bytes(desk, number):
    line = "prunekit prune embedded:digits --group 2 --target 0.7 --samples 16 --rounds 1 --output"
    prune = line.split()
    succeeded(desk, [*prune, "whole"])
    journal = desk / "broken" / "search-2.jsonl"
    words, broken = [*prune, "broken"], 0
    for entries in (2, 5, 1000):

        def measured(entries: int = entries) -> bool:
            return journal.is_file() and journal.read_bytes().count(b"\n") >= entries

        said = interrupted(desk, words, number, measured)
        if not said:
            break
        broken += 1
        assert "what was measured is kept in broken/search-2.jsonl. " in said
        assert not (desk / "broken" / "group-2").exists()
        assert journal.read_bytes().endswith(b"\n")
        words = continued(said)
    assert broken
    assert listing(desk / "broken") == listing(desk / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["sigint", "sigkill"])
def test_a_prune_that_is_stopped_while_it_decides_on_branches_ends_in_the_same_bytes(desk, number):
    """What was measured before is never measured again: the journal is that of the uninterrupted search, byte for byte."""
    line = "prunekit prune embedded:digits --group 2 --target 0.7 --samples 16 --rounds 1 --shrink both --output"
    succeeded(desk, [*line.split(), "whole"])
    journal, words, broken = desk / "broken" / "search-2.jsonl", [*line.split(), "broken"], 0

    def of_branches(path: Path) -> int:
        """Candidates of the last decision, on branches, that are in a journal: its rounds have no number."""
        return path.read_bytes().count(b'"round": -1') if path.is_file() else 0

    last = of_branches(desk / "whole" / "search-2.jsonl")
    assert last > 3
    for entries in (1, last // 2):
        command, until = forked_command(desk, words), time.monotonic() + 120
        while of_branches(journal) < entries and command.is_alive() and time.monotonic() < until:
            time.sleep(0.002)
        signalled(command, number)
        command.join()
        if command.exitcode == 0:
            break
        broken += 1
        assert command.exitcode == (130 if number == signal.SIGINT else -number)
        assert not (desk / "broken" / "group-2").exists()
        measured = journal.read_bytes().split(b"\n")[:-1]
        assert (desk / "whole" / "search-2.jsonl").read_bytes().split(b"\n")[: len(measured)] == measured
    assert broken
    succeeded(desk, words)
    assert listing(desk / "broken") == listing(desk / "whole")


@pytest.mark.parametrize(
    "line",
    [
        "prunekit sample embedded:digits --count 4000 --num-inference-steps 900",
        "prunekit importance embedded:digits --samples 100000",
        "prunekit evaluate embedded:digits --count 4000 --num-inference-steps 900",
    ],
    ids=lambda line: line.split()[1],
)
def test_a_command_that_keeps_nothing_says_so(desk, line):
    pause = time.monotonic() + 1.0
    said = interrupted(desk, line.split(), signal.SIGINT, lambda: time.monotonic() > pause)
    assert said == "prunekit: Interrupted. Nothing was written."
    assert set(listing(desk)) == {"model.json", "out", "err"}
