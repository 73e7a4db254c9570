"""The memory bank on disk: searches that stop anywhere go on to the same plan."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tiny_search
from forking import forked, forked_ranks
from loopback import loopback
from tiny_search import trained

from prunekit.errors import InputError
from prunekit.search import Endpoint, Journal

DETERMINISTIC = ["greedy", "evolution", "tpe"]


@pytest.fixture(scope="module")
def tiny():
    return trained()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "search.jsonl"


def entries(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_journal_is_the_memory_behind_a_header(tiny, path, name):
    found = tiny.search(name, journal=path)
    header, *rest = entries(path)
    assert set(header) == {"format", "key"}
    assert rest == found.memory
    assert found.memory == tiny.search(name).memory


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_finished_search_is_answered_without_measuring(tiny, path, name):
    first = tiny.search(name, journal=path)
    content, before = path.read_bytes(), len(tiny.evaluated)
    again = tiny.search(name, journal=path)
    assert (again.plan, again.memory) == (first.plan, first.memory)
    assert len(tiny.evaluated) == before
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_wherever_the_file_ends_the_search_goes_on_to_the_same_plan_and_the_same_file(tiny, path, name):
    whole = tiny.search(name, journal=path)
    content = path.read_bytes()
    cuts = random.Random(name).sample(range(len(content)), 12)  # noqa: S311 - places to cut at
    for cut in [0, 1, content.index(b"\n"), content.index(b"\n") + 1, len(content) - 1, *cuts]:
        path.write_bytes(content[:cut])
        kept = [json.loads(line) for line in content[:cut].split(b"\n")[1:-1]]
        before = len(tiny.evaluated)
        found = tiny.search(name, journal=path)
        assert found.plan == whole.plan
        assert path.read_bytes() == content
        known = sum("steps" in entry and "chosen" not in entry for entry in kept)
        assert len(tiny.evaluated) - before == len(whole.measured) - known
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "changed", [{"ratio": 0.7}, {"rounds": 5}, {"of": "params"}, {"name": "oneshot"}, {"proxy": "bias"}]
)
def test_a_journal_of_another_search_is_moved_aside_and_said(tiny, path, caplog, changed):
    tiny.search("greedy", journal=path)
    content = path.read_bytes()
    asked = {"name": "greedy", **changed}
    try:
        found = tiny.search(**asked, journal=path)
    except Exception as error:  # a proxy may refuse the network; the journal is not its
        pytest.skip(str(error))
    assert path.with_name("search.jsonl.old").read_bytes() == content
    assert found.memory == tiny.search(**asked).memory
    assert "journal of another search" in caplog.text


def test_other_weights_are_another_search(path):
    one, other = trained(), trained()
    one.search("greedy", journal=path)
    next(other.model.parameters()).data[0, 0] += 0.5
    assert other.search("greedy", journal=path).memory == other.search("greedy").memory


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"round": 1}',
        b'{"round": 1, "steps": [1], "macs": 3, "loss": NaN}',
        b'{"round": 1, "steps": ["a"], "macs": 3, "loss": 0.5}',
        b'{"round": 1, "steps": [1], "macs": 3, "loss": "low"}',
        b"[" * 100_000,
        b"\xff\x00",
    ],
)
def test_nothing_after_a_line_that_cannot_be_read_is_believed(tiny, path, caplog, line):
    whole = tiny.search("greedy", journal=path)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], line + b"\n", *lines[4:]]))
    before = len(tiny.evaluated)
    assert tiny.search("greedy", journal=path).plan == whole.plan
    assert path.read_bytes() == content
    assert len(tiny.evaluated) - before == len(whole.measured) - 3
    assert "line 5 cannot be read" in caplog.text


def test_a_file_that_is_no_journal_is_kept_aside(tiny, path):
    path.parent.mkdir()
    path.write_text("dear diary\n")
    tiny.search("greedy", journal=path)
    assert path.with_name("search.jsonl.old").read_text() == "dear diary\n"


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        Journal.open(tmp_path, "key")


def test_what_a_language_model_said_is_not_asked_again(tiny, path):
    with loopback() as server:
        asked = {"llm": Endpoint(server.url, "tiny")}
        whole = tiny.search("llm", journal=path, **asked)
        content, questions = path.read_bytes(), len(server.asked)
        assert questions == 4
        lines = content.splitlines(keepends=True)
        for kept in range(1, len(lines)):
            path.write_bytes(b"".join(lines[:kept]))
            said = sum("ratios" in json.loads(line) for line in lines[:kept])
            before = len(server.asked)
            assert tiny.search("llm", journal=path, **asked).plan == whole.plan
            assert path.read_bytes() == content
            assert len(server.asked) - before == questions - said


def whole_search(name, folder, proxy="loss"):
    """A search that nobody disturbs."""
    folder.mkdir(exist_ok=True)
    process = forked(tiny_search.main, name, folder, 0, proxy)
    process.join()
    assert process.exitcode == 0


def launched(*arguments):
    """Two ranks, started as a user starts them; gloo where there is no GPU, for all that the flag says."""
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, *launcher, tiny_search.__file__, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, check=False)  # noqa: S603 - our own script
    assert done.returncode == 0, done.stderr.decode()


def forked_alike(*arguments):
    """Two ranks, told of each other as the launcher would tell them."""
    processes = forked_ranks(2, tiny_search.main, *arguments)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["greedy", "evolution"])
def test_killed_at_any_moment_it_ends_at_the_same_plan_and_measures_nothing_twice(tmp_path, name):
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    killed.mkdir()
    whole_search(name, calm)
    rng = random.Random(name)  # noqa: S311 - moments to kill at
    size = (calm / "search.jsonl").stat().st_size
    moments = sorted(rng.sample(range(size - 200), 5))
    journal = killed / "search.jsonl"
    for moment in moments:
        process = forked(tiny_search.main, name, killed, 0.02, "loss")
        while process.is_alive() and not (journal.is_file() and journal.stat().st_size >= moment):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    whole_search(name, killed)
    assert (killed / "plan-0.json").read_bytes() == (calm / "plan-0.json").read_bytes()
    assert journal.read_bytes() == (calm / "search.jsonl").read_bytes()
    evaluated, once = ((folder / "evaluated-0.txt").read_text().split() for folder in (killed, calm))
    assert len(evaluated) <= len(once) + len(moments)  # what was under way when it was killed, and no more
    steps = [str(entry["steps"]) for entry in entries(journal)[1:] if "chosen" not in entry]
    assert len(set(steps)) == len(steps) == len(once)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "proxy", "start"),
    [("greedy", "loss", launched), ("greedy", "least-squares", forked_alike), ("evolution", "loss", forked_alike)],
)
def test_two_ranks_share_the_work_and_end_at_the_plan_of_one_process(tmp_path, name, proxy, start):
    one, two = tmp_path / "one", tmp_path / "two"
    two.mkdir()
    whole_search(name, one, proxy)
    start(name, two, 0.02, proxy)
    plan = (one / "plan-0.json").read_bytes()
    assert (two / "plan-0.json").read_bytes() == (two / "plan-1.json").read_bytes() == plan
    assert (two / "search.jsonl").read_bytes() == (one / "search.jsonl").read_bytes()
    shares = [len((two / f"evaluated-{rank}.txt").read_text().split()) for rank in (0, 1)]
    alone = len((one / "evaluated-0.txt").read_text().split())
    assert sum(shares) >= alone
    assert 0.3 * alone < min(shares)
    assert max(shares) < 0.9 * alone
