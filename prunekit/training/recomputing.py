"""Gradient checkpointing: blocks are computed again in the backward pass, so that their activations need not be kept."""

from typing import Any

from torch import nn

from prunekit.errors import InputError

__all__ = ["checkpoint_gradients"]


def checkpoint_gradients(model: nn.Module) -> None:
    """Switch on gradient checkpointing (arXiv:1604.06174) in a network, or in each network that it routes to.

    Args:
        model: of diffusers, or any with a method ``enable_gradient_checkpointing``.

    Raises:
        InputError: the network has no blocks that can be computed again.
    """
    able: list[Any] = [each for each in (model, *model.children()) if hasattr(each, "enable_gradient_checkpointing")]
    for each in able[:1] if able and able[0] is model else able:
        try:
            each.enable_gradient_checkpointing()
        except ValueError as error:  # diffusers' class has no blocks for it
            raise InputError(
                f"Got gradient_checkpointing for a {type(each).__name__}, which has no blocks for it; leave it out, or split the "
                "batch by gradient_accumulation_steps."
            ) from error
    if not able:
        raise InputError(
            f"Got gradient_checkpointing for a {type(model).__name__}; expected a network of diffusers, or one with a method "
            "enable_gradient_checkpointing."
        )
