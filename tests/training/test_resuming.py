"""A training that is interrupted, or killed, ends in the bytes of one that is not."""

import random
import resource
import shutil
import signal
import time
import warnings
from dataclasses import asdict, dataclass, replace

import pytest
from forking import forked
from tiny_training import (
    OPTIONS,
    SAMPLER,
    T,
    assert_same_run,
    checkpoint_steps,
    tiny_net,
    tiny_objective,
    tiny_run,
    train_in,
)

from prunekit.errors import FileFormatError, InputError
from prunekit.training import Progress, RangeTimesteps, TrainOptions, train
from prunekit.training.checkpoints import latest_checkpoint, save_checkpoint


class Interruption(Exception):
    pass


def interrupt_at(step: int):
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Interruption

    return report


@pytest.mark.parametrize("step", [5, 20, 40])
def test_an_interrupted_training_ends_in_the_same_bytes(tmp_path, uninterrupted, step):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(step))
    assert checkpoint_steps(tmp_path) == [done for done in (step - 10, step - 5) if done > 0]
    reported: list[Progress] = []
    resumed = tiny_run(tmp_path, reported.append)
    assert reported[0].step == step  # nothing is trained twice
    assert_same_run(resumed, uninterrupted)


def test_many_interruptions_end_in_the_same_bytes(tmp_path, uninterrupted):
    for step in (10, 15, 35):
        with pytest.raises(Interruption):
            tiny_run(tmp_path, interrupt_at(step))
    assert_same_run(tiny_run(tmp_path), uninterrupted)


@dataclass(frozen=True)
class LaterOptions(TrainOptions):
    """Of a later version, which can do more."""

    also: int = 0


def test_an_option_that_is_new_and_not_used_lets_a_training_go_on(tmp_path, uninterrupted):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(20))
    reported: list[Progress] = []
    later = LaterOptions(**asdict(OPTIONS))
    assert_same_run(tiny_run(tmp_path, reported.append, later), uninterrupted)
    assert reported[0].step == 20
    with pytest.raises(FileFormatError, match="other options"):
        tiny_run(tmp_path, options=replace(later, also=1))


def test_a_truncated_newest_checkpoint_costs_its_steps_and_nothing_else(tmp_path, uninterrupted):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(30))
    newest = max(tmp_path.glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:1000])
    reported: list[Progress] = []
    with pytest.warns(UserWarning, match=newest.name):
        resumed = tiny_run(tmp_path, reported.append)
    assert reported[0].step == 25  # from 20, since 25 was damaged
    assert_same_run(resumed, uninterrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and the damaged file is gone
        tiny_run(tmp_path)


def test_a_finished_training_is_not_trained_again(tmp_path, uninterrupted):
    tiny_run(tmp_path)
    reported: list[Progress] = []
    assert_same_run(tiny_run(tmp_path, reported.append), uninterrupted)
    assert reported == []


def test_at_most_two_checkpoints_are_kept(tmp_path):
    seen: list[list[int]] = []
    tiny_run(tmp_path, lambda _: seen.append(checkpoint_steps(tmp_path)))
    assert max(map(len, seen)) == 2
    assert checkpoint_steps(tmp_path) == [35, 40]


def test_checkpoints_come_when_they_are_due_also_between_reports(tmp_path):
    seen: set[int] = set()
    options = replace(OPTIONS, steps=20, checkpoint_every=6, log_every=4)
    whole = tiny_run(tmp_path / "whole", lambda _: seen.update(checkpoint_steps(tmp_path / "whole")), options)
    assert seen | set(checkpoint_steps(tmp_path / "whole")) == {6, 12, 18, 20}
    with pytest.raises(Interruption):
        tiny_run(tmp_path / "broken", interrupt_at(16), options)
    assert checkpoint_steps(tmp_path / "broken") == [6, 12]
    assert_same_run(tiny_run(tmp_path / "broken", options=options), whole)


CHANGES = {
    "options": lambda: (tiny_net(), tiny_objective(), SAMPLER, replace(OPTIONS, learning_rate=1e-3)),
    "seed": lambda: (tiny_net(), tiny_objective(), SAMPLER, replace(OPTIONS, seed=1)),
    "timesteps": lambda: (tiny_net(), tiny_objective(), RangeTimesteps(0, T - 1), OPTIONS),
    "images": lambda: (tiny_net(), tiny_objective(seed=1), SAMPLER, OPTIONS),
    "prediction type": lambda: (tiny_net(), tiny_objective("sample"), SAMPLER, OPTIONS),
    "first weights": lambda: (tiny_net(seed=1), tiny_objective(), SAMPLER, OPTIONS),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_checkpoints_of_another_training_are_refused(tmp_path, change):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(10))
    before = checkpoint_steps(tmp_path)
    with pytest.raises(FileFormatError, match=str(tmp_path)):
        train(*change(), checkpoints=tmp_path)
    assert checkpoint_steps(tmp_path) == before


def started(folder, **options):
    """A process that trains in a folder."""
    folder.mkdir(exist_ok=True)
    return forked(train_in, folder, options)


def finished(folder, **options):
    """The weights of a training that nobody disturbs."""
    process = started(folder, **options)
    process.join()
    assert process.exitcode == 0
    return (folder / "weights").read_bytes()


@pytest.mark.slow
def test_a_killed_process_ends_in_the_same_bytes(tmp_path):
    """Real processes, killed at random moments, many of them while they write a checkpoint."""
    moments = random.Random(0)  # noqa: S311 - moments of kills
    options = {"steps": 500, "checkpoint_every": 1, "log_every": 1}  # so many that a busy machine kills in time
    killed, broken = 0, tmp_path / "broken"
    whole = finished(tmp_path / "whole", **options)
    while killed < 22 and not (broken / "weights").exists():
        known = checkpoint_steps(broken / "checkpoints")
        process = started(broken, **options)
        deadline = time.monotonic() + 20
        while checkpoint_steps(broken / "checkpoints") == known and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.012))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert len(checkpoint_steps(broken / "checkpoints")) <= 3  # two, and one that was about to be removed
    assert finished(broken, **options) == whole
    assert killed >= 20


