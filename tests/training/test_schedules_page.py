"""What docs/training-schedules.md says is true: its loop runs, and its tables list what there is."""

import re
from pathlib import Path
from typing import get_args

import torch
from torch import nn

import prunekit.training as training
from prunekit.training import LOSS_WEIGHTS, LearningSampler
from prunekit.training.momentum import Compensation

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "training-schedules.md").read_text(encoding="utf-8")


def listed(title):
    """Names in the first column of a section's tables, without their heads."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [
        row for row in re.sub(r"^\|.*\n\|-.*\n", "", section, flags=re.MULTILINE).splitlines() if row.startswith("| `")
    ]
    return [re.findall(r"`([^`]+)`", row.split("|")[1])[0] for row in rows]


def test_the_loop_trains_a_network_of_ones_own():
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Linear(1, 1)
    images = torch.ones(1000, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    met: list[float] = []

    def per_sample_loss(model, images, timesteps):
        losses = (model(images) - 2 - timesteps[:, None] / 5000).square().mean(1)
        met.append(losses.mean().item())
        return losses

    given = {
        "steps": 40,
        "images": images,
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40),
        "per_sample_loss": per_sample_loss,
    }
    exec(compile(example, "training-schedules.md", "exec"), given)  # noqa: S102 - the example is the test
    assert len(met) == 40
    assert met[-1] < 0.5 * met[0]
    sampler = given["sampler"]
    assert isinstance(sampler, LearningSampler)
    assert int(sampler.sampler.seen.sum()) == 40 * 1000
    assert sampler.sampler.warmed_up
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_the_table_lists_the_samplers():
    names = [name for name in training.__all__ if hasattr(getattr(training, name), "probabilities")]
    assert sorted(listed("Timestep samplers")) == sorted(set(names) - {"InverseLoss", "StatedSampler", "Weighted"})


def test_the_tables_list_loss_weights_and_compensations():
    assert listed("Loss weights") == list(LOSS_WEIGHTS)
    assert sorted(listed("Momentum decay")) == sorted(
        ["RationalMomentum", "ExponentialMomentum", *get_args(Compensation)]
    )


def test_every_page_is_listed():
    pages = {path.name for path in DOCS.glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", (DOCS / "README.md").read_text(encoding="utf-8"))) == pages
