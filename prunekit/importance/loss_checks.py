"""Checks of a caller's loss: it evaluates the network that it is given, with draws from its generator alone, and repeats."""

import inspect
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunekit.errors import InputError

if TYPE_CHECKING:
    from prunekit.importance.probe import Probe

__all__ = [
    "check_arguments",
    "check_repeats",
    "left_to_the_caller",
    "of_the_given_network",
    "one_number",
    "only_from_the_generator",
]

_TRIED = 4  # draws
_CLOSE = 1e-3  # relative; sums on a GPU differ in their last digits


def check_arguments(loss: object) -> None:
    """Refuse a loss that cannot be called with a network, timesteps and a generator.

    Raises:
        InputError: it takes other arguments, or is no function.
    """
    if not callable(loss):
        raise InputError(f"Got {loss!r:.40} as the loss; expected a function loss(model, timesteps, generator).")
    try:
        taken = inspect.signature(loss)
    except ValueError:  # a function that does not say what it takes
        return
    try:
        taken.bind(None, None, None)
    except TypeError:
        raise InputError(f"The loss takes {taken}; expected loss(model, timesteps, generator).") from None


def check_repeats(probe: "Probe", model: nn.Module) -> None:
    """Refuse a loss that differs between two calls with the same timesteps and generator, on a few draws.

    It may have a generator of its own, or count its calls; candidates of a search could then not be compared.

    Raises:
        InputError: the two losses differ by more than 0.1 %.
    """
    few, found = probe.part(_TRIED), []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):  # the network itself may draw from torch's generator
            torch.default_generator.manual_seed(0)
            found.append(few.mean(model))
    if not math.isclose(*found, rel_tol=_CLOSE) and all(map(math.isfinite, found)):
        raise InputError(
            f"The loss is {found[0]:.6g} and, for the same timesteps and generator, {found[1]:.6g}; expected the same twice: draw "
            "everything from its third argument, as in torch.randn(shape, generator=generator)."
        )


@contextmanager
def of_the_given_network(model: nn.Module) -> Iterator[None]:
    """Refuse a loss that never calls the network within the block: it would measure another one, such as that before pruning.

    Calls of the network's children count, for a loss that calls ``forward`` itself.

    Raises:
        InputError: neither the network nor one of its children was called.
    """
    was_called = False

    def called(*_: Any) -> None:
        nonlocal was_called
        was_called = True

    handles = [module.register_forward_pre_hook(called) for module in (model, *model.children())]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if not was_called:
        raise InputError(
            f"The loss does not call the network that it is given ({type(model).__name__}), so it may measure another one, such as "
            "the network before pruning; call the first argument in it, as in model(noisy, timesteps)."
        )


@contextmanager
def left_to_the_caller(model: nn.Module) -> Iterator[None]:
    """Refuse a loss that differentiates itself within the block: its gradients would be counted twice, or its graph be gone.

    Raises:
        InputError: a gradient of the network has changed, or there was nothing to differentiate.
    """

    def gradients() -> list[tuple[int, int]]:
        found = [parameter.grad for parameter in model.parameters()]
        return [(-1, -1) if gradient is None else (id(gradient), gradient._version) for gradient in found]

    before, wrong = (
        gradients(),
        "The loss differentiates itself; expected one that only returns its number: leave backward() out of it.",
    )
    try:
        yield
    except RuntimeError as error:
        if "does not require grad" in str(error):  # what torch says of backward() where losses are only measured
            raise InputError(wrong) from error
        raise
    if gradients() != before:
        raise InputError(wrong)


def one_number(loss: object) -> Tensor:
    """A loss as a tensor without dimensions.

    Raises:
        InputError: it is no tensor, has more numbers than one, or no real floating-point number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.is_floating_point():
        shape = isinstance(loss, Tensor) and f"shape {tuple(loss.shape)} and {str(loss.dtype).removeprefix('torch.')}"
        raise InputError(
            f"The loss returned {shape or type(loss).__name__}; expected a tensor with one floating-point number, the mean over "
            "the batch."
        )
    return loss.squeeze()


@contextmanager
def only_from_the_generator(model: nn.Module) -> Iterator[None]:
    """Refuse a loss that draws from a global generator within the block; the network itself may use torch's generator.

    Raises:
        InputError: the state of torch's, NumPy's or Python's global generator has changed.
    """
    before, inside = _states(), False
    last = before["torch"]

    def enter(*_: Any) -> None:
        nonlocal inside
        inside = inside or not torch.equal(torch.get_rng_state(), last)

    def leave(*_: Any) -> None:
        nonlocal last
        last = torch.get_rng_state()

    handles = (model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    after = _states()
    changed = ["torch"] if inside or not torch.equal(after["torch"], last) else []
    changed += [name for name in ("NumPy", "Python") if after[name] != before[name]]
    if changed:
        raise InputError(
            f"The loss draws from {changed[0]}'s global generator, so it is different each time; draw everything from its third "
            "argument, as in torch.randn(shape, generator=generator)."
        )


def _states() -> dict[str, Any]:
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state is what is checked
    own = numpy["state"]
    return {
        "torch": torch.get_rng_state(),
        "NumPy": (own["pos"], own["key"].tobytes(), numpy["has_gauss"]),
        "Python": random.getstate(),
    }
