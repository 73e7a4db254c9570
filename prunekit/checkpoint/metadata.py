"""Checks of a file's claims against its tensors: schedule, prediction type, parameters, MACs, kept channels."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunekit.checkpoint.config_limits import check_schedule
from prunekit.cost.counter import FORMULAS, ForwardModules
from prunekit.errors import FileFormatError, InputError
from prunekit.graph import PruningPlan
from prunekit.graph.layers import dim_of, layer_kind
from prunekit.schedule import PREDICTION_TYPES, NoiseSchedule

__all__ = ["check_kept", "check_params", "checked_prediction", "counted", "read_schedule"]

"""What networks predict, by diffusers' names."""
_T = TypeVar("_T")
_LATER = re.compile(r":\d+$")  # a layer's second and further groups have their first position in their names


def read_schedule(config: Any, what: str, num_timesteps: int | None = None) -> NoiseSchedule:
    """The noise schedule of a file's config.

    Args:
        config: the file's config.
        what: owner of the schedule, at the start of error messages.
        num_timesteps: required number of timesteps; any number if missing.

    Raises:
        FileFormatError: it is not a schedule, or has another number of timesteps.
    """
    check_schedule(config, what)
    try:
        schedule = NoiseSchedule.from_config(config)
    except (InputError, OverflowError) as error:
        raise FileFormatError(f"{what} cannot be used ({str(error).rstrip('.')[:200]}).") from error
    if num_timesteps is not None and schedule.num_timesteps != num_timesteps:
        raise FileFormatError(
            f"{what} has {schedule.num_timesteps} timesteps; expected num_timesteps, {num_timesteps}."
        )
    return schedule


def checked_prediction(kind: object, what: str) -> str:
    """A prediction type that is known.

    Raises:
        FileFormatError: it is none of :data:`~prunekit.schedule.PREDICTION_TYPES`.
    """
    if not isinstance(kind, str) or kind not in PREDICTION_TYPES:
        raise FileFormatError(
            f"{what} has prediction_type {kind!r:.60}; expected one of {', '.join(PREDICTION_TYPES)}."
        )
    return kind


def check_params(model: nn.Module, params: int, what: str) -> None:
    """Refuse a number of parameters that is not the model's.

    Raises:
        FileFormatError: it is another.
    """
    found = sum(parameter.numel() for parameter in model.parameters())
    if params != found:
        raise FileFormatError(f"{what} says that the model has {params:,} parameters; its tensors have {found:,}.")


def counted(run: Callable[[], _T]) -> tuple[_T, int]:
    """A function's result, and the MACs of the networks that it runs."""
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = ForwardModules()
    with counter:
        result = run()
    return result, counter.get_total_flops() // 2


def check_kept(plan: PruningPlan, whole: nn.Module, shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Refuse kept channels that the layers which make them cannot have.

    A group's channels lie one, or a fixed number of times, on its layer's output axis. So the number of kept ones is known from the
    tensor's size before and after; which of them were kept is not.

    Args:
        plan: what a file says was kept.
        whole: the unpruned network.
        shapes: of the file's tensors, by name.
        what: the file, as error messages begin.

    Raises:
        FileFormatError: a layer does not exist or is not smaller, or has another number of channels than the plan keeps.
    """
    modules, by_layer = dict(whole.named_modules()), dict[str, dict[str, tuple[int, ...]]]()
    for name, kept in plan.kept.items():
        by_layer.setdefault(name if name in modules else _LATER.sub("", name), {})[name] = kept
    tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
    for layer, groups in by_layer.items():
        kind = layer_kind(modules.get(layer))
        weight, dim = f"{layer}.weight", None if kind is None else dim_of(kind, "out", "weight", 2)
        if dim is not None and weight in shapes:
            axes = [(int(modules[layer].weight.shape[dim]), shapes[weight][dim])]
        elif layer in shapes and layer in tensors:  # a tensor of no known layer may make channels along any dimension
            axes = list(zip(tensors[layer].shape, shapes[layer], strict=True))
        else:
            raise FileFormatError(f"{what} has a plan for channels of {layer[:80]!r}, which makes none.")
        sole = list(groups) == [layer]
        if not any(_possible([*groups.values()], full, left, sole) for full, left in axes):
            full, left = axes[0]
            told = ", ".join(str(len(kept)) for kept in groups.values())
            raise FileFormatError(
                f"{what} has a plan that keeps {told} channels of {layer[:80]}, and {left} of its {full} are there."
            )


def _possible(kept: list[tuple[int, ...]], full: int, left: int, sole: bool) -> bool:
    """Whether a layer of ``full`` channels can have ``left`` when of its groups these root channels are kept."""
    least = sum(map(len, kept))
    if not least <= left <= full or any(own[-1] >= full for own in kept):
        return False
    if not sole:
        return True
    size, rest = divmod(full * least, left)  # one group that spans the axis, each root channel the same number of times
    return rest == 0 and full % size == 0 and size > kept[0][-1]
