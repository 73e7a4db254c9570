"""MACs counted on a model, operator by operator.

Counted are the multiply-accumulates of convolutions, linear and recurrent layers, matrix products and attention products. Biases,
norms, activations, sums and resampling are not MACs. :func:`count_macs` lists every operation that it saw and did not count, and
separates those without MACs from those that it does not know.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from prunekit._json import JsonObject
from prunekit._types import Args, Function, Kwargs
from prunekit.graph.forward_pass import Inputs, check_inputs, run_once, undisturbing
from prunekit.graph.weightless import without_values

__all__ = [
    "FORMULAS",
    "ForwardModules",
    "MacCount",
    "count_by_shapes",
    "count_macs",
    "count_params",
    "operator_name",
    "own_counts",
]

_aten = torch.ops.aten


@dataclass(frozen=True)
class MacCount:
    """MACs of one forward pass at batch 1, and parameters.

    Args:
        macs: total MACs.
        params: number of parameters of the model.
        by_module: MACs of every module that has some, children included, by name ('' is the whole network).
        by_operator: MACs of each operator: ``convolution``, ``linear``, ``matmul``, ``scaled_dot_product_attention``, or the aten
            name of any other.
        own: MACs by module and operator that each module runs itself, excluding its children.
        params_by_module: parameters of every module that has some, children included, each counted once.
        uncounted: operators that do arithmetic and count as no MACs, with the number of calls.
        unknown: the uncounted operators that may contain multiply-accumulates; the total is too low by these.
    """

    macs: int
    params: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    own: dict[str, dict[str, int]]
    params_by_module: dict[str, int]
    uncounted: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """2·MACs."""
        return 2 * self.macs

    def to_json(self) -> JsonObject:
        """All fields except ``own``, plus ``flops``."""
        fields = {name: value for name, value in vars(self).items() if name != "own"}
        return {**fields, "unknown": list(self.unknown), "flops": self.flops}


def _cpu_sdpa_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """FLOPs of the CPU's fused attention: torch's counter has no formula for it and would count zero."""
    return int(sdpa_flop_count(query, key, value))


def _rnn_flops(x: Sequence[int], weights: Iterable[Sequence[int]]) -> int:
    """FLOPs of recurrent layers: at every position of every sample, each of their matrices is multiplied by a vector."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(shape) for shape in weights if len(shape) == 2)


def _mkldnn_rnn_flops(x: Any, *others: Any, out_shape: Any = None, **_: Any) -> int:
    """One layer in one direction, on the CPU; two biases follow its two matrices, or the matrices again."""
    return _rnn_flops(x, others[:2])


def _cudnn_rnn_flops(x: Any, weights: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """All layers and directions, on a GPU."""
    return _rnn_flops(x, weights)


FORMULAS = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _cpu_sdpa_flops,
    _aten.mkldnn_rnn_layer: _mkldnn_rnn_flops,
    _aten._cudnn_rnn: _cudnn_rnn_flops,
    _aten.miopen_rnn: _cudnn_rnn_flops,
}
"""Formulas that torch's counter lacks."""

_MOVES = re.compile(  # operators that create, copy, select or repeat numbers: no arithmetic
    r"(prim::|_unsafe_view|_?reshape|_to_copy|clone|copy|lift_fresh|cat|stack|constant_pad|pad|repeat|roll|flip|tril|triu"
    r"|embedding|unsafe_split|(transpose|t|squeeze|unsqueeze|swapaxes)_$|_cudnn_rnn_flatten_weight|(_unsafe_)?index|gather|scatter|select|slice|as_strided|upsample_nearest|pixel_(un)?shuffle|max_pool"
    r"|_linalg_check_errors|empty|new_|zeros|ones|full|fill|zero|eye|arange|linspace|scalar_tensor|rand|normal|uniform|bernoulli)"
)
_NO_MACS = re.compile(  # arithmetic that by convention has no MACs, beyond the operators that torch tags as pointwise
    r".*(norm|softmax|pool|upsample|dropout)|_thnn_fused_|_prelu_kernel|(mv|v?dot)$|(sum|mean|prod|var|std|amax|amin|max|min|any|all|arg|cum|sort|topk|logsumexp)"
)


