"""Groups beside each other: the same bytes as in turn; groups that fail, die or are preempted; runs that are killed."""

import json
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from forking import forked
from micro_recipe import STAGES, Spy, micro
from small_run import PreemptedRun, SmallRun

from prunekit._files import sha256_file, write_json
from prunekit._json import read_json
from prunekit._signals import Termination
from prunekit.errors import FileFormatError, InputError, UnfinishedError
from prunekit.recipe import FinetuneOptions
from prunekit.runs import executors
from prunekit.runs.clusters import Submitit, parsed_options
from prunekit.runs.executors import Executor, Processes
from prunekit.runs.experts_run import Run
from prunekit.runs.group_tuning import Tuning, tune_together
from prunekit.runs.jobs import Job

HERE = Path(__file__).parent


class Inline:
    """An executor without processes: copies of jobs are done where they are started."""

    def __init__(self, retries: int = 1, width: int | None = None) -> None:
        self.retries, self.width, self.threads = retries, width, None
        self.started: list[list[str]] = []

    def start(self, jobs: Sequence[Job]) -> list["Done"]:
        self.started.append([job.name for job in jobs])
        for job in jobs:
            pickle.loads(pickle.dumps(job))()  # noqa: S301 - as a process gets it
        return [Done(job.diary) for job in jobs if job.diary is not None]


class Done:
    def __init__(self, diary: Path) -> None:
        self.diary = diary

    def ended(self) -> bool:
        return True

    def cause(self) -> str:
        return "no word"

    def stop(self) -> None:
        raise AssertionError("it has ended")


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes import the runs of these tests."""
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    )


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., tuple[Spy, SmallRun]]:
    def make(executor: Executor | None, **plan: list[str]) -> tuple[Spy, SmallRun]:
        folder, spy = tmp_path / "run", Spy()
        folder.mkdir(exist_ok=True)
        (folder / "plan.json").write_text(json.dumps({name.replace("_", "-"): what for name, what in plan.items()}))
        return spy, SmallRun(micro(), folder, spy, executor)

    return make


def in_processes(folder: Path) -> None:
    """The small run, with workers."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    SmallRun(micro(), folder, None, Processes(2)).execute()


def weights(folder: Path) -> dict[str, str]:
    """Hashes of weights, plans, journals and samples."""
    files = [path for suffix in ("safetensors", "npz", "jsonl") for path in folder.rglob(f"*.{suffix}")]
    return {str(file.relative_to(folder)): sha256_file(file) for file in [*files, folder / "allocation.json"]}


# the same results


@pytest.mark.slow
def test_processes_make_what_a_run_in_turn_makes_byte_for_byte(finished, tmp_path):
    spy = Spy()
    Run(micro(), tmp_path, spy, Processes(2)).execute()
    assert weights(tmp_path) == weights(finished)
    assert sorted(spy.made) == sorted(STAGES)
    assert {("group 0", 4, 4), ("group 1", 4, 4)} <= set(spy.progressed)
    ours, theirs = (read_json(folder / "manifest.json") for folder in (tmp_path, finished))
    assert list(ours["seconds"]) == list(theirs["seconds"])
    for key in ("experts", "assembled", "losses", "ledger", "base", "allocation", "config_hash"):
        assert ours[key] == theirs[key]
    assert not (tmp_path / "jobs").exists()
    spy = Spy()
    Run(micro(), tmp_path, spy).execute()  # and a run in turn goes on with it
    assert spy.made == []


@pytest.mark.slow
def test_jobs_of_a_measured_run_search_first(tmp_path, quick):
    measured = {"allocation__rule": "measured", "allocation__frontier_floor": 0.5, "finetune": None, "evaluation": None}
    executor = Inline()
    Run(micro(**measured), tmp_path, Spy(), executor).execute()
    assert executor.started == [["group 0", "group 1"]] * 2
    assert (tmp_path / "frontier" / "group-1.jsonl").is_file()


def test_a_started_run_goes_on_in_jobs_and_the_other_way_round(own_copy, finished, quick):
    (own_copy / "slim" / "group-1" / "model.safetensors").unlink()
    spy, executor = Spy(), Inline()
    Run(micro(), own_copy, spy, executor).execute()
    assert executor.started == [["group 1"]]
    assert spy.made == ["finetune group 1"]
    assert weights(own_copy) == weights(finished)


