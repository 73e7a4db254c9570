r"""A LoRA of the base on experts: its matrices are cut as the base's weights were.

A LoRA adds :math:`BA` to a weight W (arXiv:2106.09685, section 4.1). Pruning keeps rows R and columns C of W and may scale rows by
a diagonal D, so that :math:`D (W + BA)_{R,C} = D W_{R,C} + (D B_R)(A_C)`: cutting B by rows and A by columns is exact.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from prunekit.checkpoint import ModelSpec
from prunekit.checkpoint.tensors import read_tensors
from prunekit.errors import InputError, PrunekitError
from prunekit.graph import ChannelGraph, HeadMode, NormMode, PruningPlan, slicer, trace
from prunekit.graph.surgery import are_gone, tensors_of
from prunekit.slim import SlimModel

__all__ = ["LoraLoading", "cut_lora"]

_followed: dict[
    tuple[str, str, str, bool], tuple[nn.Module, ChannelGraph]
] = {}  # the last base, which every expert needs again
_A, _B, _BIAS, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias", ".lora_magnitude_vector"


class LoraLoading:
    """Loads a LoRA of the base onto one expert after another.

    Args:
        weights: tensors by name, as diffusers' pipelines hand them to ``load_lora_adapter``, or a safetensors file.
        prefix: of the names that belong to the denoiser; None if all do.
        options: further arguments of ``load_lora_adapter``.

    Raises:
        InputError: ``weights`` is neither.
    """

    def __init__(
        self, weights: Mapping[str, Tensor] | Path | str, prefix: str | None, options: Mapping[str, Any]
    ) -> None:
        if not isinstance(weights, Mapping):
            if not Path(weights).is_file():
                raise InputError(
                    f"Got {weights} as a LoRA; expected its tensors or a safetensors file: load it through the pipeline, by "
                    "load_lora_weights."
                )
            weights = read_tensors(Path(weights))
        self.weights, self.prefix, self.options = dict(weights), prefix, dict(options)

    def __call__(self, network: nn.Module, slim: SlimModel) -> None:
        """Load it onto one expert.

        Args:
            network: the expert.
            slim: says which channels it kept.

        Raises:
            InputError: the LoRA cannot be cut exactly, or the expert's class takes none.
        """
        if not hasattr(network, "load_lora_adapter"):
            raise InputError(f"A {type(network).__name__} of diffusers takes no LoRA.")
        weights, prefix = self.weights, self.prefix
        if not slim.is_whole:
            own = {key.removeprefix(f"{prefix}."): one for key, one in weights.items() if key.startswith(f"{prefix}.")}
            mine = own if prefix else weights
            cut = cut_lora(mine, slim.spec, slim.plan)
            if mine and not cut:  # all of its layers went with removed branches
                return
            weights = {f"{prefix}.{key}" if prefix else key: tensor for key, tensor in cut.items()}
        network.load_lora_adapter(weights, prefix=prefix, **self.options)  # type: ignore[operator]


def cut_lora(weights: Mapping[str, Tensor], spec: ModelSpec, plan: PruningPlan) -> dict[str, Tensor]:
    """A LoRA of the base for a network that was pruned by a plan.

    Args:
        weights: its tensors by name, in peft's or one of diffusers' older namings.
        spec: the base's architecture.
        plan: the channels that the network kept.

    Returns:
        The tensors in peft's naming; untouched ones are the LoRA's own.

    Raises:
        InputError: it has parts that cannot be cut exactly, or the base's channel groups cannot be found again.
    """
    if weights and not any("lora_A" in key for key in weights):
        from diffusers.utils import convert_unet_state_dict_to_peft  # noqa: PLC0415 - only older files need it

        weights = convert_unet_state_dict_to_peft(dict(weights))
    base = (spec.class_name, json.dumps(dict(spec.config), sort_keys=True), plan.fingerprint, bool(plan.removed))
    if base not in _followed:
        _followed.clear()
        _followed[base] = _base(spec, plan)
    model, graph = _followed[base]
    cut = slicer(model, graph, plan)
    columns = {
        key: torch.from_numpy(kept)
        for (layer, axis), kept in plan.positions(graph).items()
        for key, dim in tensors_of(model, layer, axis)
        if dim == 1
    }
    found, stubs = {}, plan.stubs(graph)
    for key, tensor in weights.items():
        layer, kind = _parts(key)
        if are_gone(layer, stubs):
            continue
        weight = f"{layer}.weight"
        if kind == _MAGNITUDE and weight in columns:
            raise InputError(
                f"The LoRA scales {layer} by its rows' norms (DoRA), which change where the expert is narrower."
            )
        if kind == _A:
            found[key] = tensor.index_select(1, columns[weight].to(tensor.device)) if weight in columns else tensor
        elif kind == _B:
            found[key] = cut(weight, tensor, 1)
        elif kind == _BIAS:
            found[key] = cut(f"{layer}.bias", tensor)
        elif kind == _MAGNITUDE:
            found[key] = cut(weight, tensor.reshape(-1, 1), 1).reshape(-1)
        else:
            raise InputError(
                f"The adapter's tensor {key} is none of a LoRA, so it cannot be cut to the expert's widths."
            )
    return found


def _parts(key: str) -> tuple[str, str]:
    """A tensor's layer, and which part of the LoRA it is; empty if it is none."""
    kind = next((kind for kind in (_A, _B, _BIAS, _MAGNITUDE) if key.endswith(kind)), "")
    return key.removesuffix(kind), kind


def _base(spec: ModelSpec, plan: PruningPlan) -> tuple[nn.Module, ChannelGraph]:
    """The base without weights, and its channel groups as they were when the expert was pruned."""
    with torch.device("meta"):
        model = spec.build()
    modes = [(norm, head) for norm in get_args(NormMode) for head in get_args(HeadMode)]
    modes.sort(key=lambda mode: mode != ("even", "whole"))
    for norm, head in modes:
        try:
            graph = trace(model, spec.example_inputs(), norm, head, shrink="both" if plan.removed else "width")
        except PrunekitError:  # the network cannot be followed in this mode, so it was not pruned in it
            continue
        if graph.fingerprint == plan.fingerprint and {*plan.removed} <= graph.branch_of.keys():
            return model, graph
    raise InputError(
        f"The expert was pruned with other channel groups than {spec.class_name} has now (fingerprint {plan.fingerprint}), so the "
        "LoRA cannot be cut to its widths; load it onto the base before pruning."
    )
