"""The limit of tracing is processor time, so that a busy machine fails nobody; progress is told by the clock."""

import threading
import time

import pytest
import torch
from torch import nn

from prunekit.errors import GraphError
from prunekit.graph import trace
from prunekit.graph.deadline import Deadline


class Busy(nn.Linear):
    def forward(self, x):
        compute(0.2)
        return super().forward(x) + 0


def compute(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_waiting_does_not_count_and_computing_does():
    deadline = Deadline(0.1)
    time.sleep(0.2)
    deadline.check()
    compute(0.2)
    with pytest.raises(GraphError, match=r"within 0\.1 s of processor time"):
        deadline.check()


def test_other_threads_do_not_count():
    deadline = Deadline(0.2)
    threads = [threading.Thread(target=compute, args=(0.2,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deadline.check()


def test_a_network_that_computes_too_long_is_refused():
    with pytest.raises(GraphError, match="processor time"):
        trace(nn.Sequential(Busy(4, 8), nn.Linear(8, 4)), (torch.randn(1, 4),), seconds=0.1)


class Gradless(nn.Linear):
    """Is over the limit inside a block that has switched gradients off."""

    def forward(self, x):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            compute(0.2)
            return super().forward(x).float()


@pytest.mark.parametrize("layer", [Busy, Gradless])
@pytest.mark.parametrize("seconds", [0.1, 0.5, 0.9])
def test_a_refusal_leaves_torchs_modes_as_they_were(layer, seconds):
    with pytest.raises(GraphError, match="processor time"):
        trace(nn.Sequential(*(layer(4, 4) for _ in range(3)), nn.Linear(4, 4)), (torch.randn(1, 4),), seconds=seconds)
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_a_step_is_told_as_soon_as_it_takes_long_and_once(monkeypatch):
    monkeypatch.setattr("prunekit.graph.deadline._PATIENCE", 0.05)
    said = []
    deadline = Deadline(10, said.append)
    deadline.say("a quick step")
    deadline.check()
    deadline.say("a long step")
    assert said == []
    time.sleep(0.06)
    deadline.check()
    deadline.check()
    assert said == ["a long step (0 s so far)"]
    deadline.say("the next step")
    assert said[1:] == ["the next step (0 s so far)"]