@pytest.mark.parametrize(("count", "threads"), [(1, 8), (3, 2), (8, 1), (100, 1)])
def test_processes_share_the_threads(monkeypatch, count, threads):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert Processes(count).threads == threads


# failures


def test_a_group_that_fails_once_is_started_again_and_goes_on(small):
    executor = Inline()
    spy, run = small(executor, b_1=["breaks"])
    run.execute()
    assert executor.started == [["group 0", "group 1"], ["group 1"]]
    assert spy.made == ["a 0", "b 0", "a 1", "b 1", "b 1"]
    assert ("a 1", True) in spy.stages  # the second start keeps what the first finished


def test_a_group_that_always_fails_is_named_the_others_are_kept_and_the_next_run_goes_on(small):
    spy, run = small(Inline(), a_0=["breaks"] * 3)
    with pytest.raises(
        UnfinishedError, match=r"^1 of 2 jobs failed \(group 0: RuntimeError: the disk went away\); .*\.$"
    ) as error:
        run.execute()
    assert error.value.failures == {"group 0": "RuntimeError: the disk went away"}
    assert not (run.folder / "manifest.json").exists()
    spy, run = small(None)
    run.execute()
    assert spy.made == ["a 0", "b 0"]
    assert list(read_json(run.folder / "manifest.json")) == ["a 0", "a 1", "b 0", "b 1"]


@pytest.mark.parametrize(("what", "retries", "starts"), [("mistake", 3, 1), ("breaks", 0, 1), ("breaks", 2, 3)])
def test_what_would_fail_again_is_not_started_again(small, what, retries, starts):
    executor = Inline(retries)
    with pytest.raises(UnfinishedError, match="group 1: "):
        small(executor, b_1=[what] * 5)[1].execute()
    assert len(executor.started) == starts


def test_no_more_run_at_the_same_time_than_was_said(small):
    executor = Inline(width=1)
    small(executor)[1].execute()
    assert executor.started == [["group 0"], ["group 1"]]


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_a_process_that_dies_is_started_again_and_named_when_it_dies_again(small):
    spy, run = small(Processes(2), a_1=["dies", "dies"])
    with pytest.raises(UnfinishedError, match=r"^1 of 2 jobs failed \(group 1: its process ended with SIGKILL\)"):
        run.execute()
    assert sorted(spy.made) == ["a 0", "a 1", "a 1", "b 0"]


def test_what_two_processes_come_to_is_made_once(small, caplog):
    """The second waits for the first, and keeps what it made."""
    spy, run = small(None)
    stage = run._planned("a 0", {}, ["a-0.json"], dict)
    second = threading.Thread(target=run.execute)
    other = SmallRun(micro(), run.folder)
    with other._alone(stage), caplog.at_level("INFO"):
        second.start()
        while "Another process is at stage a 0" not in caplog.text:
            time.sleep(0.05)
        (run.folder / "a-0.json").write_text("{}")
        other._book.finish(stage, 0.0, {"made": "by the first"}, {})
    second.join(60)
    assert read_json(run.folder / "manifest.json")["a 0"] == {"made": "by the first"}
    assert spy.made == ["a 1", "b 0", "b 1"]


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_what_a_killed_run_leaves_is_gone_on_with(small):
    """Its processes end with it, and what was finished is kept."""
    _, run = small(None, b_0=["waits"], a_1=["waits"])
    process = forked(in_processes, run.folder)
    waiting = [run.folder / "b-0.starts", run.folder / "a-1.starts"]
    while not all(path.is_file() and path.read_text() for path in waiting):
        assert process.is_alive()
        time.sleep(0.1)
    process.kill()
    process.join()
    for path in waiting:
        number = int(path.read_text())
        for _ in range(100):
            if not psutil.pid_exists(number):
                break
            time.sleep(0.1)
        assert not psutil.pid_exists(number)
    spy, run = small(Inline())
    run.execute()
    assert spy.stages[0] == ("a 0", True)
    assert spy.made == ["b 0", "a 1", "b 1"]


# submitit


