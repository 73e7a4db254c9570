"""Networks as ONNX files, checked with onnxruntime against the network before they are written to their final path.

Needs the ``onnx`` extra. The file has one input for each tensor among the network's arguments, named by its path
(``encoder_hidden_states``, ``added_cond_kwargs.text_embeds``), and one output, ``prediction``; the first dimension of every input
with a batch is variable.
"""

import importlib.util
import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit._files import atomic_path
from prunekit._messages import one_line
from prunekit.checkpoint.callings import TIMES
from prunekit.conditions import flat, nested, prediction_of
from prunekit.errors import GraphError, InputError
from prunekit.graph.forward_pass import Inputs, evaluation_mode
from prunekit.nets import TimestepExperts

__all__ = ["TOLERANCE", "Exported", "export_onnx"]

TOLERANCE = 1e-4
OUTPUT = "prediction"
_MAX_BYTES = 2**31 - 2**20  # limit of a protocol buffer, which holds the weights
_OPSET = 17
_BATCHES = (1, 3)  # of the check


@dataclass(frozen=True)
class Exported:
    """An ONNX file and how near it is to its network.

    Args:
        path: the file.
        inputs: names of its inputs, in order.
        difference: largest |onnxruntime − torch| found, relative to the largest |torch| if that is above 1.
    """

    path: Path
    inputs: tuple[str, ...]
    difference: float


class _Plain(nn.Module):
    """A network with keywords and dataclasses, wrapped for the exporter: positional arguments in, one tensor out.

    Args:
        model: the network.
        names: paths of the arguments; None for a network that takes them in order.
        constants: arguments that are no tensors, by their paths.
    """

    def __init__(self, model: nn.Module, names: Sequence[str] | None, constants: Mapping[str, object]) -> None:
        super().__init__()
        self.model, self.names, self.constants = model, names, dict(constants)

    def forward(self, *args: Tensor) -> Tensor:
        """The network's first output."""
        if self.names is None:
            return prediction_of(self.model(*args))
        return prediction_of(self.model(**nested({**self.constants, **dict(zip(self.names, args, strict=True))})))


def export_onnx(
    model: nn.Module, inputs: Inputs, path: Path | str, tolerance: float = TOLERANCE, seed: int = 0
) -> Exported:
    """Write a network as an ONNX file with a variable batch size, after onnxruntime has reproduced the network's outputs.

    Args:
        model: the network, on the CPU; it is run in eval mode.
        inputs: arguments of one forward pass at batch 1, by name or in order; in mappings, too. The batch is the first dimension
            of every tensor whose first dimension is that of the first tensor; others keep their shape. Values that are no tensors
            become part of the file. The check draws integers from 0 to the largest in these arguments.
        path: file to write; it is either written completely or not at all.
        tolerance: largest difference allowed: absolute if outputs are below 1, else relative to the largest.
        seed: seed of the check's random inputs.

    Raises:
        InputError: the extra is not installed, the network is too large for one file, or it consists of several networks.
        GraphError: the network cannot be exported, or onnxruntime's outputs differ.
    """
    path = Path(path)
    _check_exportable(model)
    named = isinstance(inputs, Mapping)
    told = (
        flat(inputs) if isinstance(inputs, Mapping) else dict(zip(_positional(model, len(inputs)), inputs, strict=True))
    )
    tensors = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    constants = {name: value for name, value in told.items() if name not in tensors}
    if (
        (constants and not named)
        or set(constants) & set(TIMES)
        or any(isinstance(leaf, Tensor) for leaf in tree_leaves(constants))
    ):
        raise InputError(
            "An ONNX file has tensors for inputs; give every argument of the forward pass as a tensor, or, but for the timestep, "
            "in a mapping."
        )
    names, arguments = list(tensors), tuple(tensors.values())
    plain = _Plain(model, names if named else None, constants)
    with atomic_path(path) as part, evaluation_mode(plain), torch.no_grad():
        _write(plain, _random(arguments, 2, seed), names, part)
        drawn = [_random(arguments, size, seed + size) for size in _BATCHES]
        difference = max(_difference(plain, dict(zip(names, some, strict=True)), part) for some in drawn)
        if not difference <= tolerance:
            raise GraphError(
                f"onnxruntime's outputs differ from the network's by {difference:.2g}; expected at most {tolerance:g}. "
                "Nothing was written."
            )
    return Exported(path, tuple(names), difference)


