"""The training loop, for a base and for experts: accelerate, AdamW, a learning-rate schedule, EMA, resumable.

Every train step draws from its own generator, seeded by (seed, step), and every process takes its slice of the same global batch.
So an interrupted run, or one with several processes, sees exactly the batches of an uninterrupted single process.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel

from prunekit._progress import tell
from prunekit._signals import Termination
from prunekit._types import StateDict
from prunekit.errors import InputError
from prunekit.graph.copying import copied
from prunekit.training.callbacks import Callback
from prunekit.training.checkpoints import latest_checkpoint, save_checkpoint, saved_step
from prunekit.training.number_checks import StepWatch
from prunekit.training.objective import Objective
from prunekit.training.optimizers import make_adamw, make_sgd, set_learning_rate
from prunekit.training.options import Progress, Reporter, TrainOptions
from prunekit.training.processes import dropout_seeded, make_accelerator
from prunekit.training.recomputing import checkpoint_gradients
from prunekit.training.resuming import CHANGEABLE, check_changes, fingerprint_of
from prunekit.training.timesteps import LearningSampler, StatefulSampler, TimestepSampler

__all__ = ["TrainResult", "step_generator", "train"]

_SAVING_SHARE = 20  # checkpoints by time take at most 1/20 of the time


@dataclass(frozen=True, eq=False)
class TrainResult:
    """A trained model.

    Args:
        model: EMA weights, eval mode, on the CPU.
        losses: (train step, mean loss since the previous entry).
        samples: images that went forward and backward in this training, over all processes and interruptions; an earlier training
            that it continues is not counted.
        seconds: wall time of this process's part.
        seen: how often each training timestep was drawn, over all processes and interruptions, shape (T,), int64.
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
    objective: Objective,
    sampler: TimestepSampler,
    options: TrainOptions,
    checkpoints: Path | str | None = None,
    report: Reporter | None = None,
    callbacks: Sequence[Callback] = (),
    start: int = 0,
) -> TrainResult:
    """Train ``model`` in place and return its moving average.

    With a folder for checkpoints, Ctrl-C and SIGTERM take effect only after the current step is finished and its state is saved.

    Args:
        model: the network; its parameters change.
        objective: images and loss.
        sampler: draws the timesteps to train on.
        options: see :class:`TrainOptions`.
        checkpoints: folder for checkpoints; a run with equal options resumes from the newest one there. Steps and batch size may
            differ, with a warning in the log.
        report: called every ``log_every`` steps.
        callbacks: look at the moving average during the training, in this order, and may end it early.
        start: number of steps that ``model`` was trained before; the batches and every schedule continue from there.

    Raises:
        FileFormatError: the folder holds checkpoints of a run with other options, images, timesteps or first weights.
        InputError: the loss, a gradient or a weight is not finite (the message names the step), or the device does not support the
            mixed precision.
        KeyboardInterrupt: Ctrl-C was pressed; with a folder for checkpoints, it is raised after the state was saved.
    """
    checkpoints = Path(checkpoints) if checkpoints is not None else None
    seen = torch.zeros(objective.schedule.num_timesteps, dtype=torch.int64)
    fingerprint, rest = (
        fingerprint_of(model, objective, sampler, options, callbacks, without) for without in ((), CHANGEABLE)
    )
    run = _Run(model, options, sampler, callbacks, fingerprint, rest, seen, start)
    if checkpoints is not None:
        run.resume(checkpoints)
    started, first = time.perf_counter(), run.step
    tell("training", run.step, options.steps)
    with Termination.noticed(checkpoints is not None) as termination:
        while run.step < options.steps and not run.ended:
            run.train_step(objective, termination.asked)
            run.step += 1
            run.samples += options.batch_size
            run.ended = not run.observe()
            tell("training", run.step, run.step if run.ended else options.steps, run.said)
            told = run.step % options.log_every == 0 or run.step == options.steps or run.ended
            if told:
                run.log()
                if report is not None:
                    rate = (run.step - first) * options.batch_size / (time.perf_counter() - started)
                    report(Progress(run.step, options.steps, run.losses[-1][1], rate))
            asked = run.watch.asked or (run.accelerator.num_processes == 1 and termination.asked)
            if checkpoints is not None and (asked or run.checkpoint_is_due()):
                run.save(checkpoints)
                if asked:
                    termination.obey()
                    if run.accelerator.num_processes > 1:  # another process got the signal
                        raise KeyboardInterrupt
    run.watch.check(run.step, run.model, run.averaged.module)
    averaged = run.averaged.module.cpu().eval()
    return TrainResult(averaged, run.losses, run.samples, time.perf_counter() - started, run.seen)