def test_a_sigterm_that_is_let_pass_has_every_training_save_and_go_on():
    passed = []
    before = signal.signal(signal.SIGTERM, lambda *_: passed.append("passed"))
    try:
        with Termination.noticed(True) as termination:
            for times in (1, 2):
                os.kill(os.getpid(), signal.SIGTERM)
                assert termination.asked
                termination.obey()
                assert not termination.asked
                assert passed == ["passed"] * times
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_submitit_goes_on_after_a_preemption_to_the_same_bytes(finished, tmp_path):
    """The second group's training is interrupted at its second step; checkpoints are not due before its end."""
    changes = {"finetune__train__checkpoint_every": 100}
    spy = Spy()
    executor = Submitit("local", tmp_path)
    PreemptedRun(micro(**changes), tmp_path, spy, executor).execute()
    assert (tmp_path / "preempted").exists()
    assert spy.made.count("finetune group 1") == 2
    trained = [done for label, done, _ in spy.progressed if label == "group 1"]
    assert trained == [1, 2, 3, 4]  # no step was lost
    assert weights(tmp_path) == weights(finished)
    assert not list((tmp_path / "checkpoints").iterdir())


FAKES = {
    "sbatch": """
cp "$1" "$CLUSTER/script"
echo "$@" >> "$CLUSTER/submitted"
tasks=$(grep -o 'array=0-[0-9]*' "$1" | cut -d- -f2)
for task in $(seq 0 "${tasks:-0}"); do
  (
    export SLURM_JOB_ID=$((100 + task)) SLURM_PROCID=0
    if [ -n "$tasks" ]; then export SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$task; else export SLURM_JOB_ID=77; fi
    for start in 1 2 3; do  # SLURM starts what was requeued again
      rm -f "$CLUSTER/requeued-$task"
      bash "$CLUSTER/script"
      [ -f "$CLUSTER/requeued-$task" ] || break
    done
    touch "$CLUSTER/ended-$task"
  ) > "$CLUSTER/log-$task" 2>&1 &
done
echo "Submitted batch job 77"
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do if [ "$1" = --unbuffered ]; then shift; else shift 2; fi; done
exec "$@"
""",
    "scontrol": """
echo "$@" >> "$CLUSTER/asked"
touch "$CLUSTER/requeued-${2##*_}"
""",
    "sacct": """
echo "JobID|State|NodeList"
for task in 0 1; do
  if [ -f "$CLUSTER/ended-$task" ]; then echo "77_$task|FAILED|here"; else echo "77_$task|RUNNING|here"; fi
done
""",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that stand for SLURM's: jobs start at once on this machine, and again when they were requeued."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, script in FAKES.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("CLUSTER", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_slurm_gets_an_array_that_is_requeued_when_it_is_preempted(small, cluster, tmp_path):
    options = parsed_options(
        ["partition=gpu", "timeout_min=90", "gpus_per_node=1", "constraint=a100", "setup=module load cuda"]
    )
    executor = Submitit("slurm", tmp_path / "run", options, width=1)
    spy, run = small(executor, b_1=["preempted"])
    run.execute()
    flags = {line.removeprefix("#SBATCH --") for line in (cluster / "script").read_text().splitlines()}
    assert "# setup\nmodule load cuda\n" in (cluster / "script").read_text()
    wanted = {"array=0-1%1", "partition=gpu", "time=90", "gpus-per-node=1", "constraint=a100", "signal=USR2@90"}
    assert wanted | {"job-name=prunekit", "open-mode=append"} <= flags
    assert (cluster / "asked").read_text() == "requeue 77_1\n"
    assert len((cluster / "submitted").read_text().splitlines()) == 1
    assert sorted(spy.made) == ["a 0", "a 1", "b 0", "b 1", "b 1"]
    assert list(read_json(run.folder / "manifest.json")) == ["a 0", "a 1", "b 0", "b 1"]


@pytest.mark.usefixtures("cluster")
def test_an_option_of_a_wrong_type_is_refused_before_a_job_is_submitted(tmp_path):
    with pytest.raises(InputError, match="The executor options do not fit slurm"):
        Submitit("slurm", tmp_path / "run", parsed_options(["additional_parameters=abc"]))


def test_what_slurm_still_has_is_not_submitted_again(small, cluster, tmp_path, monkeypatch):
    """A run that was killed while it waited; the next one finds its jobs by their records."""
    (cluster / "sbatch").write_text('#!/bin/bash\necho "$@" >> "$CLUSTER/submitted"\necho "Submitted batch job 77"\n')

    def start() -> tuple[Spy, SmallRun]:
        return small(Submitit("slurm", tmp_path / "run"))

    def killed(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(executors, "time", SimpleNamespace(sleep=killed, monotonic=time.monotonic))
    with pytest.raises(KeyboardInterrupt):
        start()[1].execute()
    records = sorted((tmp_path / "run" / "jobs").glob("*.json"))
    assert [read_json(path)["id"] for path in records] == ["77_0", "77_1"]

    def slurm_does_them(_: float) -> None:
        for path in sorted((tmp_path / "run" / "jobs" / "submitit").glob("*_submitted.pkl")):
            pickle.loads(path.read_bytes()).result()  # noqa: S301 - as a node of the cluster does
            path.with_name(path.name.replace("submitted", "0_result")).write_bytes(pickle.dumps(("success", None)))

    monkeypatch.setattr(executors, "time", SimpleNamespace(sleep=slurm_does_them, monotonic=time.monotonic))
    known = read_json(records[0])
    write_json(records[0], known | {"id": "--format=%all"})
    with pytest.raises(FileFormatError, match="names job '--format=%all'; expected SLURM's number"):
        start()[1].execute()
    write_json(records[0], known)
    spy, run = start()
    run.execute()
    assert len((cluster / "submitted").read_text().splitlines()) == 1
    assert sorted(spy.made) == ["a 0", "a 1", "b 0", "b 1"]


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no srun": (lambda folder: Submitit("slurm", folder), "expected a machine with SLURM's srun"),
    "unknown option": (lambda folder: Submitit("local", folder, {"partition": "gpu"}), "Unknown argument 'partition'"),
    "wrong type": (lambda folder: Submitit("local", folder, {"timeout_min": "long"}), "timeout_min"),
    "two nodes": (lambda folder: Submitit("local", folder, {"nodes": 2}), "one process on one machine"),
    "no time": (lambda folder: Submitit("local", folder, {"timeout_min": -5}), "timeout_min=-5; expected at least 1"),
    "no processes": (lambda folder: Processes(0), "Got 0 jobs"),
    "no width": (lambda folder: Submitit("local", folder, width=0), "Got 0 jobs"),
    "retries": (lambda folder: Processes(1, -1), "Got -1 retries"),
    "pair": (lambda folder: parsed_options(["gpu"]), "expected name=value"),
}


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_what_cannot_be_submitted_is_refused_at_once(tmp_path, monkeypatch, make, message):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=message):
        make(tmp_path)


