"""What is asked of experts as if they were one network: questions go to one expert, settings to all of them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from prunekit.slim import SlimModel

__all__ = ["ReachesAll", "Setting", "asked", "is_method"]


class Setting:
    """A call that changed every expert, kept so that it can be repeated for experts that are loaded later.

    Args:
        name: of the method.
        args: its arguments by place.
        kwargs: its arguments by name.
    """

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.name, self.args, self.kwargs = name, args, kwargs

    def __call__(self, network: nn.Module, slim: SlimModel) -> Any:
        """Make the call on one network; dicts are copied, because diffusers empties a dict of attention processors."""
        args = [_own(value) for value in self.args]
        return getattr(network, self.name)(*args, **{key: _own(value) for key, value in self.kwargs.items()})


def is_method(network: type[nn.Module], name: str) -> bool:
    """Whether a class defines a method of this name (no property, module or value)."""
    found = getattr(network, name, None)
    return callable(found) and not isinstance(found, type)


def asked(network: type[nn.Module], name: str) -> bool:
    """Whether a name may be looked up in a network on the experts' behalf.

    Names with an underscore belong to whoever put them on one network (hooks of accelerate), unless the class has them.
    """
    return not name.startswith("__") and (not name.startswith("_") or hasattr(network, name))


def _own(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict) else value


def _reaching(name: str) -> Callable[..., Any]:
    """A method that makes the call of its name on every expert."""

    def method(self: "ReachesAll", *args: Any, **kwargs: Any) -> Any:
        return self.reach(name, *args, **kwargs)

    method.__name__ = name
    method.__doc__ = f"``{name}`` of every expert, with the same arguments."
    return method


class ReachesAll:
    """Methods that every model of diffusers and torch has, each called on every expert instead of on their whole."""

    def reach(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of every expert.

        Args:
            name: of the method.
            args: its arguments by place.
            kwargs: its arguments by name.
        """
        raise NotImplementedError

    compile = _reaching("compile")
    compile_repeated_blocks = _reaching("compile_repeated_blocks")
    disable_gradient_checkpointing = _reaching("disable_gradient_checkpointing")
    disable_npu_flash_attention = _reaching("disable_npu_flash_attention")
    disable_xformers_memory_efficient_attention = _reaching("disable_xformers_memory_efficient_attention")
    disable_xla_flash_attention = _reaching("disable_xla_flash_attention")
    enable_gradient_checkpointing = _reaching("enable_gradient_checkpointing")
    enable_group_offload = _reaching("enable_group_offload")
    enable_layerwise_casting = _reaching("enable_layerwise_casting")
    enable_npu_flash_attention = _reaching("enable_npu_flash_attention")
    enable_xformers_memory_efficient_attention = _reaching("enable_xformers_memory_efficient_attention")
    enable_xla_flash_attention = _reaching("enable_xla_flash_attention")
    reset_attention_backend = _reaching("reset_attention_backend")
    set_attention_backend = _reaching("set_attention_backend")