@dataclass(eq=False)
class _Run:
    """Everything that changes during training, so that it can be saved and restored together."""

    model: nn.Module
    options: TrainOptions
    sampler: TimestepSampler
    callbacks: Sequence[Callback]
    fingerprint: str
    fingerprint_of_rest: str
    seen: Tensor
    start: int
    step: int = field(init=False)
    samples: int = 0
    ended: bool = False
    losses: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, self.step = self.options, self.start
        self.accelerator = make_accelerator(options.mixed_precision, bool(getattr(self.model, "routes_samples", False)))
        if options.batch_size % self.accelerator.num_processes:
            raise InputError(
                f"A batch of {options.batch_size} does not split over {self.accelerator.num_processes} processes; "
                "expected a multiple."
            )
        self.average = _warmed_average(options.ema_decay, lambda: self.step)
        self.averaged = AveragedModel(copied(self.model), multi_avg_fn=self.average)
        rate, decay = options.learning_rate, options.weight_decay
        parameters = self.model.parameters()
        optimizer = (
            make_sgd(parameters, rate, decay)
            if options.optimizer == "sgd"
            else make_adamw(parameters, rate, decay, options.use_8bit_adam)
        )
        if options.gradient_checkpointing:
            checkpoint_gradients(self.model)
        self.optimizer: Any
        self.wrapped, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.averaged.to(self.accelerator.device)
        self.averaged.n_averaged = (
            self.averaged.n_averaged.cpu()
        )  # read at every step: a tensor on a device would block each time
        self.total = torch.zeros((), device=self.accelerator.device)  # of the losses since the last report
        self.watch = StepWatch(self.accelerator)
        self.saved, self.saving = time.monotonic(), 0.0  # time of the last save, and how long it took
        self.parameters: list[Tensor] = list(self.model.parameters())
        self.averages: list[Tensor] = list(self.averaged.module.parameters())
        self.pairs = list(zip(self.averaged.module.modules(), self.model.modules(), strict=True))
        self.wrapped.train()

    def train_step(self, objective: Objective, asked: bool = False) -> None:
        """One optimizer step on this process's slice of the batch; ``asked`` says whether the process was asked to end."""
        options, accelerator = self.options, self.accelerator
        generator = step_generator(options.seed, self.step)
        timesteps, weights = self.sampler.sample(options.batch_size, self.step, generator)
        self.seen += torch.bincount(timesteps.long(), minlength=len(self.seen))
        drawn = objective.draw(timesteps, generator)
        mine = slice(accelerator.process_index, None, accelerator.num_processes)
        batch = [tensor[mine].to(accelerator.device) for tensor in (timesteps, weights, *drawn)]
        set_learning_rate(self.optimizer, options.learning_rate_at(self.step))
        self.optimizer.zero_grad()
        with dropout_seeded(options.seed, self.step, accelerator.process_index, accelerator.device):
            losses = self._backward(objective.at(self.step / options.steps), batch)
        norm = accelerator.clip_grad_norm_(self.parameters, options.max_grad_norm)
        self.watch.note(self.step + 1, losses, norm, asked)
        decay = options.momentum
        with decay.applied(self.optimizer, self.step) if decay else nullcontext():
            self.optimizer.step()
        self._average()
        if isinstance(self.sampler, LearningSampler) and self.sampler.learns:
            gathered = self.accelerator.gather(losses).reshape(accelerator.num_processes, -1)
            self.sampler.learn(timesteps, gathered.T.reshape(-1))  # each process had every n-th timestep

    @torch.no_grad()
    def _average(self) -> None:
        """What ``AveragedModel.update_parameters`` does, also for buffers that a forward pass replaces or adds.

        It does not look for the modules at every step, which takes ten times as long.
        """
        averaged = self.averaged
        if averaged.n_averaged == 0:
            torch._foreach_copy_(self.averages, self.parameters)
        else:
            self.average(self.averages, self.parameters, averaged.n_averaged)
        for own, module in self.pairs:
            for name, newest in module._buffers.items():
                _renew(own, name, newest, name not in module._non_persistent_buffers_set)
        averaged.n_averaged += 1

    def _backward(self, objective: Objective, batch: list[Tensor]) -> Tensor:
        """Gradients of the mean weighted loss, part after part; returns the samples' own losses, shape (batch,)."""
        losses = []
        parts = list(zip(*(tensor.chunk(self.options.gradient_accumulation_steps) for tensor in batch), strict=True))
        for i, (timesteps, weights, clean, noise, *conditions) in enumerate(parts):
            last = i == len(parts) - 1  # processes exchange gradients after it
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped), self.accelerator.autocast():
                each = objective.per_sample(self.wrapped, clean, noise, timesteps, *conditions)
            loss = (each * weights).mean() * (len(timesteps) / len(batch[0]))
            self.accelerator.backward(loss)
            self.total += loss.detach()
            losses.append(each.detach())
        return torch.cat(losses)

    @property
    def said(self) -> str:
        """The newest loss that was logged, in words."""
        return f"loss {self.losses[-1][1]:.4f}" if self.losses else ""

    def observe(self) -> bool:
        """Let the callbacks that are due look at the moving average; False ends the training."""
        due = [callback for callback in self.callbacks if self.step % callback.every == 0]
        return all([callback.observe(self.averaged.module, self.step) for callback in due])

    def log(self) -> None:
        """Record the mean loss since the last report, over all processes; refuses a loss that is not finite."""
        last = self.losses[-1][0] if self.losses else self.start
        loss = float(self.accelerator.reduce(self.total, "mean")) / (self.step - last)
        self.total.zero_()
        if not math.isfinite(loss):
            raise InputError(
                f"The training loss is {loss} at step {self.step}; lower the learning rate and start again."
            )
        self.losses.append((self.step, loss))

    def checkpoint_is_due(self) -> bool:
        """After every ``checkpoint_every`` steps, at the end, and after ``checkpoint_minutes``."""
        if self.step % self.options.checkpoint_every == 0 or self.step == self.options.steps or self.ended:
            return True
        return time.monotonic() - self.saved > max(60 * self.options.checkpoint_minutes, _SAVING_SHARE * self.saving)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, if this is the main process.

        Raises:
            InputError: the disk cannot be written, or the state is damaged.
        """
        self.watch.check(self.step, self.model, self.averaged.module)
        if not self.accelerator.is_main_process:
            return
        began = time.monotonic()
        try:
            save_checkpoint(folder, self.step, self.state(), self.options.checkpoints_total_limit)
        except OSError as error:
            kept = "the ones before it are whole" if saved_step(folder) is not None else "there is none before it"
            raise InputError(
                f"The checkpoint of step {self.step} could not be written to {folder} ({error.strerror}); {kept}: make room and "
                "start again."
            ) from error
        self.saved = time.monotonic()
        self.saving = self.saved - began

    def state(self) -> StateDict:
        """The state for a checkpoint: tensors and plain values only."""
        return {
            "fingerprint": self.fingerprint,
            "fingerprint_of_rest": self.fingerprint_of_rest,
            "changeable": {name: getattr(self.options, name) for name in CHANGEABLE},
            "start": self.start,
            "step": self.step,
            "samples": self.samples,
            "ended": self.ended,
            "losses": [list(pair) for pair in self.losses],
            "total": self.total,
            "scaler": self._scaler.state_dict() if self._scaler else None,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "seen": self.seen,
            "sampler": self.sampler.state_dict() if isinstance(self.sampler, StatefulSampler) else None,
            "callbacks": [callback.state_dict() for callback in self.callbacks],
        }

    @property
    def _scaler(self) -> Any:
        """The scaler of fp16 gradients, or None."""
        return self.accelerator.scaler

    def resume(self, folder: Path) -> None:
        """Resume from the folder's newest checkpoint, if there is one."""
        state = latest_checkpoint(folder)
        if state is None:
            return
        if state.get("fingerprint") != self.fingerprint:
            check_changes(state, self.fingerprint_of_rest, self.options, folder)
        self.step, self.ended = int(state["step"]), bool(state["ended"])
        self.samples = int(state.get("samples", self.step * self.options.batch_size))
        if "start" not in state:  # older checkpoints count the earlier training, too
            self.samples -= self.start * self.options.batch_size
        self.losses = [(int(step), float(loss)) for step, loss in state["losses"]]
        self.total.copy_(state["total"])
        if self._scaler and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.seen = state["seen"].clone()
        if isinstance(self.sampler, StatefulSampler):
            self.sampler.load_state_dict(state["sampler"])
        for callback, kept in zip(self.callbacks, state.get("callbacks", ()), strict=True):
            callback.load_state_dict(kept)


def _renew(module: nn.Module, name: str, newest: Tensor | None, persistent: bool) -> None:
    """Give a buffer another one's value."""
    known = module._buffers.get(name)
    if known is not None and newest is not None and known.shape == newest.shape and known.dtype == newest.dtype:
        known.copy_(newest)
    elif known is not newest or name not in module._buffers:
        module.register_buffer(name, None if newest is None else newest.detach().clone(), persistent)


_Tensors = tuple[Tensor, ...] | list[Tensor]


def _warmed_average(decay: float, steps: Callable[[], int]) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """EMA with decay min(decay, (1+n)/(10+n)) after n steps, so that a short run does not average in its first weights."""

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, count: Tensor | int) -> None:
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + steps()) / (10 + steps())))

    return update
