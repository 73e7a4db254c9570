"""Small networks and losses that the tests of importance share."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from prunekit.groups import TimestepGroups
from prunekit.importance import CRITERIA, importance

GROUPS = TimestepGroups.from_cuts(100, [30, 60])
INPUTS = (torch.randn(1, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([5]))


class Denoiser(nn.Module):
    """Plain layers and a timestep; dropout and a batch norm, which eval mode must silence."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 6)
        self.time = nn.Embedding(100, 8)
        self.norm = nn.BatchNorm1d(10)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, t):
        h = torch.tanh(self.first(x) + self.time(t))
        return self.out(self.drop(torch.tanh(self.norm(self.second(h)))))


class Coupled(nn.Module):
    """Channels that two layers make and two read; positively homogeneous, no timestep in it."""

    def __init__(self, width=8):
        super().__init__()
        self.one, self.two = nn.Linear(6, width), nn.Linear(6, width)
        self.read, self.also = nn.Linear(width, 6), nn.Linear(width, 6)

    def forward(self, x, t):
        h = torch.relu(self.one(x) + self.two(x))
        return self.read(h) + self.also(h).abs()


class Free(nn.Module):
    """A gain and a matrix that belong to no known layer; the matrix alone reads what ``first`` makes."""

    def __init__(self):
        super().__init__()
        self.first, self.gain = nn.Linear(6, 8), nn.Parameter(torch.rand(1, 8) + 0.5)
        self.onward = nn.Parameter(torch.randn(8, 5) / 3)
        self.out = nn.Linear(5, 6)

    def forward(self, x, t):
        return self.out(torch.tanh((torch.tanh(self.first(x)) * self.gain) @ self.onward))


class PositionsFirst(nn.Module):
    """A layer that is called with positions first, samples second."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(2, 7), nn.Linear(7, 2)

    def forward(self, x, t):
        h = x.unflatten(1, (3, 2)).transpose(0, 1)
        return self.out(torch.tanh(self.first(h))).transpose(0, 1).flatten(1)


def made(network, *args):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return network(*args)


def drawn(model, timesteps, generator):
    """Mean squared error on data that the generator draws."""
    x = torch.randn(len(timesteps), 6, generator=generator) * (1 + timesteps[:, None] / 50)
    return (model(x, timesteps) - x).square().mean()


class Apart:
    """The loss of :func:`drawn` that draws and evaluates apart; ``calls`` are the batch sizes that it was asked for."""

    def __init__(self):
        self.calls = []

    def draw(self, timesteps, generator):
        return (torch.randn(len(timesteps), 6, generator=generator) * (1 + timesteps[:, None] / 50),)

    def drawn_losses(self, model, drawn, timesteps):
        self.calls.append(len(timesteps))
        return (model(drawn[0], timesteps) - drawn[0]).square().mean(1)

    def __call__(self, model, timesteps, generator):
        return self.drawn_losses(model, self.draw(timesteps, generator), timesteps).mean()


def score(model, by="taylor", loss=drawn, groups=GROUPS, **options):
    return importance(model, INPUTS, loss, groups, by=by, **{"samples": 24, "chunk": 8, **options})


def score_in_process(rank, folder, world):
    """One process of several: every criterion's map, and a loss, to files."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    try:
        for by in CRITERIA:
            for loss in (drawn, Apart()):
                name = f"{by}-{type(loss).__name__}-{rank}.json"
                found = score(made(Denoiser), by, loss, samples=20, batch_size=3, distributed=True)
                found.save(Path(folder) / name)
        found = score(made(PositionsFirst), "fisher", Apart(), samples=4, batch_size=4, distributed=True)
        found.save(Path(folder) / f"fallback-{rank}.json")
    finally:
        dist.destroy_process_group()