def test_without_submitit_its_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(InputError, match=r"pip install 'prunekit\[cluster\]'"):
        Submitit("local", tmp_path)


class Trained:
    """A slim model after a training that takes no time."""

    def __init__(self, tuning: Tuning) -> None:
        self.tuning, self.facts = tuning, {"from": str(tuning.slim)}

    def write(self) -> None:
        self.tuning.target.mkdir(parents=True)


def test_slim_models_in_different_folders_with_the_same_name_are_all_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(Tuning, "train", lambda tuning, report: Trained(tuning))
    options, targets = FinetuneOptions(), [tmp_path / name / "group-0" for name in ("a", "b")]
    tunings = [Tuning(target.with_name("pruned"), target, options) for target in targets]
    found = tune_together(tunings, Inline(), tmp_path / "jobs", Spy())
    assert found == {target: {"from": str(target.with_name("pruned"))} for target in targets}
    assert all(target.is_dir() for target in targets)
    assert not (tmp_path / "jobs").exists()
    twice = [replace(tunings[0], target=tmp_path / name) for name in ("a/b-c", "a-b/c")]
    with pytest.raises(InputError, match="would both be called 'a b c'"):
        tune_together(twice, Inline(), tmp_path / "jobs", Spy())


def test_processes_are_spread_over_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees the one that the fewest others use, also when one ends early."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    given: list[str | None] = []
    running: list[SimpleNamespace] = []

    def of(job: Job, gpu: str | None = None) -> SimpleNamespace:
        given.append(gpu)
        over = [False]
        running.append(SimpleNamespace(gpu=gpu, ended=lambda: over[0], over=over))
        return running[-1]

    monkeypatch.setattr(executors._Process, "of", of)
    processes = Processes(4)
    jobs: list[Any] = [object()] * 3
    processes.start(jobs)
    assert given == ["2", "5", "2"]
    running[0].over[0] = running[2].over[0] = True
    processes.start(jobs[:2])
    assert given[3:] == ["2", "2"] or given[3:] == ["2", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    Processes(1).start(jobs[:1])
    assert given[-1] is None
