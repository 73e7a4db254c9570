"""Backward passes that leave every ``.grad`` alone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from prunekit.errors import InputError

__all__ = ["kept_gradients", "slopes_of"]


def slopes_of(loss: Tensor, parameters: Iterable[nn.Parameter]) -> list[Tensor | None]:
    """Gradient of a loss for each parameter, None if the loss does not depend on it; every ``.grad`` is restored.

    It uses ``backward``, since ``torch.autograd.grad`` fails on blocks that are checkpointed with ``use_reentrant=True``.
    """
    parameters = list(parameters)
    with kept_gradients(loss, parameters):
        loss.backward()
        return [parameter.grad for parameter in parameters]


@contextmanager
def kept_gradients(loss: Tensor, parameters: Iterable[Tensor]) -> Iterator[None]:
    """``.grad`` of the parameters, and of all other tensors that the loss depends on, is None at first and then restored.

    Hooks that the caller runs when a gradient is complete are off within the block.

    Raises:
        InputError: the loss has no gradient.
    """
    if not loss.requires_grad:
        raise InputError(
            "The loss has no gradient by any weight; expected one that was computed with gradients: remove torch.no_grad(), "
            "inference mode and .detach() from it. Where blocks are checkpointed with use_reentrant=True, call requires_grad_() on "
            "the noisy input, or take use_reentrant=False."
        )
    tensors = list(dict.fromkeys([*parameters, *_leaves(loss)]))
    before = [tensor.grad for tensor in tensors]
    hooks = [own for tensor in tensors if (own := tensor._post_accumulate_grad_hooks)]  # an optimizer may step in one
    kept = [dict(own) for own in hooks]
    for tensor in tensors:
        tensor.grad = None
    for own in hooks:
        own.clear()  # torch keeps the dict, so that another in its place would change nothing
    try:
        yield
    finally:
        for own, known in zip(hooks, kept, strict=True):
            own.update(known)
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient


def _leaves(loss: Tensor) -> list[Tensor]:
    """Tensors in which a backward pass would accumulate gradients; those inside checkpointed blocks are not found."""
    found: list[Tensor] = []
    seen, left = set(), [loss.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        left += [inner for inner, _ in node.next_functions]
    return found
