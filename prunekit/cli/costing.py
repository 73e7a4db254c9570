"""The command ``cost``: MACs and parameters by module and operator, operators that are not counted, and other counters' figures."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import typer

from prunekit._json import JsonDict, JsonObject
from prunekit._missing import check_base, check_countable
from prunekit.cli.console import emit, print_table, tell
from prunekit.cli.next_steps import after_cost, suggest
from prunekit.cli.reading_options import ReadingOptions
from prunekit.cli.shared_options import ConfigOption, Exists, InputsOption, Json, ShapesOption
from prunekit.errors import InputError

__all__ = ["ModelPath", "cost"]

ModelPath = Annotated[
    str,
    typer.Argument(help="Base checkpoint, or a folder: diffusers, slim, experts, multi-decoder."),
    Exists(check_base),
]


def cost(
    model: Annotated[
        str,
        typer.Argument(help="Base checkpoint, or a folder: diffusers, slim, experts, multi-decoder."),
        Exists(check_countable),
    ],
    config: ConfigOption = None,
    inputs: InputsOption = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Encoded images, whose shapes the network is given (default: shapes that the config states)."
        ),
    ] = None,
    shape: ShapesOption = None,
    depth: Annotated[int, typer.Option(help="How deep the tables of modules go.")] = 2,
    compare: Annotated[
        bool, typer.Option(help="Show what fvcore, thop and (if it is installed) torch-pruning count.")
    ] = True,
    json: Json = False,
    *,
    reading: ReadingOptions,
) -> None:
    """Count MACs and parameters of a model by module and operator."""
    from prunekit.cost import count_macs, other_counters
    from prunekit.graph.stubs import stubs_in
    from prunekit.steps.data_shapes import shaped
    from prunekit.steps.opening import open_model

    if depth < 1:
        raise InputError(f"Got --depth {depth}; expected at least 1, the model's own children.")
    opened = open_model(model, config, inputs, reading.asked)
    opened = replace(opened, spec=shaped(opened.spec, data, shape))
    counted = {name: count_macs(part, opened.inputs) for name, part in opened.parts().items()}
    if len(counted) == 1:
        (only,) = counted.values()
        facts: dict[str, object] = only.to_json()
        if compare:
            others = other_counters(opened.model, opened.inputs, only)
            facts["other_counters"] = {name: other.to_json() for name, other in others.items()}
    else:
        facts = {**opened.mean_cost(counted), **_of_experts(counted)}
    gone = {name: [stub.module for stub in stubs_in(part)] for name, part in opened.parts().items()}
    if any(gone.values()):
        facts["removed_modules"] = [f"{name}.{one}" if name else one for name, own in gone.items() for one in own]
    if json:
        emit(True, facts)
    else:
        _show(model, facts, depth)
        suggest(after_cost(model, config))


def _of_experts(counted: JsonDict) -> JsonObject:
    """Operators and parameters of each expert, under the expert's name; the experts' mean does not have them."""
    return {
        "by_operator": {
            f"{name}.{op}": macs for name, count in counted.items() for op, macs in count.by_operator.items()
        },
        "params_by_module": {
            f"{name}.{module}" if module else name: params
            for name, count in counted.items()
            for module, params in count.params_by_module.items()
        },
        "unknown": sorted({operator for count in counted.values() for operator in count.unknown}),
    }


def _show(model: str, data: JsonDict, depth: int) -> None:
    flops, params = f"{data['flops']:,.0f} FLOPs = 2·MACs", f"{data['params']:,} parameters"
    tell(f"{model}: {data['macs']:,.0f} MACs ({flops}) per sample per evaluation, {params}")
    experts: JsonDict = data.get("experts", {})
    of_each = ", in shares of each expert's own MACs" if experts else ""
    mean = f"; the total is the mean over {data['mean_over']}" if experts else ""

    def share(name: str, macs: int) -> str:
        return f"{100 * macs / (experts.get(name.split('.')[0], data)['macs'] or 1):.1f} %"

    depth += bool(experts)  # each name begins with the expert's name
    by_module, sizes = data["by_module"], data["params_by_module"]
    shown = [name for name in dict.fromkeys([*sizes, *by_module]) if name and name.count(".") < depth]
    rows = [
        [name, f"{sizes.get(name, 0):,}", f"{by_module.get(name, 0):,}", share(name, by_module.get(name, 0))]
        for name in shown
    ]
    print_table(f"By module{of_each}{mean}", ["module", "parameters", "MACs", "share"], rows)
    operators = [[name, f"{macs:,}", share(name, macs)] for name, macs in data["by_operator"].items()]
    print_table(f"By operator{of_each}", ["operator", "MACs", "share"], operators)
    if "other_counters" in data:
        _show_others(data, depth)
    elif experts:
        tell("Other counters are shown for one network: ask for the cost of the base or of one slim folder.")
    if removed := data.get("removed_modules"):
        tell(f"Removed with residual branches: {', '.join(removed)}")
    _show_uncounted(data)


def _show_others(data: JsonDict, depth: int) -> None:
    """Print every other counter's figure, why it differs, and in which modules."""
    others = data["other_counters"]
    for name, other in others.items():
        if other["figure"] is None:
            tell(f"{name}: failed ({other['failed']})")
            continue
        differs = 100 * (other["figure"] / data["macs"] - 1) if data["macs"] else 0.0
        tell(f"{name}: {other['figure']:,} MACs ({_signed(differs, '.2f')} % of ours), {other['params']:,} parameters")
        for operator, macs in other["omits"].items():
            tell(f"  −{macs:,} {operator}: {_left_out(operator)}")
        for operator, macs in other["adds"].items():
            tell(f"  +{macs:,} {operator}: {_counted_besides(operator)}")
        if other["params"] < data["params"]:
            tell(f"  −{data['params'] - other['params']:,} parameters of layers that it has no rule for")
    changes: Counter[tuple[str, str, str]] = Counter()
    for name, other in others.items():
        for row in other.get("differences", ()):
            module = ".".join(row["module"].split(".")[:depth]) or "(outside its modules)"
            changes[module, row["operator"], name] += row["figure"] - row["macs"]
    order = [".".join(name.split(".")[:depth]) for name in data["params_by_module"]]
    places = sorted(
        {key[:2] for key in changes}, key=lambda place: (order.index(place[0]) if place[0] in order else -1, place)
    )
    if places:
        rows = [[*place, *(_signed(changes[*place, name]) for name in others)] for place in places]
        print_table("Where they differ from ours, in MACs", ["module", "operator", *others], rows)