def _check_exportable(model: nn.Module) -> None:
    missing = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        them = "it" if len(missing) == 1 else "them"
        raise InputError(
            f"{' and '.join(missing)} cannot be found; install {them} with `pip install 'prunekit[onnx]'`."
        )
    if isinstance(model, TimestepExperts):
        raise InputError(
            "Timestep experts choose a network by the timestep, which an ONNX file cannot; export each expert on its own."
        )
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    if size > _MAX_BYTES:
        raise InputError(
            f"The network has {size:,} bytes of weights; expected at most {_MAX_BYTES:,} for one ONNX file."
        )


def _positional(model: nn.Module, count: int) -> list[str]:
    """Names of the first arguments of a forward function."""
    known = list(inspect.signature(model.forward).parameters.values())
    fixed = [argument.name for argument in known if argument.kind is argument.POSITIONAL_OR_KEYWORD]
    return [*fixed, *(f"input_{index}" for index in range(len(fixed), count))][:count]


def _write(plain: nn.Module, arguments: tuple[Tensor, ...], names: Sequence[str], path: Path) -> None:
    """Trace and write, always with the exporter that needs only torch and onnx, even if torch's default is another."""
    options: dict[str, Any] = {}
    if "dynamo" in inspect.signature(torch.onnx.export).parameters:
        options["dynamo"] = False
    free = {name: {0: "batch"} for name, value in zip(names, arguments, strict=True) if _has_batch(value, arguments)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # on the exporter's deprecation and on shape asserts; the check below decides
            torch.onnx.export(
                plain,
                arguments,
                str(path),
                input_names=list(names),
                output_names=[OUTPUT],
                dynamic_axes={**free, OUTPUT: {0: "batch"}},
                opset_version=_OPSET,
                **options,
            )
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise GraphError(f"The network cannot be exported to ONNX: {one_line(error)}.") from error


def _has_batch(value: Tensor, arguments: tuple[Tensor, ...]) -> bool:
    """Whether a tensor has a row for each sample, as the first tensor with dimensions has."""
    batch = next((len(one) for one in arguments if one.ndim), 0)
    return value.ndim > 0 and len(value) == batch


def _random(arguments: tuple[Tensor, ...], batch: int, seed: int) -> tuple[Tensor, ...]:
    """Random arguments like the given ones for a batch: normal noise, and integers from 0 to the largest given one."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for value in arguments:
        shape = (batch, *value.shape[1:]) if _has_batch(value, arguments) else value.shape
        if value.is_floating_point():
            made.append(torch.randn(shape, generator=generator).to(value.dtype))
        else:
            most = int(value.max()) if value.numel() else 0
            made.append(torch.randint(0, most + 1, shape, generator=generator).to(value.dtype))
    return tuple(made)


def _difference(plain: nn.Module, arguments: Mapping[str, Tensor], path: Path) -> float:
    """Largest difference between onnxruntime and torch, relative to the largest output if that is above 1.

    Raises:
        GraphError: onnxruntime does not run the file, or returns another shape.
    """
    import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]  # noqa: PLC0415 - an extra

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    expected = plain(*arguments.values()).double().numpy()
    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        known = [value.name for value in session.get_inputs()]  # an unused input is left out
        found = session.run(None, {name: arguments[name].numpy() for name in known})[0].astype(np.float64)
    except Exception as error:  # onnxruntime's errors have no other common base
        said = " ".join(str(error).split())[:300]
        raise GraphError(f"onnxruntime cannot run the exported network ({said}).") from error
    if found.shape != expected.shape:
        raise GraphError(f"The exported network makes outputs of shape {found.shape}; expected {expected.shape}.")
    return float(np.abs(found - expected).max(initial=0) / max(1.0, np.abs(expected).max(initial=0)))