@pytest.mark.slow
def test_a_process_that_is_told_to_end_saves_its_last_step_first(tmp_path):
    """As a cluster does it: SIGTERM, between checkpoints and between reports."""
    options = {"steps": 400, "checkpoint_every": 400, "log_every": 100}
    broken, saved = tmp_path / "broken", []
    began = time.monotonic()
    whole = finished(tmp_path / "whole", **options)
    took = time.monotonic() - began
    for _ in range(5):  # whatever the machine's speed, some are neither too early nor too late
        process = started(broken, **options)
        time.sleep(0.15 * took)
        process.terminate()
        process.join()
        if process.exitcode == 0:
            break
        saved += checkpoint_steps(broken / "checkpoints")[-1:]
    assert finished(broken, **options) == whole
    assert saved
    assert saved == sorted(set(saved))
    assert any(step % 100 for step in saved)


def test_the_signal_that_ends_a_process_is_as_before_once_the_training_is_over(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    tiny_run(tmp_path, options=replace(OPTIONS, steps=2))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_at_the_first_checkpoint_promises_no_earlier_one(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match=r"step 5 could not be written.*; there is none before it: make room"):
            tiny_run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path, uninterrupted):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(20))
    assert checkpoint_steps(tmp_path) == [10, 15]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (1000, before[1])
    )  # no file may grow longer: the write fails as on a full disk
    try:
        with pytest.raises(
            InputError, match=r"step 20 could not be written.*; the ones before it are whole: make room"
        ):
            tiny_run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert checkpoint_steps(tmp_path) == [10, 15]
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt"}
    assert_same_run(tiny_run(tmp_path), uninterrupted)


@pytest.mark.parametrize("change", [{"steps": 60}, {"batch_size": 8}])
def test_more_steps_and_another_batch_size_resume_with_a_warning(tmp_path, caplog, change):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(20))
    changed, reported = replace(OPTIONS, **change), []
    with caplog.at_level("WARNING", "prunekit"):
        resumed = tiny_run(tmp_path, reported.append, changed)
    (name, value), before = *change.items(), getattr(OPTIONS, next(iter(change)))
    assert f"resumes at step 15 with other options ({name} from {before} to {value})" in caplog.text
    assert reported[0].step == 15 + changed.log_every
    assert resumed.samples == 15 * OPTIONS.batch_size + (changed.steps - 15) * changed.batch_size


def test_fewer_steps_than_are_done_and_other_changes_are_refused(tmp_path):
    with pytest.raises(Interruption):
        tiny_run(tmp_path, interrupt_at(20))
    with pytest.raises(InputError, match="is at step 15 already; got steps 10: expected at least as many"):
        tiny_run(tmp_path, None, replace(OPTIONS, steps=10))
    with pytest.raises(FileFormatError, match="with other options, images or first weights"):
        tiny_run(tmp_path, None, replace(OPTIONS, steps=60, learning_rate=0.123))


def continued(folder=None, report=None, **changes):
    """Steps 12 to 40 of a training that goes on from an earlier one."""
    return train(tiny_net(), tiny_objective(), SAMPLER, replace(OPTIONS, **changes), folder, report, start=12)


def test_a_training_that_goes_on_from_an_earlier_one_counts_its_own_steps():
    """Losses are means since the last log or since it began, and samples are those of this training."""
    fine = [loss for _, loss in continued(log_every=1).losses]
    found = continued(log_every=15)
    assert [step for step, _ in found.losses] == [15, 30, 40]
    for (_, loss), part in zip(found.losses, (fine[:3], fine[3:18], fine[18:]), strict=True):
        assert loss == pytest.approx(sum(part) / len(part), rel=1e-5)
    assert found.samples == 28 * 16
    first = continued(log_every=60)
    assert first.losses == [(40, pytest.approx(sum(fine) / 28, rel=1e-5))]


@pytest.mark.parametrize("older", [False, True])
def test_it_resumes_from_its_own_checkpoints_and_from_those_of_an_older_version(tmp_path, older):
    whole = continued(log_every=15, checkpoint_every=10)
    with pytest.raises(Interruption):
        continued(tmp_path, interrupt_at(30), log_every=15, checkpoint_every=10)
    state = latest_checkpoint(tmp_path)
    assert (state["step"], state["samples"]) == (20, 8 * 16)
    if older:
        del state["start"]
        state["samples"] = 20 * 16
        shutil.rmtree(tmp_path)
        save_checkpoint(tmp_path, 20, state, 2)
    assert_same_run(continued(tmp_path, log_every=15, checkpoint_every=10), whole)
