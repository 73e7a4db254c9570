"""Example inputs of a denoiser from its config: the first reading of it with which a forward pass runs on the meta device."""

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit._json import JsonDict, JsonObject
from prunekit._messages import one_line
from prunekit.checkpoint.arguments import CHANNELS, OPTIONAL, RULES, SPARED, TEXT_WIDTHS, Case, first
from prunekit.checkpoint.config_limits import Frugal
from prunekit.checkpoint.denoisers import forward_parameters
from prunekit.errors import InputError, PrunekitError
from prunekit.graph.forward_pass import run_once

__all__ = ["derived_inputs"]

_MAX_OPERATIONS, _MAX_ELEMENTS = 1_000_000, 2**26
_MAX_TRIALS = 200
_IMAGE, _VIDEO, _TOKENS, _SOUND = ("BCHW",), ("BCFHW", "BFCHW", "BFHWC"), ("BNC",), ("BCL", "BLC")
_UNDECIDED = (
    "meta tensor",
    "Meta",
    "data-dependent",
    "nonzero",
    "device meta",
    "'meta'",
    "unsupported scalarType",
    "meta device",
)
_known: dict[str, Case] = {}


def derived_inputs(network: type[nn.Module], config: JsonDict) -> dict[str, object]:
    """Arguments of one forward pass at batch 1, by name.

    Args:
        network: a denoiser's class.
        config: its constructor's arguments; those that are missing have the class's defaults.

    Raises:
        InputError: they cannot be derived; the sentence shows what to write instead.
    """
    whole = {one.name: one.default for one in inspect.signature(network).parameters.values()} | dict(config)
    whole["_arguments"] = tuple(forward_parameters(network))
    key = json.dumps([network.__name__, dict(config)], sort_keys=True, default=str)
    if key in _known:
        return _arguments(network, _known[key])
    case, problem = _chosen(network, config, whole)
    if case is not None:
        _known[key] = case
        return _arguments(network, case)
    raise InputError(
        f"The example inputs of {network.__name__} cannot be derived from its config ({problem[:200]}); write them as JSON, "
        f"a shape for each argument, such as {_example(network, whole)}, and give the file by `inputs`."
    )


def _chosen(network: type[nn.Module], config: JsonDict, whole: JsonDict) -> tuple[Case | None, str]:
    """The first case that runs, else the first that the meta device cannot decide about; and why the likeliest one stops."""
    undecided, problem, model = None, "", _on_meta(network, config)
    for case in itertools.islice(_cases(network, whole), _MAX_TRIALS):
        try:
            with torch.device("meta"):
                inputs = _bounded(_arguments(network, case))
                if model is not None:
                    run_once(model, inputs)
            return case, ""
        except Exception as error:  # a network stops in any way when an argument is not what it expects
            problem = problem or f"{type(error).__name__}: {one_line(error)}"
            if undecided is None and any(word in str(error) for word in _UNDECIDED):
                undecided = case
    return undecided, problem


def _bounded(inputs: dict[str, object]) -> dict[str, object]:
    """Arguments that are small enough to be made for real.

    Raises:
        ValueError: they are not.
    """
    elements = sum(value.numel() for value in tree_leaves(inputs) if isinstance(value, Tensor))
    if elements > _MAX_ELEMENTS:
        raise ValueError(f"they would hold {elements:,} numbers")
    return inputs


def _arguments(network: type[nn.Module], case: Case) -> dict[str, object]:
    """The arguments that a case gives.

    Raises:
        ValueError: the network needs one that has no rule.
    """
    found: JsonObject = {}
    for name, parameter in forward_parameters(network).items():
        needed = parameter.default is inspect.Parameter.empty
        if needed and name not in RULES:
            raise ValueError(f"it takes {name}")
        wanted = name in OPTIONAL and parameter.default is None and (case.mask is not None or name not in SPARED)
        if needed or wanted:
            value = RULES[name](case)
            if needed or value is not None:
                found[name] = value
    return found


def _cases(network: type[nn.Module], config: JsonDict) -> Iterator[Case]:
    """Readings of a config, the likeliest first."""
    channels = first(config, *CHANNELS) or 4
    widths = dict.fromkeys(width for key in TEXT_WIDTHS if (width := first(config, key)))
    masked = bool(SPARED & set(config["_arguments"])) or any("mask" in name for name in config["_arguments"])
    for layout, wide, text, mask, ids, time, texts in itertools.product(
        _layouts(network.__name__, config["_arguments"]),
        (channels, 2 * channels + 1) if "in_visual_dim" in config else (channels,),
        widths or (0,),
        (None, torch.int64, torch.bool, torch.float32) if masked else (None,),
        (0, 1) if {"img_ids", "img_shapes", "position_ids"} & set(config["_arguments"]) else (0,),
        ("real", "whole", "frames"),  # the meta device does not notice whole numbers where real ones are needed
        ("sample", "token", "frame"),
    ):
        framed, rowed = "F" in layout, "N" in layout or "L" in layout
        if (framed or "frame" not in (time[:-1], texts)) and (rowed or texts != "token"):
            yield Case(config, layout, wide, text, time, mask, ids, texts)


def _layouts(name: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Layouts of the sample, the likeliest first, by the words of a class's and its arguments' names."""
    if {"proj_embedding"} & set(arguments):
        return ("BC",)
    order: tuple[tuple[str, ...], ...]
    if {"img_ids", "img_shapes", "position_ids", "num_frames"} & set(arguments):
        order = (_TOKENS, _IMAGE, _VIDEO, _SOUND)
    elif any(word in name for word in ("3D", "Video", "Motion", "SpatioTemporal", "I2V")):
        order = (_VIDEO, _TOKENS, _IMAGE, _SOUND)
    elif any(word in name for word in ("1D", "Audio", "Music")):
        order = (_SOUND, _TOKENS, _IMAGE, _VIDEO)
    else:
        order = (_IMAGE, _TOKENS, _VIDEO, _SOUND)
    if "SpatioTemporal" in name:
        return ("BFCHW",)
    return tuple(itertools.chain(*order))


def _on_meta(network: type[nn.Module], config: JsonDict) -> nn.Module | None:
    """The network without memory; None for one that cannot be built so.

    Raises:
        FileFormatError: the config asks for more than any network has.
        InputError: the class does not take it.
    """
    with torch.device("meta"), Frugal(_MAX_OPERATIONS, _MAX_ELEMENTS):
        try:
            return network(**config).eval()
        except (NotImplementedError, RuntimeError):
            return None
        except PrunekitError:
            raise
        except Exception as error:  # constructors say in many ways that they do not take something
            raise InputError(f"{network.__name__} does not take this config: {one_line(error)}.") from error


def _example(network: type[nn.Module], config: Mapping[str, object]) -> str:
    """What a file of inputs for the network might look like, on one line."""
    case = next(_cases(network, config))
    shapes: dict[str, object] = {}
    for name, parameter in forward_parameters(network).items():
        if parameter.default is not inspect.Parameter.empty and name not in ("encoder_hidden_states", "timestep"):
            continue
        try:
            with torch.device("meta"):
                value = RULES[name](case) if name in RULES else None
        except (KeyError, TypeError, ValueError):
            value = None
        shape = list(value.shape) if isinstance(value, Tensor) else [1, 8]
        kind = (
            {}
            if not isinstance(value, Tensor) or value.is_floating_point()
            else {"dtype": str(value.dtype).split(".")[1]}
        )
        shapes[name] = {"shape": shape, **kind}
    return json.dumps(shapes)
