"""A training of a second, with dropout; as a script, one that can be killed and started again without importing torch anew.

``python tiny_training.py`` reads folders and options, as JSON, from standard input. For each it forks a process that trains there,
going on from the checkpoints that it finds, and writes ``weights`` when it is through; it prints the process id and, later, its
status.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from prunekit.schedule import NoiseSchedule, Parameterization
from prunekit.training import DenoisingObjective, RangeTimesteps, Reporter, TrainOptions, TrainResult, train

T = 50
OPTIONS = TrainOptions(
    steps=40, batch_size=16, learning_rate=3e-3, warmup_steps=4, ema_decay=0.9, checkpoint_every=5, log_every=5
)
SAMPLER = RangeTimesteps(0, T)


class TinyNet(nn.Module):
    """Two convolutions, a timestep embedding, dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.time = nn.Embedding(T, 8)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(noisy) + self.time(timesteps)[..., None, None])
        prediction: Tensor = self.last(self.drop(hidden))
        return prediction


def tiny_net(seed: int = 0) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return TinyNet()


def tiny_objective(prediction_type: str = "epsilon", seed: int = 0) -> DenoisingObjective:
    images = torch.randint(0, 256, (24, 1, 1, 1), generator=Generator().manual_seed(seed)).expand(24, 1, 6, 6)
    return DenoisingObjective(images.to(torch.uint8), Parameterization(NoiseSchedule.cosine(T), prediction_type))


def tiny_run(
    checkpoints: Path | None = None, report: Reporter | None = None, options: TrainOptions = OPTIONS
) -> TrainResult:
    return train(tiny_net(), tiny_objective(), SAMPLER, options, checkpoints, report)


def weight_bytes(model: nn.Module) -> bytes:
    return b"".join(key.encode() + value.numpy().tobytes() for key, value in model.state_dict().items())


def checkpoint_steps(folder: Path) -> list[int]:
    return sorted(int(path.name[5:13]) for path in folder.glob("step-*.pt"))


def assert_same_run(result: TrainResult, expected: TrainResult) -> None:
    assert weight_bytes(result.model) == weight_bytes(expected.model)
    assert result.losses == expected.losses
    assert result.samples == expected.samples


def serve() -> None:
    torch.set_num_threads(1)
    tiny_run(options=replace(OPTIONS, steps=1, log_every=1))  # what a first step imports is there for all the forks
    for line in sys.stdin:
        folder, changes = json.loads(line)
        child = os.fork()
        if child == 0:
            model = tiny_run(Path(folder) / "checkpoints", options=replace(OPTIONS, **changes)).model
            (Path(folder) / "weights").write_bytes(weight_bytes(model))
            os._exit(0)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
