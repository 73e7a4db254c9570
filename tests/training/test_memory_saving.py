"""Gradient checkpointing changes no result; AdamW in 8 bits trains and resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import unet
from tiny_training import OPTIONS, assert_same_run, checkpoint_steps, tiny_run

from prunekit.errors import InputError
from prunekit.training import TrainOptions
from prunekit.training.optimizers import make_adamw, set_learning_rate
from prunekit.training.recomputing import checkpoint_gradients


def test_gradients_are_the_same_with_checkpointing() -> None:
    plain, saving = unet(), unet()
    checkpoint_gradients(saving)
    assert saving.is_gradient_checkpointing
    noisy, timesteps = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 5])
    for model in (plain, saving):
        model.train()(noisy, timesteps).sample.square().mean().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_network_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="gradient_checkpointing for a Linear; expected a network of diffusers"):
        checkpoint_gradients(torch.nn.Linear(2, 2))


def test_options_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(InputError, match="use_8bit_adam with momentum_decay rational"):
        TrainOptions(use_8bit_adam=True, momentum_decay="rational")


def test_without_torchao_8_bits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs torchao; install it with `pip install 'prunekit\[low-memory\]'`"):
        make_adamw(torch.nn.Linear(2, 2).parameters(), 1e-3, 0.0, eight_bit=True)


def test_the_learning_rate_is_set_in_place_where_it_is_a_tensor() -> None:
    rate = torch.tensor(0.5)
    optimizer = torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate}, {"params": []}], lr=0.5)
    set_learning_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.slow
def test_adamw_in_8_bits_follows_adamw_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is an extra: diffusers imports it whole wherever it is installed")
    ends = {}
    for eight_bit in (False, True):
        optimizer = make_adamw(parameters := [torch.nn.Parameter(torch.ones(64, 128))], 1e-2, 0.0, eight_bit)
        for _ in range(20):
            optimizer.zero_grad()
            (parameters[0] * torch.linspace(1, 2, 128)).square().sum().backward()
            optimizer.step()
        ends[eight_bit] = parameters[0].detach()
    torch.testing.assert_close(ends[True], ends[False], rtol=0.05, atol=0.02)
    options = replace(OPTIONS, use_8bit_adam=True)
    whole = tiny_run(options=options)
    tiny_run(tmp_path, options=options)
    last, newest = checkpoint_steps(tmp_path)[-2:]
    assert last < newest == options.steps
    max(tmp_path.glob("step-*")).unlink()
    assert_same_run(tiny_run(tmp_path, options=options), whole)
    assert whole.losses[-1][1] < whole.losses[0][1]
