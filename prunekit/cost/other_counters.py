"""Counts of fvcore, thop and torch-pruning for a model, and their differences from this package's count, module by module."""

import contextlib
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from prunekit._json import JsonDict, JsonObject
from prunekit.cost.counter import MacCount, count_macs, operator_name, own_counts
from prunekit.graph.copying import copied
from prunekit.graph.forward_pass import Inputs

__all__ = ["Difference", "OtherCount", "other_counters"]

_Counts = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Difference:
    """An operator of one module (excluding its children) that another counter counts differently.

    Args:
        module: name of the module.
        operator: name of the operator, as in :class:`MacCount`, or the other counter's name.
        macs: this package's count.
        figure: the other counter's count.
    """

    module: str
    operator: str
    macs: int
    figure: int


@dataclass(frozen=True)
class OtherCount:
    """Another counter's figure; ``figure = macs − Σ omits + Σ adds``.

    Args:
        figure: count in MACs, whatever the counter calls it; None if the counter failed.
        params: its number of parameters.
        differences: differences from this package's count.
        failed: the reason why there is no figure.
    """

    figure: int | None
    params: int | None = None
    differences: tuple[Difference, ...] = ()
    failed: str = ""

    @property
    def omits(self) -> dict[str, int]:
        """MACs that it leaves out, by operator."""
        return self._excess(-1)

    @property
    def adds(self) -> dict[str, int]:
        """MACs that it counts and this package does not, by operator."""
        return self._excess(1)

    def to_json(self) -> JsonObject:
        """``{"figure", "params", "omits", "adds", "differences"}``, or ``{"figure": null, "failed"}``."""
        if self.figure is None:
            return {"figure": None, "failed": self.failed}
        differences = [asdict(difference) for difference in self.differences]
        summed = {"omits": self.omits, "adds": self.adds}
        return {"figure": self.figure, "params": self.params, **summed, "differences": differences}

    def _excess(self, sign: int) -> dict[str, int]:
        """By operator, the MACs that it counts in excess (+1) or leaves out (−1)."""
        total: Counter[str] = Counter()
        for row in self.differences:
            total[row.operator] += max(sign * (row.figure - row.macs), 0)
        return {operator: value for operator, value in total.most_common() if value}


def other_counters(model: nn.Module, inputs: Inputs, counted: MacCount | None = None) -> dict[str, OtherCount]:
    """Figures of fvcore, thop and torch-pruning with their differences; for a counter that fails, the reason.

    All leave out fused attention products. fvcore calls its figure flops and means MACs, and adds norms and resampling. thop
    overcounts strided transposed convolutions, and leaves out the parameters of layers that it has no rule for, such as group
    norms. torch-pruning, which is used only if it is installed, adds biases and some activations and norms.

    Args:
        model: any network.
        inputs: arguments of one forward pass, batch 1, by name or by place.
        counted: this package's count, if it is known already.
    """
    counted = counted or count_macs(model, inputs)
    names = tuple(inputs) if isinstance(inputs, Mapping) else None
    values = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
    return {
        name: _compared(counted, count, model, names, values)
        for name, count in _COUNTERS.items()
        if _is_there(_OPTIONAL.get(name))
    }


def _compared(
    counted: MacCount,
    count: Callable[["_ByPlace", tuple[Tensor, ...]], tuple[int, int, _Counts]],
    model: nn.Module,
    names: tuple[str, ...] | None,
    values: tuple[Tensor, ...],
) -> OtherCount:
    wrapped = _ByPlace(copied(model), names).eval()  # a copy, since thop leaves keys behind
    try:
        figure, params, counts = count(wrapped, values)
    except Exception as error:  # an error in a foreign counter must only cost its own column
        return OtherCount(None, failed=f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}")
    return OtherCount(figure, params, tuple(_differences(model, counted.own, own_counts(model, counts))))


