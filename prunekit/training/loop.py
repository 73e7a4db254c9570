"""The training loop, for a base and for experts: accelerate, AdamW, a learning-rate schedule, EMA, resumable.

Every train step draws from its own generator, seeded by (seed, step), and every process takes its slice of the same global batch.
So a run that was interrupted, or split over processes, sees exactly the batches that an uninterrupted single process sees.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunekit._files import json_hash
from prunekit.errors import FileFormatError, InputError
from prunekit.training.checkpoints import latest_checkpoint, save_checkpoint
from prunekit.training.objective import DenoisingObjective
from prunekit.training.timesteps import ObservingSampler, TimestepSampler, described

__all__ = ["Progress", "Reporter", "TrainOptions", "TrainResult", "step_generator", "train"]

LearningRates = Literal["cosine", "constant"]
_PRECISIONS = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class TrainOptions:
    """How to train; the defaults are this project's, for small images.

    Args:
        steps: train steps.
        batch_size: images per step over all processes.
        learning_rate: AdamW's, at the end of the warm-up.
        lr_scheduler: what the learning rate does after its warm-up: ``cosine`` to zero, or ``constant``, under which a learning
            curve can be read at any step.
        warmup_steps: linear warm-up.
        weight_decay: AdamW's.
        max_grad_norm: gradient clipping.
        ema_decay: decay of the weights' moving average, min(ema_decay, (1+n)/(10+n)) after n steps.
        mixed_precision: ``no``, ``fp16`` or ``bf16``.
        checkpoint_every: steps between checkpoints, where a folder for them is given.
        log_every: steps between reports; each is the mean loss since the last.
        seed: of batches, timesteps and noise.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    lr_scheduler: LearningRates = "cosine"
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    checkpoint_every: int = 500
    log_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"Got {name} {getattr(self, name)}; expected at least 1.")
        if self.learning_rate <= 0 or not 0 <= self.ema_decay < 1:
            raise InputError("Expected a positive learning_rate and an ema_decay in [0, 1).")
        if self.warmup_steps < 0 or self.weight_decay < 0 or self.max_grad_norm <= 0:
            raise InputError("Expected warmup_steps and weight_decay of at least 0 and a positive max_grad_norm.")
        if self.lr_scheduler not in get_args(LearningRates):
            raise InputError(
                f"Got lr_scheduler {self.lr_scheduler!r}; expected one of {', '.join(get_args(LearningRates))}."
            )
        if self.mixed_precision not in _PRECISIONS:
            raise InputError(f"Got mixed_precision {self.mixed_precision!r}; expected one of {', '.join(_PRECISIONS)}.")


@dataclass(frozen=True)
class Progress:
    """What a reporter is told: steps done of ``steps``, mean loss since the last report, images per second."""

    step: int
    steps: int
    loss: float
    images_per_second: float


