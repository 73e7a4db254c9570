"""Images per second of prunekit's training loop, of diffusers' and lucidrains' loops, and of bare forward, backward and optimizer.

All train the same U-Net on the same digits with the same batch, alternating within one run, so that the machine's noise affects all
equally. diffusers ships its loop as an example script and not in its package, so its steps are written out here. lucidrains'
Trainer is the package's own and reads pictures from a folder.

    python benchmarks/training_speed.py
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from _manifest import REPORTS, markdown_table, publish
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from prunekit._files import atomic_path
from prunekit.data import load_images
from prunekit.schedule import Parameterization
from prunekit.steps.bases import open_base
from prunekit.training import DenoisingObjective, RangeTimesteps, TrainOptions, to_unit_range, train

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import peers

BATCH = 128
Block = Callable[[int], float]
"""Trains for a number of steps and returns the seconds."""


def bare(model: Any, images: torch.Tensor) -> Block:
    """Forward, backward and optimizer on one fixed batch: a lower bound for every loop."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-5, fused=True)
    noisy, target = torch.randn(2, BATCH, *images.shape[1:]).unbind()
    timesteps = torch.randint(0, 1000, (BATCH,))

    def block(steps: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            optimizer.zero_grad()
            (model(noisy, timesteps).sample - target).square().mean().backward()
            optimizer.step()
        return time.perf_counter() - started

    return block


def ours(model: Any, images: torch.Tensor) -> Block:
    """prunekit's whole loop: fresh noise, clipping, moving average, reports."""
    objective = DenoisingObjective(images, Parameterization(open_base("embedded:digits").schedule))

    def block(steps: int) -> float:
        options = TrainOptions(steps=steps, batch_size=BATCH, learning_rate=1e-5, log_every=steps)
        return train(model, objective, RangeTimesteps(0, 1000), options).seconds

    return block


def own_share(model: Any, images: torch.Tensor, steps: int) -> float:
    """Time of prunekit's loop outside of forward, backward and optimizer, as a share of these, measured within each step.

    Unlike a comparison of two loops, this does not require the machine to be equally fast for both.
    """
    inside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                inside += time.perf_counter() - started

        return wrapper

    with (
        patch.object(model, "forward", timed(model.forward)),
        patch.object(torch.autograd, "backward", timed(torch.autograd.backward)),
        patch.object(torch.optim.AdamW, "step", timed(torch.optim.AdamW.step)),
    ):
        whole = ours(model, images)(steps)
    return whole / inside - 1


def diffusers(model: Any, images: torch.Tensor) -> Block:
    """The loop of diffusers' examples/unconditional_image_generation/train_unconditional.py with --use_ema, images in memory."""
    accelerator = Accelerator()
    average = EMAModel(
        model.parameters(), decay=0.9999, use_ema_warmup=True, model_cls=type(model), model_config=model.config
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.95, 0.999), weight_decay=1e-6)
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
    loader = DataLoader(TensorDataset(to_unit_range(images)), batch_size=BATCH, shuffle=True, drop_last=True)
    rates = get_scheduler("cosine", optimizer, num_warmup_steps=10, num_training_steps=10_000)
    wrapped, optimizer, loader, rates = accelerator.prepare(model, optimizer, loader, rates)

    def batches() -> Any:
        while True:
            yield from loader

    endless = batches()

    def block(steps: int) -> float:
        wrapped.train()
        started = time.perf_counter()
        bar = tqdm(total=steps, disable=False, file=open("/dev/null", "w"))  # noqa: SIM115 - drawn, but not here
        for step in range(steps):
            (clean,) = next(endless)
            noise = torch.randn(clean.shape)
            timesteps = torch.randint(0, 1000, (len(clean),)).long()
            noisy = noise_scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(wrapped):
                loss = mse_loss(wrapped(noisy, timesteps).sample.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                average.step(wrapped.parameters())
                bar.update(1)
            bar.set_postfix(loss=loss.detach().item(), lr=rates.get_last_lr()[0], step=step)
        return time.perf_counter() - started

    return block


class _ForLucidrains(nn.Module):
    """A diffusers U-Net with the interface that lucidrains' GaussianDiffusion expects."""

    def __init__(self, model: Any, channels: int) -> None:
        super().__init__()
        self.model, self.channels, self.out_dim = model, channels, channels
        self.self_condition = self.random_or_learned_sinusoidal_cond = False

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, condition: Any = None) -> torch.Tensor:
        prediction: torch.Tensor = self.model(noisy, timesteps).sample
        return prediction