def _differences(model: nn.Module, ours: _Counts, theirs: _Counts) -> Iterator[Difference]:
    """Where the counts differ; only in total if layers have two names, since counters choose different names."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    if len(names) > len(list(model.named_modules())):
        names, ours, theirs = [""], {"": _summed(ours)}, {"": _summed(theirs)}
    for name in names:
        one, other = ours.get(name, {}), theirs.get(name, {})
        for operator in dict.fromkeys([*one, *other]):
            if one.get(operator, 0) != other.get(operator, 0):
                yield Difference(name, operator, one.get(operator, 0), other.get(operator, 0))


def _summed(counts: _Counts) -> dict[str, int]:
    total: Counter[str] = Counter()
    for operators in counts.values():
        total.update(operators)
    return total


def _fvcore(model: "_ByPlace", values: tuple[Tensor, ...]) -> tuple[int, int, _Counts]:
    """Total, parameters, and MACs by module and operator, children included."""
    from fvcore.nn import FlopCountAnalysis, parameter_count  # noqa: PLC0415 - a broken import costs its column, not the report

    analysis = FlopCountAnalysis(model, values).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    counts = {
        name.removeprefix("model").removeprefix("."): {operator: int(value) for operator, value in by_operator.items()}
        for name, by_operator in analysis.by_module_and_operator().items()
        if name and any(by_operator.values())
    }
    return int(analysis.total()), int(parameter_count(model)[""]), counts


def _thop(model: "_ByPlace", values: tuple[Tensor, ...]) -> tuple[int, int, _Counts]:
    """Total, parameters, and MACs by module, children included; thop has one rule per class of layer, so that is the operator."""
    import thop  # noqa: PLC0415 - see above

    total, params, layers = thop.profile(model, inputs=values, verbose=False, ret_layer_info=True)
    modules = dict(model.model.named_modules(remove_duplicate=False))
    counts: _Counts = {}

    def read(name: str, figure: float, below: JsonDict) -> Counter[str]:
        """Operators of a module, children included; also if thop's figure exceeds the sum of its children's."""
        found: Counter[str] = Counter()
        for child, (its_figure, _, its_below) in below.items():
            found.update(read(f"{name}.{child}" if name else child, its_figure, its_below))
        rest = int(figure) - sum(found.values())
        if rest:
            found[_rule_name(modules[name])] += rest
        if name in counts or found:
            counts[name] = dict(found)
        return found

    read("", layers["model"][0], layers["model"][2])
    return int(total), int(params), counts


def _torch_pruning(model: "_ByPlace", values: tuple[Tensor, ...]) -> tuple[int, int, _Counts]:
    """Total, parameters, and MACs by module, children included; it has one rule per class of layer, as thop."""
    from torch_pruning.utils import count_ops_and_params  # noqa: PLC0415 - an optional package

    with contextlib.redirect_stdout(io.StringIO()):  # it prints warnings
        _, params, layers, _ = count_ops_and_params(model, values, layer_wise=True)
    counts: _Counts = {}

    def read(name: str, module: nn.Module) -> Counter[str]:
        """Operators of a module, children included: the figure of its rule if it has one, else its children's."""
        below = [read(f"{name}.{child}" if name else child, inner) for child, inner in module.named_children()]
        found: Counter[str] = Counter()
        for inner in below:
            found.update(inner)
        rest = int(layers.get(module) or 0) - sum(found.values())
        if rest:
            found[_rule_name(module)] += rest
        counts[name] = dict(found)
        return found

    read("", model.model)
    return int(layers[model]), int(params), counts  # its own total is divided by the length of the first argument


def _rule_name(layer: nn.Module) -> str:
    """Name of a counter's rule for a layer."""
    if isinstance(layer, nn.Linear):
        return "linear"
    return operator_name(re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(layer).__name__).lower(), layer)


_COUNTERS = {"fvcore": _fvcore, "thop": _thop, "torch-pruning": _torch_pruning}
_OPTIONAL = {"torch-pruning": "torch_pruning"}


def _is_there(package: str | None) -> bool:
    """Whether an optional package is installed; True if none is needed."""
    try:
        return package is None or importlib.util.find_spec(package) is not None
    except ValueError:  # its import is blocked
        return False


class _ByPlace(nn.Module):
    """Takes arguments by position and passes them by name: foreign counters pass them by position only."""

    def __init__(self, model: nn.Module, names: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *values: Any) -> Any:
        return self.model(*values) if self.names is None else self.model(**dict(zip(self.names, values, strict=True)))
