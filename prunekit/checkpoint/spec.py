"""A network by its name and constructor arguments: the registry of architectures, and networks that the caller builds."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit._json import JsonDict, JsonObject
from prunekit._messages import did_you_mean, one_line
from prunekit.checkpoint.callings import Taken, calling_of, taken_by
from prunekit.checkpoint.config_limits import Frugal, ParametersOnMeta, check_values, mistyped
from prunekit.checkpoint.denoisers import denoiser, forward_parameters
from prunekit.checkpoint.deriving import derived_inputs
from prunekit.checkpoint.inputs import form_of, inputs_of
from prunekit.conditions import Calling
from prunekit.errors import FileFormatError, InputError, PrunekitError
from prunekit.graph.copying import copied
from prunekit.graph.forward_pass import Inputs

__all__ = ["Factory", "InputsOf", "ModelSpec"]

Factory = Callable[[JsonDict], nn.Module]
"""Builds the unpruned network from its config, for networks that are not denoisers of diffusers."""

InputsOf = Callable[[JsonDict], Inputs]
"""Makes the arguments of one forward pass at batch 1 from the config."""

_OF_IMAGES = ("DiTTransformer2DModel", "Transformer2DModel", "UNet2DConditionModel", "UNet2DModel")
_CONDITIONS = (
    "addition_embed_type",
    "encoder_hid_dim_type",
    "encoder_hid_dim",
    "time_cond_proj_dim",
    "caption_channels",
)
_REGISTERED = ("_parameters", "_buffers", "_modules")
_MAX_SAMPLE = 2**24  # elements of one input
_MAX_PARAMETERS = 2**35
_MAX_TENSORS = 20_000
_MAX_OPERATIONS = 10_000  # of a constructor; the U-Net of SDXL takes 1,400


@dataclass(frozen=True)
class ModelSpec:
    """A network by its class name and constructor arguments.

    Args:
        class_name: a denoiser of the installed diffusers (a file can never name anything else), or any name with a ``factory``.
        config: constructor arguments, JSON-able.
        factory: builds the network from ``config`` if its class is not a denoiser of diffusers; never stored.
        inputs: arguments of one forward pass at batch 1, or a callable that makes them from the config; derived from the config if
            missing. For denoisers of diffusers, their shapes are stored.
    """

    class_name: str
    config: JsonDict
    factory: Factory | None = field(default=None, compare=False, repr=False)
    inputs: Inputs | InputsOf | None = field(default=None, compare=False, repr=False)

    def build(self) -> nn.Module:
        """A freshly initialised network.

        Raises:
            InputError: the class is unknown, does not take the config, or would misread a value of it.
        """
        make = self._class() if self.factory is None else None
        said = None if make is None else mistyped(make, self.config)
        if said is not None:
            raise InputError(f"The config of {self.class_name} has {said}.")
        try:
            model: nn.Module = make(**self.config) if make else self.factory(self.config)  # type: ignore[misc]
        except PrunekitError:
            raise
        except Exception as error:  # constructors say in many ways that they do not take something
            meant = "" if make is None else _misspelt(make, self.config)
            raise InputError(f"{self.class_name} does not take this config: {one_line(error)}{meant}.") from error
        return model

    def check_size(self) -> None:
        """Refuse a network that is larger than any that can be trained, before memory is taken for it.

        Raises:
            FileFormatError: it has more parameters or layers than that.
            InputError: the class is unknown or does not take the config.
        """
        with torch.device("meta"), Frugal(_MAX_OPERATIONS, 2**26):
            model = self.build()
        if sum(parameter.numel() for parameter in model.parameters()) > _MAX_PARAMETERS:
            raise FileFormatError(f"The config describes more than {_MAX_PARAMETERS:,} parameters.")

    def skeleton(self, shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
        """The network without memory for its weights, built within bounds that the tensors of a file set.

        Non-persistent buffers, which no file stores, have their values. A factory's network is built by the factory, within the
        same bounds.

        Args:
            shapes: of the file's tensors, by name; they may be smaller than the network's.

        Raises:
            FileFormatError: the config asks for a larger network than such a file can hold.
            InputError: the class is unknown or does not take the config.
        """
        if len(shapes) > _MAX_TENSORS:
            raise FileFormatError(f"The file has {len(shapes):,} tensors; expected at most {_MAX_TENSORS:,}.")
        elements = 2**26 + 1024 * sum(map(math.prod, shapes.values()))
        if self.factory is not None:
            with Frugal(1_000_000, elements):
                return self.build()
        operations = 4096 + 32 * len(shapes)
        with torch.device("meta"), Frugal(operations, elements):
            model = self.build()
        if sum(parameter.numel() for parameter in model.parameters()) > _MAX_PARAMETERS:
            raise FileFormatError(f"The config describes more than {_MAX_PARAMETERS:,} parameters.")
        stored = set(model.state_dict())
        if not any(map(_keeps_meta, model.modules())) and all(
            name in stored or name in shapes for name, _ in model.named_buffers()
        ):
            return model
        with ParametersOnMeta(), Frugal(operations, elements):
            model = self.build()
        lost = [name for name, buffer in model.named_buffers() if name not in stored and buffer.is_meta]
        if lost:
            raise InputError(f"{self.class_name} cannot be built without its weights ({', '.join(lost[:3])}).")
        return model

    def _class(self) -> type[nn.Module]:
        return denoiser(self.class_name)

    def example_inputs(self) -> Any:
        """Arguments of one forward pass at batch 1, by name: the caller's, or derived from the config.

        Raises:
            InputError: the class is unknown, or its inputs cannot be derived and the caller gave none; the sentence shows how.
        """
        if self.inputs is not None:
            return self.inputs(self.config) if callable(self.inputs) else self.inputs
        told = any(self.config.get(key) for key in _CONDITIONS)
        arguments = inspect.signature(self._class()).parameters.values()
        config = {argument.name: argument.default for argument in arguments} | dict(self.config)
        if self.class_name not in _OF_IMAGES or told or config.get("in_channels") is None:
            return derived_inputs(self._class(), self.config)
        height, width = _sides(config)
        noisy = torch.zeros(1, int(config["in_channels"]), height, width)
        inputs = {"sample": noisy, "timestep": torch.zeros(1, dtype=torch.long)}
        if self.class_name.endswith("Transformer2DModel"):
            inputs["hidden_states"] = inputs.pop("sample")
        if (
            self.class_name == "DiTTransformer2DModel"
            or config.get("num_class_embeds")
            or config.get("class_embed_type") == "timestep"
            or str(config.get("norm_type")).startswith("ada_norm_zero")
        ):
            inputs["class_labels"] = torch.zeros(1, dtype=torch.long)
        if self.class_name == "UNet2DConditionModel":
            inputs["encoder_hidden_states"] = torch.zeros(1, 8, int(config.get("cross_attention_dim") or 1280))
        return inputs

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the network takes as ``class_labels``; None without classes, or for another kind of condition."""
        number: Any = None
        if self.class_name == "UNet2DModel" and not self.config.get("class_embed_type"):
            number = self.config.get("num_class_embeds")
        elif self.class_name == "DiTTransformer2DModel":
            number = self.config.get("num_embeds_ada_norm", 1000)
        return int(number) if number else None

    def conditions(self) -> Taken:
        """The conditions that the network takes.

        Raises:
            InputError: as :meth:`example_inputs`.
        """
        return Taken() if self.factory is not None else taken_by(self._arguments(), self.example_inputs())

    def calling(self, fixed: Mapping[str, object] | None = None) -> Calling:
        """How the network is called; a network of a factory's as ``model(x, t, …)``.

        Args:
            fixed: arguments that are the same for every sample, by their paths, in place of those of the example inputs.

        Raises:
            InputError: as :meth:`example_inputs`.
        """
        if self.factory is not None:
            return Calling(fixed=fixed or {})
        return calling_of(self._arguments(), self.example_inputs(), fixed)

    def _arguments(self) -> tuple[str, ...]:
        return tuple(forward_parameters(self._class()))

    def with_inputs(self, inputs: Inputs | InputsOf) -> "ModelSpec":
        """The same network with other arguments of a forward pass at batch 1."""
        return replace(self, inputs=inputs)

    def with_factory(self, factory: Factory | nn.Module | None, inputs: Any = None) -> "ModelSpec":
        """The same network, built by a function or copied from a network of the caller's, run with the caller's inputs."""
        if isinstance(factory, nn.Module):
            unpruned = factory
            return replace(self, factory=lambda _: copied(unpruned), inputs=inputs)
        return replace(self, factory=factory, inputs=inputs)

    @classmethod
    def of(cls, model: Any) -> "ModelSpec":
        """The spec of a diffusers model, from its own config.

        Raises:
            InputError: the model is no denoiser of diffusers.
        """
        name = type(model).__name__
        if not type(model).__module__.startswith("diffusers.") or not _is_denoiser(type(model)):
            raise InputError(
                f"{name} is not one of DiTTransformer2DModel, UNet2DModel and the other denoisers of diffusers; it cannot be "
                "described by a config alone."
            )
        config = {key: value for key, value in dict(model.config).items() if not key.startswith("_")}
        return cls(name, json.loads(json.dumps(config)))

    def to_json(self) -> JsonObject:
        """``{"class", "config"}``, and the form of the caller's ``"inputs"``, see :mod:`prunekit.checkpoint.inputs`.

        Inputs that have no JSON form are left out; who loads the model gives them again.
        """
        found: JsonObject = {"class": self.class_name, "config": dict(self.config)}
        inputs = self.example_inputs() if self.factory is None and self.inputs is not None else None
        form = form_of(inputs) if isinstance(inputs, Mapping) else None
        return found if form is None else {**found, "inputs": form}

    @classmethod
    def from_json(cls, data: JsonDict) -> "ModelSpec":
        """Read what :meth:`to_json` wrote, or a diffusers ``config.json`` with its ``_class_name``; sizes are bounded.

        Raises:
            FileFormatError: keys are missing, or a value is beyond any network's.
        """
        if not isinstance(data, Mapping):
            raise FileFormatError(f"An architecture needs 'class' and 'config'; got a {type(data).__name__}.")
        try:
            short = "_class_name" not in data
            name, config = (data["class"], dict(data["config"])) if short else (data["_class_name"], dict(data))
        except (KeyError, TypeError, ValueError) as error:
            found = ", ".join(sorted(map(str, data))[:9])
            raise FileFormatError(f"An architecture needs 'class' and 'config'; got {found or 'nothing'}.") from error
        config = {str(key): value for key, value in config.items() if not str(key).startswith("_")}
        inputs = inputs_of(data["inputs"], "The model's inputs") if short and data.get("inputs") is not None else None
        spec = cls(str(name), config, inputs=inputs)
        check_values(spec.config, f"The config of {spec.class_name[:80]!r}")
        if isinstance(config.get("sample_size"), int | list | tuple):
            _sides(config)
        return spec