def lucidrains(model: Any, images: torch.Tensor, folder: Path) -> Block:
    """denoising-diffusion-pytorch's Trainer."""
    package = peers.library("denoising_diffusion_pytorch")
    trainer_class = sys.modules["denoising_diffusion_pytorch.denoising_diffusion_pytorch"].Trainer  # type: ignore[attr-defined]
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    side = images.shape[-1]
    diffusion = package.GaussianDiffusion(_ForLucidrains(model, 1), image_size=side, timesteps=1000)
    settings = {"train_batch_size": BATCH, "calculate_fid": False, "train_lr": 1e-5, "save_and_sample_every": 10**9}
    trainer = trainer_class(
        diffusion, str(folder), results_folder=str(folder / "results"), train_num_steps=0, **settings
    )
    trainer.ds.transform = lambda picture: torch.tensor(list(picture.getdata())).reshape(1, side, side) / 255.0

    def block(steps: int) -> float:
        started = time.perf_counter()
        trainer.train_num_steps += steps
        trainer.train()
        return time.perf_counter() - started

    return block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=REPORTS.parent / "training")
    args = parser.parse_args()
    base, images = open_base("embedded:digits"), load_images("digits").train.images
    with tempfile.TemporaryDirectory() as folder:

        def one() -> Any:
            return copy.deepcopy(base.model)

        loops = {
            "bare": bare(one(), images),
            "prunekit": ours(one(), images),
            "diffusers": diffusers(one(), images),
            "lucidrains": lucidrains(one(), images, Path(folder)),
        }
        for block in loops.values():
            block(3)  # the first steps prepare things
        seconds: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(args.rounds):
            for name, block in loops.items():
                seconds[name].append(block(args.steps) / args.steps)
    rows = {}
    for name, own in seconds.items():
        ratios = [mine / least for mine, least in zip(own, seconds["bare"], strict=True)]
        rows[name] = {
            "milliseconds_per_step": 1e3 * statistics.median(own),
            "images_per_second": BATCH / statistics.median(own),
            "over_bare": statistics.median(ratios),
            "spread": [min(ratios), max(ratios)],
            "over_prunekit": statistics.median(
                mine / theirs for mine, theirs in zip(own, seconds["prunekit"], strict=True)
            ),
        }
    figures = {
        "own_share": own_share(copy.deepcopy(base.model), images, 5 * args.steps),
        "batch": BATCH,
        "steps": args.steps,
        "rounds": args.rounds,
        "threads": torch.get_num_threads(),
        "loops": rows,
    }
    publish("training_speed", figures, args.output)
    table(figures, args.output)


def table(figures: dict[str, Any], folder: Path) -> None:
    """``training_speed.md``."""
    text = (
        "# How fast the training loop is\n\n"
        f"The embedded digits base (463,249 parameters), {figures['batch']} images of 8×8 a step, threads: {figures['threads']}, "
        f"blocks of {figures['steps']} steps in turns, {figures['rounds']} rounds; medians. `bare` is forward, backward and AdamW "
        "(fused, as prunekit's) on one batch that never changes; the loops draw images and noise, clip, keep a moving average and "
        "report. Over bare and over prunekit: medians of the rounds' ratios, with the least and largest. diffusers' loop is that "
        "of its example script, restated, with images in memory; lucidrains' is its Trainer with a folder of pictures, its own "
        "optimizer (Adam) and a moving average every 10th step. Within one training by prunekit, what is not forward, backward or "
        f"optimizer takes {100 * figures['own_share']:.1f} % of these. Made by `python benchmarks/training_speed.py`.\n\n"
    )
    rows = [
        [
            name,
            f"{row['milliseconds_per_step']:.1f}",
            f"{row['images_per_second']:.0f}",
            f"{row['over_bare']:.3f} ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})",
            f"{row['over_prunekit']:.3f}",
        ]
        for name, row in figures["loops"].items()
    ]
    with atomic_path(folder / "training_speed.md") as part:
        header = ["loop", "milliseconds a step", "images a second", "time over bare", "time over prunekit"]
        part.write_text(text + markdown_table(header, rows), encoding="utf-8")


if __name__ == "__main__":
    main()