Reporter = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained model.

    Args:
        model: EMA weights, eval mode, on the CPU.
        losses: (train step, mean loss since the one before).
        samples: images that went forward and backward, over all processes and interruptions.
        seconds: wall time of this process's part.
        seen: how often each training timestep went by, over all processes and interruptions, shape (T,), int64.
    """

    model: nn.Module
    losses: list[tuple[int, float]]
    samples: int
    seconds: float
    seen: Tensor


def step_generator(seed: int, step: int) -> Generator:
    """The one source of randomness of a train step."""
    return torch.Generator().manual_seed((seed * 0x9E3779B1 + step) % (1 << 63))


def train(
    model: nn.Module,
    objective: DenoisingObjective,
    sampler: TimestepSampler,
    options: TrainOptions,
    checkpoints: Path | None = None,
    report: Reporter | None = None,
) -> TrainResult:
    """Train ``model`` in place and return its moving average.

    Args:
        model: the network; its parameters change.
        objective: images and loss.
        sampler: which timesteps to train on; one that observes may end the training early.
        options: see :class:`TrainOptions`.
        checkpoints: folder for checkpoints; a run with equal options goes on from the newest one there.
        report: called every ``log_every`` steps.

    Raises:
        FileFormatError: the folder holds checkpoints of a run with other options, images, timesteps or first weights.
        InputError: the loss is not finite; the message names the step. Or the device cannot do the mixed precision.
    """
    seen = torch.zeros(objective.schedule.num_timesteps, dtype=torch.int64)
    run = _Run(model, options, sampler, _fingerprint(model, objective, sampler, options), seen)
    if checkpoints is not None:
        run.resume(checkpoints)
    started, first, total = time.perf_counter(), run.step, torch.zeros((), device=run.accelerator.device)
    while run.step < options.steps and not run.ended:
        total += run.train_step(objective)
        run.step += 1
        run.ended = not run.observe()
        if run.step % options.log_every == 0 or run.step == options.steps or run.ended:
            since = (run.step - 1) % options.log_every + 1
            run.log(float(total) / since)
            total.zero_()
            if report is not None:
                rate = (run.step - first) * options.batch_size / (time.perf_counter() - started)
                report(Progress(run.step, options.steps, run.losses[-1][1], rate))
            if checkpoints is not None and run.checkpoint_is_due():
                save_checkpoint(checkpoints, run.step, run.state())
    averaged = run.averaged.module.cpu().eval()
    return TrainResult(averaged, run.losses, run.step * options.batch_size, time.perf_counter() - started, run.seen)


@dataclass(eq=False)
class _Run:
    """Everything that changes while training, so that it can be saved and restored as one."""

    model: nn.Module
    options: TrainOptions
    sampler: TimestepSampler
    fingerprint: str
    seen: Tensor
    step: int = 0
    ended: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = self.options
        self.accelerator = _accelerator(options.mixed_precision, bool(getattr(self.model, "routes_samples", False)))
        if options.batch_size % self.accelerator.num_processes:
            raise InputError(
                f"A batch of {options.batch_size} does not split over {self.accelerator.num_processes} processes; "
                "expected a multiple."
            )
        self.averaged = AveragedModel(self.model, multi_avg_fn=_warmed_average(options.ema_decay))
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
        )
        self.optimizer: Any
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.averaged.to(self.accelerator.device)
        self.wrapped.train()

    def train_step(self, objective: DenoisingObjective) -> Tensor:
        """One optimizer step; returns the detached loss of this process's slice."""
        options, accelerator = self.options, self.accelerator
        generator = step_generator(options.seed, self.step)
        timesteps, weights = self.sampler.sample(options.batch_size, self.step, generator)
        self.seen += torch.bincount(timesteps.long(), minlength=len(self.seen))
        clean, noise = objective.draw(timesteps, generator)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        batch = [tensor[mine].to(accelerator.device) for tensor in (clean, noise, timesteps, weights)]
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * _warmed(self.step, options)
        self.optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]):  # dropout draws from the global generator only
            torch.default_generator.manual_seed(int(generator.initial_seed()) + 1 + accelerator.process_index)
            loss = (objective.per_sample(self.wrapped, batch[0], batch[1], batch[2]) * batch[3]).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(self.wrapped.parameters(), options.max_grad_norm)
        self.optimizer.step()
        self.averaged.update_parameters(self.model)
        return loss.detach()

    def observe(self) -> bool:
        """Let the sampler look at the moving average where it is due; False ends the training."""
        sampler = self.sampler
        if not isinstance(sampler, ObservingSampler) or not sampler.every or self.step % sampler.every:
            return True
        return sampler.observe(self.averaged.module, self.step)

    def log(self, loss: float) -> None:
        """Keep a mean loss, refusing one that is not finite."""
        if not math.isfinite(loss):
            raise InputError(
                f"The training loss is {loss} at step {self.step}; lower the learning rate and start again."
            )
        self.losses.append((self.step, loss))

    def checkpoint_is_due(self) -> bool:
        """At the first report at or after every ``checkpoint_every`` steps and at the end, by the main process alone."""
        every, log_every = self.options.checkpoint_every, self.options.log_every
        passed = self.step % every < log_every or self.step == self.options.steps or self.ended
        return bool(passed and self.accelerator.is_main_process)

    def state(self) -> dict[str, Any]:
        """For a checkpoint: tensors and plain values only."""
        return {
            "fingerprint": self.fingerprint,
            "step": self.step,
            "ended": self.ended,
            "losses": [list(pair) for pair in self.losses],
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seen": self.seen,
            "sampler": self.sampler.state_dict() if isinstance(self.sampler, ObservingSampler) else None,
        }

    def resume(self, folder: Path) -> None:
        """Go on from the folder's newest checkpoint, where there is one."""
        state = latest_checkpoint(folder)
        if state is None:
            return
        if state.get("fingerprint") != self.fingerprint:
            raise FileFormatError(
                f"The checkpoints in {folder} belong to an interrupted training with other options, images or first weights; "
                "repeat its options to go on with it, or remove that folder to start anew."
            )
        self.step, self.ended = int(state["step"]), bool(state["ended"])
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"].clone()
        if isinstance(self.sampler, ObservingSampler):
            self.sampler.load_state_dict(state["sampler"])


def _fingerprint(
    model: nn.Module, objective: DenoisingObjective, sampler: TimestepSampler, options: TrainOptions
) -> str:
    """Hash of all that decides the result: what a checkpoint must agree with."""
    weights = hashlib.sha256()
    for key, value in model.state_dict().items():
        weights.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    name = type(sampler).__qualname__
    return json_hash(
        {
            "options": asdict(options),
            "objective": objective.fingerprint(),
            "sampler": [name, described(sampler)],
            "weights": weights.hexdigest(),
        }
    )


def _accelerator(mixed_precision: str, routes_samples: bool) -> Accelerator:
    """An accelerator of this precision; accelerate itself allows one precision per process, and a run can have two.

    Where batches leave parameters out, the exchange of gradients must not wait for these.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    exchange = DistributedDataParallelKwargs(find_unused_parameters=routes_samples)
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=[exchange])
    if mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("Got mixed precision fp16 on a CPU, which accelerate would leave out; expected bf16 or no.")
    return accelerator


def _warmed(step: int, options: TrainOptions) -> float:
    """Share of the peak learning rate: linear warm-up, then as the schedule says; a cosine is never quite 0 at the last step."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    if options.lr_scheduler == "constant":
        return 1.0
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _warmed_average(decay: float) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """EMA with decay min(decay, (1+n)/(10+n)), so that a short run does not average in its first weights."""

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        count = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return update
