"""MACs counted on a model, operator by operator.

What is counted: the multiply-accumulates of convolutions, linear layers, matrix products and attention products. Biases, norms,
activations, sums and resampling are not MACs; :func:`count_macs` lists every operation that it saw and did not count.
"""

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from prunekit.graph.surgery import Inputs, run_once

__all__ = ["MacCount", "count_macs", "count_params", "other_counters"]

_aten = torch.ops.aten


@dataclass(frozen=True)
class MacCount:
    """MACs of one forward pass at batch 1.

    Args:
        macs: in total.
        params: number of parameters of the model.
        by_module: MACs of every module that has some, children included, by name ('' is the whole).
        by_operator: MACs of each aten operator.
        uncounted: operators that ran and have no MAC formula, with the number of calls.
    """

    macs: int
    params: int
    by_module: dict[str, int]
    by_operator: dict[str, int]
    uncounted: dict[str, int] = field(default_factory=dict)

    @property
    def flops(self) -> int:
        """2·MACs."""
        return 2 * self.macs

    def to_json(self) -> dict[str, Any]:
        """All fields, and ``flops``."""
        return {**vars(self), "flops": self.flops}


def _cpu_sdpa_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """The counter has no formula for the CPU's fused attention and would count zero."""
    return int(sdpa_flop_count(query, key, value))


_FORMULAS = {_aten._scaled_dot_product_flash_attention_for_cpu: _cpu_sdpa_flops}


class _UncountedOps(TorchDispatchMode):
    """Counts calls of operators that have no formula; views and allocations do no arithmetic and are passed over."""

    def __init__(self, counted: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counted = counted
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        if packet not in self.counted and not func.is_view and not func.name().startswith("aten::empty"):
            self.calls[func.name().removeprefix("aten::").split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


def count_params(model: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Inputs) -> MacCount:
    """Count the MACs of one forward pass.

    Args:
        model: any network.
        inputs: arguments of one forward pass, batch 1, by name or by place.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    uncounted = _UncountedOps(counter.flop_registry)
    with uncounted, counter:
        run_once(model, inputs)
    counts = counter.get_flop_counts()
    root = type(model).__name__
    by_module = {
        name.removeprefix(root).removeprefix("."): sum(by_op.values()) // 2
        for name, by_op in counts.items()
        if name == root or name.startswith(f"{root}.")
    }
    for name, module in reversed(list(model.named_modules())):  # lists of modules do not run themselves
        by_module.setdefault(name, sum(by_module.get(f"{name}.{child}", 0) for child, _ in module.named_children()))
    by_module = {name: by_module[name] for name, _ in model.named_modules() if by_module[name]}
    by_operator = {str(op).removeprefix("aten."): flops // 2 for op, flops in counts.get("Global", {}).items()}
    total = counter.get_total_flops() // 2
    return MacCount(
        total, count_params(model), {"": total, **by_module}, by_operator, dict(sorted(uncounted.calls.items()))
    )


def other_counters(model: nn.Module, inputs: Inputs) -> dict[str, int | str]:
    """MACs by fvcore and by thop, for comparison; a counter that fails gives its reason instead.

    Both leave out attention products; fvcore calls its figure flops and means MACs.
    """
    figures: dict[str, int | str] = {}
    names = tuple(inputs) if isinstance(inputs, Mapping) else None
    values = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
    model = _ByPlace(copy.deepcopy(model), names).eval()  # a copy, since thop leaves keys behind
    try:
        from fvcore.nn import FlopCountAnalysis  # noqa: PLC0415 - a broken import costs its column, not the report

        analysis = FlopCountAnalysis(model, values).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        figures["fvcore"] = int(analysis.total())
    except Exception as error:  # whatever a foreign counter raises, its column is the only loss
        figures["fvcore"] = f"failed: {error}"
    try:
        import thop  # noqa: PLC0415 - see above

        figures["thop"] = int(thop.profile(model, inputs=values, verbose=False)[0])
    except Exception as error:  # see above
        figures["thop"] = f"failed: {error}"
    return figures


class _ByPlace(nn.Module):
    """Takes by place what the network wants by name: foreign counters pass arguments by place only."""

    def __init__(self, model: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: Any) -> Any:
        return self.model(*values) if self.names is None else self.model(**dict(zip(self.names, values, strict=True)))