def _signed(value: float, form: str = "") -> str:
    return f"{value:+,{form}}".replace("-", "−") if value else "="


def _left_out(operator: str) -> str:
    """Why another counter counts less for an operator."""
    match operator:
        case "scaled_dot_product_attention":
            return "the products of fused attention, which it does not see"
        case "matmul":
            return "matrix products outside layers, which it does not see"
        case _:
            return "layers that it has no rule for"


def _counted_besides(operator: str) -> str:
    """Why another counter counts more for an operator."""
    if operator in ("convolution", "linear", "matmul"):
        return "more than was multiplied (biases, transposed convolutions with a stride, layers used under two names)"
    kind = next((kind for kind in ("norm", "softmax", "pool", "upsampl") if kind in operator), "")
    names = {"norm": "norms", "softmax": "softmax", "pool": "pooling", "upsampl": "resampling"}
    return f"{names.get(kind, 'arithmetic')}, no multiply-accumulates by our convention"


def _show_uncounted(data: JsonDict) -> None:
    uncounted: Mapping[str, int] = data["uncounted"]
    unknown = [f"{operator} ×{uncounted[operator]}" for operator in data["unknown"]]
    if unknown:
        tell(f"No formula: {', '.join(unknown)}. What they multiply is missing above.")
    most = sorted(uncounted, key=lambda operator: -uncounted[operator])
    rest = ", ".join(f"{operator} ×{uncounted[operator]}" for operator in most if operator not in data["unknown"])
    calls = "; calls of all experts together" if "experts" in data else ""
    tell(f"Not counted (no multiply-accumulates by convention{calls}): {rest or 'nothing'}")
