"""Ctrl-C and SIGTERM in a program that calls ``train``: the step is finished and saved, and then they do what they always do."""

import signal
import threading
from dataclasses import replace

import pytest
from tiny_training import OPTIONS, assert_same_run, checkpoint_steps, tiny_run

from prunekit._signals import Termination
from prunekit.training import Progress, TrainResult

RARELY = replace(OPTIONS, checkpoint_every=1000, log_every=1)


@pytest.fixture(autouse=True)
def _python_obeys_ctrl_c():
    """Where these tests run in the background of a shell, Ctrl-C is ignored from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def sent_at(step: int, *numbers: int):
    def report(progress: Progress) -> None:
        if progress.step == step:
            for number in numbers:
                signal.raise_signal(number)

    return report


@pytest.mark.parametrize("numbers", [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_ctrl_c_is_a_keyboard_interrupt_after_the_step_was_saved(tmp_path, numbers):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        tiny_run(tmp_path, sent_at(13, *numbers), RARELY)
    assert checkpoint_steps(tmp_path) == [13]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    resumed = tiny_run(tmp_path, options=RARELY)
    assert_same_run(resumed, tiny_run(options=RARELY))


def test_sigterm_that_a_program_survives_saves_every_time(tmp_path):
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:

        def report(progress: Progress) -> None:
            if progress.step in (7, 21):
                signal.raise_signal(signal.SIGTERM)
                assert len(came) == (progress.step == 21)

        result = tiny_run(tmp_path, report, RARELY)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [signal.SIGTERM] * 2
    assert checkpoint_steps(tmp_path) == [21, 40]
    assert_same_run(result, tiny_run(options=RARELY))


def test_without_a_folder_for_checkpoints_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt):
        tiny_run(None, sent_at(3, signal.SIGINT), RARELY)


def test_a_training_in_another_thread_leaves_signals_alone(tmp_path):
    """Python gives them to the main thread, which is not told that the other one trains."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen: list[list[object]] = []
    results: list[TrainResult] = []

    def report(_: Progress) -> None:
        seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

    thread = threading.Thread(target=lambda: results.append(tiny_run(tmp_path, report)))
    thread.start()
    thread.join()
    assert seen == [handlers] * 8
    assert_same_run(results[0], tiny_run())


def test_a_signal_that_nobody_obeyed_takes_its_effect_after_the_block():
    done = []

    def block() -> None:
        with Termination.noticed(True) as termination:
            signal.raise_signal(signal.SIGINT)
            assert termination.asked
            done.append("whole")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["whole"]


def test_a_signal_that_is_forgotten_has_no_effect():
    with Termination.noticed(True) as termination:
        signal.raise_signal(signal.SIGTERM)
        termination.forget()
    assert not termination.asked


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Termination.noticed(True) as termination:
            signal.raise_signal(signal.SIGINT)
            assert not termination.asked
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
