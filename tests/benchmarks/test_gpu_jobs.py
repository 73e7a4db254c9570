"""The runner of benchmarks/gpu: rows are kept at once, a command stops in time, and rows of other machines are refused."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


class Counting:
    """A part of three jobs that remembers which of them were done; a named one may fail."""

    def __init__(self, jobs_module, failing=()):
        self.done, self.failing, self.jobs_module = [], set(failing), jobs_module

    def jobs(self, setting, rows):
        def job(name):
            return self.jobs_module.Job({"stage": name, "batch": 1}, lambda _: self.measured(name))

        return [job(name) for name in ("first", "second", "third")]

    def measured(self, name):
        self.done.append(name)
        if name in self.failing:
            raise RuntimeError("out of\nmemory")
        return {"seconds": 0.5}

    def table(self, rows):
        return f"{len(list(rows.having(batch=1)))} rows\n"


@pytest.fixture
def gpu(monkeypatch):
    """The modules of the runner, and how to put a part in the place of ``speed``."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu import command, jobs, machine

    def part(failing=()):
        counting = Counting(jobs, failing)
        stub = types.SimpleNamespace(PART=command.Part("A title", counting.jobs, counting.table))
        monkeypatch.setitem(sys.modules, "gpu.speed", stub)
        return counting

    return types.SimpleNamespace(command=command, jobs=jobs, machine=machine, part=part)


def called(gpu, folder, *options):
    return gpu.command.main(["speed", "--tiny", "--device", "cpu", "--output", str(folder), *options])


def rows_in(folder):
    return [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()[1:]]


def test_a_command_ends_with_rows_a_manifest_and_a_table(gpu, tmp_path):
    gpu.part()
    assert called(gpu, tmp_path) == 0
    assert [row["stage"] for row in rows_in(tmp_path)] == ["first", "second", "third"]
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["format"] == "prunekit-benchmark/1"
    assert (written["jobs"], written["left"], written["tiny"]) == (3, 0, True)
    assert written["rows"] == rows_in(tmp_path)
    assert written["manifest"]["machine"]["torch"] == torch.__version__
    assert set(written["manifest"]) >= {"commit", "versions", "device", "threads"}
    page = (tmp_path / "speed.md").read_text()
    assert page.startswith("# A title\n")
    assert "3 rows\n" in page
    assert "only that the command works" in page
    assert "failed" not in page


def test_a_second_command_measures_nothing_anew(gpu, tmp_path):
    gpu.part()
    called(gpu, tmp_path)
    again = gpu.part()
    before = (tmp_path / "speed.jsonl").read_bytes()
    assert called(gpu, tmp_path) == 0
    assert again.done == []
    assert (tmp_path / "speed.jsonl").read_bytes() == before


def test_a_limit_of_no_minutes_stops_after_one_job_and_the_next_command_continues(gpu, tmp_path, capsys):
    part = gpu.part()
    assert called(gpu, tmp_path, "--minutes", "0") == 3
    assert part.done == ["first"]
    said = capsys.readouterr().out
    assert "1 of 3 rows" in said
    assert "2 are left: repeat the command to continue, beginning with stage second, batch 1." in said
    assert "2 rows are still missing" in (tmp_path / "speed.md").read_text()
    assert called(gpu, tmp_path, "--minutes", "0") == 3
    assert called(gpu, tmp_path) == 0
    assert part.done == ["first", "second", "third"]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("processor", "NVIDIA H200", "NVIDIA H200 (cpu"),
        ("torch", "2.0.0", "torch 2.0.0"),
        ("device", "cuda", "(cuda, "),
    ],
)
def test_rows_of_another_machine_are_refused_in_one_sentence(gpu, tmp_path, capsys, key, value, told):
    part = gpu.part()
    called(gpu, tmp_path, "--minutes", "0")
    path = tmp_path / "speed.jsonl"
    first, *lines = path.read_text().splitlines()
    about = json.loads(first)
    about["about"]["machine"][key] = value
    path.write_text("\n".join([json.dumps(about), *lines]) + "\n")
    before = path.read_bytes()
    capsys.readouterr()
    assert called(gpu, tmp_path) == 2
    said = capsys.readouterr().out
    assert told in said
    assert "name another --output, or remove the file." in said
    assert said.count("\n") == 1
    assert part.done == ["first"]
    assert path.read_bytes() == before


def test_rows_of_the_tiny_size_are_never_mixed_with_others(gpu, tmp_path, capsys):
    gpu.part()
    called(gpu, tmp_path)
    assert gpu.command.main(["speed", "--device", "cpu", "--output", str(tmp_path)]) == 2
    assert "tiny size" in capsys.readouterr().out


