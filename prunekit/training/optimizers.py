"""AdamW with moments in 32 or in 8 bits, and SGD with momentum."""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError

__all__ = ["make_adamw", "make_sgd", "set_learning_rate"]

_MOMENTUM = 0.9  # a heavy ball's, as AdamW's beta1


def make_adamw(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float, eight_bit: bool) -> Any:
    """AdamW.

    Args:
        parameters: to train.
        learning_rate: the first one.
        weight_decay: decoupled from the gradient, times the learning rate.
        eight_bit: keep both moments in 8 bits, in blocks with a scale each (arXiv:2110.02861), by torchao; of a parameter with
            fewer than 4,096 numbers they stay in 32 bits.

    Raises:
        InputError: 8 bits are asked for, and torchao is not installed.
    """
    if not eight_bit:
        return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay, fused=True)
    if importlib.util.find_spec("torchao") is None:
        raise InputError(
            "use_8bit_adam needs torchao; install it with `pip install 'prunekit[low-memory]'`, or leave it out."
        )
    from torchao.optim import AdamW8bit  # noqa: PLC0415 - an extra

    return AdamW8bit(parameters, learning_rate, weight_decay=weight_decay)


def make_sgd(parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> Any:
    """SGD with heavy-ball momentum of 0.9.

    Args:
        parameters: to train.
        learning_rate: the first one; a step is as large as that of plain SGD with ten times the rate.
        weight_decay: added to the gradient, so that momentum averages it too.
    """
    return torch.optim.SGD(parameters, learning_rate, momentum=_MOMENTUM, weight_decay=weight_decay)


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Set the learning rate of all parameter groups; torchao keeps it in a tensor, which must stay the same one."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
