"""Progress is drawn in a terminal and told in plain lines elsewhere, always on standard error."""

import contextlib
import os
import pty
import re
import sys
import threading

import pytest
from command_line import done
from torch import nn

from prunekit._progress import tell, told, watched
from prunekit.cli.overall_progress import Overall, OverallOfJobs
from prunekit.cli.progress_bars import Bars
from prunekit.sampling import make_sampler
from prunekit.schedule import NoiseSchedule, Parameterization

HIDDEN, SHOWN = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """What is written to a terminal that stands in for standard error."""

    def __init__(self):
        self.text = b""

    @contextlib.contextmanager
    def __call__(self, monkeypatch):
        ours, theirs = pty.openpty()
        reader = threading.Thread(target=self._read, args=(ours,))
        reader.start()
        with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stream)
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", "100")
            yield self
            stream.flush()
        reader.join()
        os.close(ours)

    def _read(self, end):
        with contextlib.suppress(OSError):  # the other end is closed
            while part := os.read(end, 4096):
                self.text += part


def test_a_terminal_has_a_bar_with_the_time_left_that_is_taken_away(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr("rich.progress.monotonic", lambda: float(next(clock)), raising=False)
    with Terminal()(monkeypatch) as terminal, Bars().shown() as bars:
        for step in range(20):
            bars("sampling", step, 20, "images")
            bars._progress.refresh()
        bars("sampling", 20, 20, "")
    text = terminal.text.decode()
    assert "sampling" in text
    assert re.search(r"\d+ %", text)
    assert re.search(r"\d:\d\d:\d\d", text)
    assert text.rindex(SHOWN) > text.rindex(HIDDEN)


def test_ctrl_c_leaves_the_cursor_visible(monkeypatch):
    def interrupted():
        with Bars().shown() as bars:
            bars("sampling", 1, 20, "")
            raise KeyboardInterrupt

    with Terminal()(monkeypatch) as terminal, pytest.raises(KeyboardInterrupt):
        interrupted()
    text = terminal.text.decode()
    assert HIDDEN in text
    assert text.rindex(SHOWN) > text.rindex(HIDDEN)


def test_without_a_terminal_there_is_a_plain_line_a_minute_and_one_at_each_end_of_a_stage(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("prunekit.cli.progress_bars.time.monotonic", lambda: now[0])
    with Bars({"base": 1.0, "evaluate": 1.0}).shown() as bars:
        bars.stage("base", False)
        for second in range(150):
            now[0] = float(second)
            bars("training", second, 150, "loss 0.1")
        bars("training", 150, 150, "")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "base",
        "prunekit: training: 40 %, 1 min 30 s left, loss 0.1, run: 20 %, about 4 min 0 s left",
        "prunekit: training: 80 %, 30 s left, loss 0.1, run: 40 %, about 3 min 0 s left",
        "base: done after 2 min 29 s",
    ]


def test_work_that_is_met_halfway_has_a_time_left_by_what_was_seen_of_it(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("prunekit.cli.progress_bars.time.monotonic", lambda: now[0])
    with Bars(inside=False).shown() as bars:
        for done in (50, 51, 52):  # a training that goes on, or that a job has begun
            bars("group 3", done, 100, "")
            now[0] += 40.0
    assert capsys.readouterr().err.splitlines() == ["prunekit: group 3: 52 %, 32 min 0 s left"]


def test_a_stage_that_is_broken_off_has_stopped(capsys):
    def broken_off():
        with Bars({"base": 1.0}).shown() as bars:
            bars.stage("base", False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    assert capsys.readouterr().err.splitlines() == ["base", "base: stopped after 0 s"]


def before_the_evaluation(monkeypatch, kind):
    """A run whose base took 10 seconds and whose evaluation, which weighs as much, begins; and its clock."""
    now = [0.0]
    monkeypatch.setattr("prunekit.cli.progress_bars.time.monotonic", lambda: now[0])
    overall = kind({"base": 1.0, "evaluate": 1.0})
    overall.begin("base", False)
    now[0] = 10.0
    overall.within(1.0, "training")
    overall.begin("evaluate", False)
    return overall, now


@pytest.mark.parametrize("kind", [Overall, OverallOfJobs])
def test_a_stage_that_takes_longer_than_expected_is_judged_by_what_is_done_of_it(monkeypatch, kind):
    overall, now = before_the_evaluation(monkeypatch, kind)
    overall.within(0.0, "sampling")
    now[0] = 19.0  # nothing is done yet, though nearly all of the time has passed that the stage should take
    overall.within(0.0, "sampling")
    assert overall.said() == "run: 50 %, about 1 s left"
    now[0] = 40.0
    overall.within(0.0, "sampling")
    assert overall.said() == "run: 50 %, longer than expected"
    for share, said in ((0.25, "run: 62 %, at least 1 min 30 s left"), (0.5, "run: 75 %, at least 1 min 0 s left")):
        now[0] = 10 + 120 * share
        overall.within(share, "sampling")
        assert overall.said() == said
    now[0] = 130.0
    overall.within(1.0, "sampling")
    overall.within(0.0, "timing single images")
    assert overall.said() == "run: 99 %, longer than expected"


@pytest.mark.parametrize("kind", [Overall, OverallOfJobs])
def test_a_late_part_of_a_stage_leaves_room_for_those_that_follow(monkeypatch, kind):
    overall, now = before_the_evaluation(monkeypatch, kind)
    overall.within(0.0, "held-out losses")
    now[0] = 14.0
    overall.within(1.0, "held-out losses")
    assert overall.said() == "run: 70 %, about 6 s left"
    overall.within(0.0, "held-out losses")  # of the next network
    now[0] = 60.0
    overall.within(1.0, "held-out losses")
    assert overall.share == pytest.approx(0.5 + 0.5 * 50 / 90)
    overall.within(0.0, "sampling")
    now[0] = 70.0
    overall.within(0.01, "sampling")
    assert overall.said() == "run: 53 %, at least 16 min 30 s left"


@pytest.mark.parametrize("kind", [Overall, OverallOfJobs])
def test_a_run_never_has_less_time_left_than_its_stage(monkeypatch, kind):
    now = [0.0]
    monkeypatch.setattr("prunekit.cli.progress_bars.time.monotonic", lambda: now[0])
    overall = kind({"prune group 0": 1.0, "finetune group 0": 1.0, "report": 0.0})
    overall.begin("prune group 0", False)
    now[0] = 1.0
    overall.begin("finetune group 0", False)
    label = "training" if kind is Overall else "group 0"
    overall.within(0.0, label)
    now[0] = 101.0
    overall.within(0.1, label)
    assert overall.share == pytest.approx(0.55)
    assert overall.seconds_left == pytest.approx(900.0)


def test_the_run_s_time_left_falls_and_is_corrected_by_what_stages_took(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("prunekit.cli.progress_bars.time.monotonic", lambda: now[0])
    overall = Overall({"base": 1.0, "prune": 1.0, "evaluate": 2.0})
    assert overall.seconds_left is None
    overall.begin("base", False)
    left = []
    for second in range(1, 11):
        now[0] = float(second)
        overall.within(second / 10, "training")
        left.append(overall.seconds_left)
    assert left == pytest.approx([40 - second for second in range(1, 11)])
    overall.begin("prune", True)  # kept from before: neither work nor time
    overall.begin("evaluate", False)
    assert overall.seconds_left == pytest.approx(20)
    for second in range(11, 28):
        now[0] = float(second)
        overall.within(0.5, "held-out losses")
        assert overall.seconds_left == pytest.approx(30 - second)
    assert overall.share == pytest.approx(2 / 4)  # half of the losses before the first look, and none since


def test_a_stage_of_no_weight_and_a_finished_run_have_a_share(monkeypatch):
    overall = Overall({"base": 1.0})
    overall.begin("groups", False)
    assert overall.share == 0
    overall.begin("base", True)
    assert overall.share == 1


def test_work_tells_from_its_first_step_and_nobody_without_a_watcher():
    seen = []
    sampler = make_sampler("ddim", 4, Parameterization(NoiseSchedule.linear(10)), (1, 4, 4))

    class Noise(nn.Module):
        def forward(self, x, t):
            return x

    with watched(lambda *event: seen.append(event)):
        sampler(Noise(), 6, 0, batch_size=3)
    assert [event[1] for event in seen] == [0, *(round(24 * i / 8) for i in range(1, 9))]
    assert {event[2] for event in seen} == {24}
    seen.clear()
    tell("nothing", 1, 2)
    assert list(told("nothing", [1, 2])) == [1, 2]
    assert seen == []


def test_json_is_alone_on_standard_output_and_progress_on_standard_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prunekit.cli.progress_bars._MINUTE", 0.0)
    typed = done("prunekit sample embedded:digits --count 4 --num-inference-steps 3 --json")
    assert typed.json["count"] == 4
    lines = [line for line in typed.err.splitlines() if line.startswith("prunekit: sampling")]
    assert lines[0].startswith("prunekit: sampling: 0 %")
    assert "left" in lines[1]
    assert "\x1b" not in typed.err


def test_a_forked_process_draws_nothing(capsys):
    bars = Bars()
    bars._process -= 1
    bars._spoke = -1e9
    bars("sampling", 1, 2, "")
    assert capsys.readouterr().err == ""


def test_groups_that_run_at_the_same_time_have_one_overall_bar(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("prunekit.cli.overall_progress.time.monotonic", lambda: now[0])
    work = {
        "importance": 1.0,
        "prune group 0": 1.0,
        "prune group 1": 1.0,
        "finetune group 0": 3.0,
        "finetune group 1": 3.0,
    }
    overall = OverallOfJobs({**work, "evaluate": 3.0})
    assert overall.seconds_left is None
    overall.begin("importance", kept=True)
    assert overall.share == 1 / 12
    overall.begin("prune group 0", kept=False)
    overall.begin("prune group 1", kept=False)
    now[0] = 2.0
    overall.begin("finetune group 0", kept=False)  # the other group is still being pruned
    assert overall.share == 2 / 12
    assert overall.seconds_left == 20.0
    overall.begin("finetune group 1", kept=False)
    overall.within(0.5, "group 0")
    assert overall.share == pytest.approx(4.5 / 12)
    now[0] = 5.0
    before = overall.seconds_left
    overall.within(1.0, "group 1")
    assert overall.seconds_left < before
    overall.begin("evaluate", kept=False)
    overall.within(1.0, "held-out losses")  # the first of several parts
    assert overall.share == pytest.approx(9 / 12)
    overall.within(0.0, "sampling")
    now[0] = 5.5
    overall.within(0.5, "sampling")  # 8 of work took 5 s
    assert overall.share == pytest.approx((9 + 3 * 0.5 / 1.875) / 12)
    assert overall.seconds_left == pytest.approx(1.375)
    now[0] = 25.0
    overall.within(0.5, "sampling")
    assert overall.share == pytest.approx((9 + 1.5) / 12)
    assert overall.seconds_left == pytest.approx(20.0)


@pytest.mark.parametrize("kind", [Overall, OverallOfJobs])
def test_a_stage_within_another_one_does_not_end_it(kind):
    overall = kind({"a, seed 0": 1.0, "b, seed 0": 1.0})
    overall.begin("a, seed 0", kept=False)
    overall.begin("a, seed 0: importance", kept=False)
    overall.begin("a, seed 0: prune group 1", kept=False)
    assert overall.share == 0.0
    overall.begin("report", kept=False)
    assert overall.share == 0.5