def test_a_row_that_a_kill_cut_short_is_measured_again(gpu, tmp_path):
    part = gpu.part()
    called(gpu, tmp_path)
    path = tmp_path / "speed.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert called(gpu, tmp_path) == 0
    assert part.done == ["first", "second", "third", "third"]
    assert len(rows_in(tmp_path)) == 3


def test_a_file_without_a_whole_line_is_begun_again(gpu, tmp_path):
    part = gpu.part()
    (tmp_path / "speed.jsonl").write_text('{"about": {"par')
    assert called(gpu, tmp_path) == 0
    assert part.done == ["first", "second", "third"]


def test_a_file_of_something_else_is_refused(gpu, tmp_path, capsys):
    gpu.part()
    (tmp_path / "speed.jsonl").write_text("not JSON\n")
    assert called(gpu, tmp_path) == 2
    assert "cannot be read" in capsys.readouterr().out


def test_a_job_that_fails_is_a_row_and_does_not_keep_others_from_their_turn(gpu, tmp_path):
    part = gpu.part(failing=["second"])
    assert called(gpu, tmp_path) == 1
    assert part.done == ["first", "second", "third"]
    assert rows_in(tmp_path)[1]["error"] == "RuntimeError: out of memory"
    assert "RuntimeError: out of memory" in (tmp_path / "speed.md").read_text()
    mended = gpu.part()
    assert called(gpu, tmp_path) == 1
    assert mended.done == []
    assert called(gpu, tmp_path, "--retry") == 0
    assert mended.done == ["second"]
    assert "RuntimeError" not in (tmp_path / "speed.md").read_text()
    assert called(gpu, tmp_path, "--retry") == 0
    assert mended.done == ["second"]


def test_only_some_jobs_can_be_asked_for_and_listed(gpu, tmp_path, capsys):
    part = gpu.part()
    assert called(gpu, tmp_path, "--only", "third") == 0
    assert part.done == ["third"]
    capsys.readouterr()
    assert called(gpu, tmp_path, "--list") == 0
    assert capsys.readouterr().out == "stage first, batch 1\nstage second, batch 1\n"
    assert part.done == ["third"]


def test_a_job_that_uses_up_its_time_leaves_no_row(gpu, tmp_path):
    rows = gpu.jobs.Rows.open(tmp_path / "rows.jsonl", {"machine": {}, "tiny": True})

    def over(seconds):
        raise gpu.jobs.Unfinished(f"{seconds:.0f} s were not enough")

    assert gpu.jobs.work([gpu.jobs.Job({"stage": "long"}, over)], rows, 1.0, None) == 0
    assert rows.rows == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_named(gpu, tmp_path, capsys):
    assert gpu.machine.chosen_device(None) == torch.device("cpu")
    assert gpu.command.main(["speed", "--device", "cuda", "--output", str(tmp_path)]) == 2
    assert "Got device 'cuda'; expected one that this machine has: cpu." in capsys.readouterr().out


def test_the_manifest_of_a_gpu_has_its_name_memory_and_driver(gpu, monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 570.1\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    about = types.SimpleNamespace(name="Some GPU", total_memory=2**37, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    found = gpu.machine.record(torch.device("cuda"))
    assert (found["device"], found["driver"], found["device_memory"]) == ("Some GPU", "570.1", 2**37)
    assert found["machine"] == {
        "torch": torch.__version__,
        "device": "cuda",
        "processor": "Some GPU",
        "cuda": torch.version.cuda,
    }
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert gpu.machine.record(torch.device("cuda"))["driver"] is None


def test_peak_memory_is_read_after_the_device_is_done(gpu, monkeypatch):
    calls = []
    for name, value in (
        ("empty_cache", None),
        ("reset_peak_memory_stats", None),
        ("synchronize", None),
        ("max_memory_allocated", 7),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, name=name, value=value: (calls.append(name), value)[1])
    gpu.machine.emptied(torch.device("cuda"))
    assert gpu.machine.peak(torch.device("cuda")) == 7
    assert calls == ["empty_cache", "reset_peak_memory_stats", "synchronize", "max_memory_allocated"]
    assert gpu.machine.peak(torch.device("cpu")) is None


def test_networks_take_turns_in_both_orders_after_a_warm_up(gpu):
    from _timing import in_turns

    ran = []

    def clock(run):
        run()
        return float(len(ran))

    seconds = in_turns([lambda: ran.append("a"), lambda: ran.append("b")], clock, 3)
    assert "".join(ran) == "ab" + "ab" + "ba" + "ab"
    np.testing.assert_array_equal(seconds, [[3, 4], [6, 5], [7, 8]])
    assert in_turns([lambda: None], clock, 2, 9, budget=0.0).shape == (2, 1)
    assert in_turns([lambda: None], clock, 2, 9, budget=60.0).shape == (9, 1)