class _UncountedOps(TorchDispatchMode):
    """Counts calls of operators without a formula; operators that only move numbers are ignored."""

    supports_higher_order_operators = True

    def __init__(self, counted: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted
        self.calls: Counter[str] = Counter()
        self.unknown: set[str] = set()

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        name = func.name().removeprefix("aten::").split(".")[0]
        is_counted = getattr(func, "_overloadpacket", func) in self.counted
        if not is_counted and not getattr(func, "is_view", False) and not _MOVES.match(name):
            self.calls[name] += 1
            if torch.Tag.pointwise not in getattr(func, "tags", ()) and not _NO_MACS.match(name):
                self.unknown.add(name)
        return func(*args, **(kwargs or {}))


class ForwardModules(ModuleTracker):
    """Tracks which modules run, in forward passes only.

    Torch's own tracker needs the tensors' gradient functions, which slices of parameters lack in a pass without gradients.
    """

    def _fw_pre_hook(self, mod: nn.Module, input: Any) -> None:
        self._get_append_fn(self._get_mod_name(mod), False)()  # type: ignore[no-untyped-call]

    def _fw_post_hook(self, mod: nn.Module, input: Any, output: Any) -> None:
        self._get_pop_fn(self._get_mod_name(mod), False)()  # type: ignore[no-untyped-call]


class _HigherOrder(TorchDispatchMode):
    """Counts operators that take functions, such as flexible attention; torch's counter has the formulas but refuses the calls."""

    supports_higher_order_operators = True

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = counter

    def __torch_dispatch__(
        self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator) and func in self.counter.flop_registry:
            with _disable_current_modes():
                out = func(*args, **kwargs)
            return self.counter._count_flops(func, out, args, kwargs)
        return func(*args, **kwargs)


def count_params(model: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@undisturbing
def count_macs(model: nn.Module, inputs: Inputs) -> MacCount:
    """Count the MACs of one forward pass.

    Args:
        model: any network.
        inputs: arguments of one forward pass, batch 1, by name or by place.

    Raises:
        InputError: they are neither a tuple nor a dict, or the first argument is no network.
    """
    check_inputs(inputs)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    counter.mod_tracker = ForwardModules()
    uncounted = _UncountedOps(counter.flop_registry)
    with uncounted, counter, _HigherOrder(counter):
        run_once(model, inputs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    macs = {
        name.removeprefix(root).removeprefix("."): {str(op): flops // 2 for op, flops in by_op.items()}
        for name, by_op in counts.items()
        if name == root or name.startswith(f"{root}.")
    }
    macs[""] = {str(op): flops // 2 for op, flops in counts.get("Global", {}).items()}
    own = own_counts(model, macs)
    by_operator: Counter[str] = Counter()
    for operators in own.values():
        by_operator.update(operators)
    by_module = {name: sum(macs.get(name, {}).values()) for name, _ in model.named_modules()}
    params = {name: count_params(module) for name, module in model.named_modules()}
    return MacCount(
        counter.get_total_flops() // 2,
        params[""],
        {name: value for name, value in by_module.items() if value or not name},
        {name: value for name, value in by_operator.most_common() if value},
        own,
        {name: value for name, value in params.items() if value or not name},
        dict(sorted(uncounted.calls.items())),
        tuple(sorted(uncounted.unknown)),
    )


def count_by_shapes(model: nn.Module, inputs: Inputs) -> MacCount:
    """:func:`count_macs`; a network that is large or on the meta device is run without values, unless it needs them."""
    return without_values(model, inputs, count_macs) or count_macs(model, inputs)


def own_counts(model: nn.Module, counts: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """MACs that every module runs itself, by operator: its count minus its children's.

    Args:
        model: the network that was counted.
        counts: MACs by module and operator, children included; modules that do not run themselves (lists) are filled in.
    """
    own = {}
    modules = list(model.named_modules(remove_duplicate=False))  # thop counts a module again under its second name
    for name, module in reversed(modules):
        below: Counter[str] = Counter()
        for child, _ in module.named_children():
            below.update(counts.get(f"{name}.{child}" if name else child, {}))
        counts.setdefault(name, dict(below))
        left = Counter(counts[name])
        left.subtract(below)
        named: Counter[str] = Counter()
        for operator, value in left.items():
            named[operator_name(operator, module)] += value
        own[name] = {operator: value for operator, value in named.items() if value}
    return {name: own[name] for name, _ in modules if own[name]}


def operator_name(operator: str, module: nn.Module) -> str:
    """A common name for an operator that is named differently depending on device, bias and counter."""
    operator = re.split(r"\.|::", operator)[-1]
    if "conv" in operator:
        return "convolution"
    if "scaled_dot_product" in operator or operator == "flex_attention":
        return "scaled_dot_product_attention"
    if operator in _PRODUCTS:
        return "linear" if isinstance(module, nn.Linear) else "matmul"
    return operator


_PRODUCTS = {
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "matmul",
    "linear",
    "einsum",
    "_scaled_mm",
    "mkldnn_rnn_layer",
    "_cudnn_rnn",
    "miopen_rnn",
}
