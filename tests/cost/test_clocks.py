"""Timing on a CPU, the order in which a GPU is timed (against a stand-in, since there is none here), and names of machines."""

import time
from contextlib import nullcontext

import pytest
import torch

from prunekit.cost.clocks import device_named, is_here, machine_of, seconds_of
from prunekit.errors import InputError

CPU = torch.device("cpu")


def _work():
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass


def test_work_on_a_cpu_takes_its_time_and_runs_once(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    runs = []
    seconds = seconds_of(lambda: runs.append(_work()), CPU, calls=5)
    assert 0.01 <= seconds < 0.1
    assert len(runs) == 1


def test_waiting_counts_only_where_several_threads_may_work(monkeypatch):
    for threads, least in ((1, 0.0), (2, 0.02)):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        seconds = seconds_of(lambda: time.sleep(0.02), CPU)
        assert least <= seconds
        assert (seconds < 0.01) == (threads == 1)


def test_a_gpu_is_timed_between_two_events_of_an_empty_queue(monkeypatch):
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("event")

        def elapsed_time(self, _end):
            return 6.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: said.append("wait"))
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    seconds = seconds_of(lambda: said.append("run"), torch.device("cuda", 0), calls=3)
    assert said == ["wait", "event", "run", "run", "run", "event", "wait"]
    assert seconds == pytest.approx(0.002)


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "nonsense:1"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match="expected one that this machine has: cpu"):
        device_named(name)


def test_a_machine_is_here_with_the_same_processor_and_threads():
    machine = machine_of(CPU)
    assert is_here(machine)
    assert not is_here({**machine, "threads": machine["threads"] + 1})
    assert not is_here({**machine, "processor": "another"})
    assert not is_here({**machine, "device": "cuda"})
    assert not is_here({})