def _misspelt(network: type[nn.Module], config: JsonDict) -> str:
    """A hint for the first key that a network's constructor does not know."""
    known = inspect.signature(network).parameters
    unknown = next((key for key in config if key not in known), None)
    return "" if unknown is None else did_you_mean(unknown, known)


def _is_denoiser(network: type[nn.Module]) -> bool:
    try:
        return denoiser(network.__name__) is network
    except InputError:
        return False


def _keeps_meta(module: nn.Module) -> bool:
    """Whether a module keeps tensors without values outside its parameters and buffers, such as a list of rotary tables."""
    own = {key: value for key, value in vars(module).items() if key not in _REGISTERED}
    return any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(own))


def _sides(config: JsonDict) -> tuple[int, int]:
    """Height and width of a sample; 32 if the config does not state them."""
    size = config.get("sample_size") or 32
    sides = [size, size] if isinstance(size, int) else list(size)
    channels = config.get("in_channels") or 1
    whole = all(isinstance(number, int) and number > 0 for number in (*sides, channels))
    if len(sides) != 2 or not whole or math.prod(sides) * channels > _MAX_SAMPLE:
        raise FileFormatError(
            f"The config's sample_size {size} with in_channels {channels} is no image of 1 … {_MAX_SAMPLE:,} numbers."
        )
    return sides[0], sides[1]
