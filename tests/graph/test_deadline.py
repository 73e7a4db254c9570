"""The limit of tracing is processor time, so that a busy machine fails nobody; progress is told by the clock."""

import time

import pytest
import torch
from torch import nn

from prunekit.errors import GraphError
from prunekit.graph import trace
from prunekit.graph.deadline import Deadline


class Waiting(nn.Linear):
    def forward(self, x):
        time.sleep(0.15)
        return super().forward(x)


class Busy(nn.Linear):
    def forward(self, x):
        end = time.thread_time() + 0.15
        while time.thread_time() < end:
            pass
        return super().forward(x) + 0


def net(kind):
    return nn.Sequential(kind(4, 8), nn.Linear(8, 4))


def test_time_in_which_a_network_waits_does_not_count():
    started = time.monotonic()
    graph = trace(net(Waiting), (torch.randn(1, 4),), seconds=1.0)
    assert len(graph) == 1
    assert time.monotonic() - started > 1.0


def test_time_in_which_it_computes_does():
    with pytest.raises(GraphError, match="processor time"):
        trace(net(Busy), (torch.randn(1, 4),), seconds=0.1)


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
