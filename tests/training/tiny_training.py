"""A training of a second, with dropout; also one that a test starts in a process of its own."""

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


def train_in(folder: Path, options: dict[str, int]) -> None:
    """Train in a folder from the checkpoints that are there, for processes that a test kills; ``weights`` has the result."""
    torch.set_num_threads(1)
    model = tiny_run(folder / "checkpoints", options=replace(OPTIONS, **options)).model
    (folder / "weights").write_bytes(weight_bytes(model))
