"""How much of other people's networks can be pruned, and whether the slim networks are right: tiny widths, real depth.

``python benchmarks/coverage.py [--layers N] [NAME …]`` measures all networks that were not measured yet, or those that are named,
each in a process of its own, and writes ``reports/engine/coverage.json`` and ``coverage.md`` after each. Weights are random, with a
standard deviation of 1/√fan_in, and nothing starts at zero. ``--layers`` takes at most N layers of each kind, for a quick look:
such rows say so, and are measured again without it. timm, k-diffusion and imagen-pytorch are found where PYTHONPATH says,
installed without what they depend on.
"""

import argparse
import json
import math
import multiprocessing
import resource
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _coverage_networks import networks
from _manifest import REPORTS, environment, markdown_table
from _replay import difference
from torch import nn
from torch.utils._pytree import tree_map

from prunekit._files import write_json
from prunekit.checkpoint import ModelSpec
from prunekit.cost import CostModel, count_macs
from prunekit.errors import PrunekitError
from prunekit.graph import ChannelGraph, PruningPlan, apply, attributes, trace
from prunekit.graph.forward_pass import output_tensors, run_once
from prunekit.groups import TimestepGroup
from prunekit.slim import SlimModel, load_slim, save_slim

SECONDS = 600.0  # of processor time for tracing, then groups that were not tried are left whole
TIMEOUT = 900  # of one network with all checks, likewise of processor time
MEMORY = 12 * 2**30  # bytes that a network with all checks may take
_PLANS = 2
_WRONG = {
    "64 bit": 1e-5,
    "own precision": 1e-4,
}  # a relative difference above it is no rounding; some round to 8 bits inside


def prepared(spec: ModelSpec) -> tuple[nn.Module, Any]:
    """The network with trained-like weights in eval mode, and random inputs of the shapes that it takes."""
    torch.manual_seed(0)
    model = spec.build().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = (noise / math.sqrt(parameter[0].numel())).to(parameter.dtype)
        else:
            parameter.data += 0.1 * noise.to(parameter.dtype)

    def drawn(leaf: Any) -> Any:
        is_real = isinstance(leaf, torch.Tensor) and leaf.is_floating_point()
        return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) if is_real and not leaf.any() else leaf

    return model, tree_map(drawn, spec.example_inputs())


def measure(name: str, layers: int | None, row: dict[str, Any]) -> None:
    """Fill in the row of one network, as far as it gets."""
    torch.set_num_threads(1)
    spec = networks()[name](layers)
    model, inputs = prepared(spec)
    row["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    start = time.process_time()
    graph = trace(model, inputs, seconds=SECONDS if layers is None else 100)
    row |= {"seconds": round(time.process_time() - start, 1), "groups": len(graph), "left_whole": len(graph.left_whole)}
    cost = CostModel.of(model, graph, inputs)
    row |= _shares(cost, graph)
    plans = [_plan(graph, seed) for seed in range(_PLANS)]
    slim = [apply(model, graph, plan) for plan in plans]
    counted = [count_macs(one, inputs).macs for one in slim]
    row["counted"] = counted == [int(cost.macs(plan.widths(graph))) for plan in plans]
    row["reloaded"] = _reloads(spec, inputs, slim[0], graph, plans[0])
    row["difference"], row["precision"] = difference(model, slim[0], graph, plans[0], inputs)


def _plan(graph: ChannelGraph, seed: int) -> PruningPlan:
    """Random channels at random widths."""
    rng = np.random.default_rng(seed)
    scores = {group.name: rng.random(group.size) for group in graph}
    widths = np.array([rng.choice(group.widths) for group in graph], dtype=np.int64)
    return PruningPlan.from_widths(graph, widths, scores)


def _shares(cost: CostModel, graph: ChannelGraph) -> dict[str, Any]:
    """Share of the MACs that some width changes, the least share that is left, and why the others do not change."""
    rows = cost.macs_rows
    macs = rows(graph.full_widths)
    total = int(macs.sum())
    changes = rows.inner.by_group.any(1) | rows.outer.by_group.any(1)
    reasons: Counter[str] = Counter()
    for owner, share in zip(np.array(rows.owners)[~changes], macs[~changes] / max(total, 1), strict=True):
        reasons[_reason(str(owner), graph)] += float(share)
    least = cost.macs(np.array([group.widths[-1] for group in graph], dtype=np.int64))
    return {
        "prunable": round(float(macs[changes].sum()) / max(total, 1), 4),
        "least": round(float(least) / max(total, 1), 4),
        "reasons": {reason: round(share, 4) for reason, share in reasons.most_common(3)},
    }


def _reason(owner: str, graph: ChannelGraph) -> str:
    """Why the layer that multiplies stays whole, in the words of the graph; for products of an attention, a layer of it."""
    inside = {layer: why for layer, why in graph.left_whole.items() if f"{layer}.".startswith(f"{owner}.")}
    if not inside:
        return "its inputs and outputs belong to layers that are left whole"
    return min(inside.items(), key=lambda one: (len(one[0]), one[0]))[1]


def _reloads(spec: ModelSpec, inputs: Any, slim: nn.Module, graph: ChannelGraph, plan: PruningPlan) -> bool:
    """Whether a slim model's folder gives back a model with the very same output."""
    counted, sizes = count_macs(slim, inputs), attributes(spec.build(), graph, plan)
    saved = SlimModel(slim, spec, plan, sizes, TimestepGroup(0, 0, 1000), 1000, counted.macs, counted.params)
    with tempfile.TemporaryDirectory() as folder:
        save_slim(saved, Path(folder) / "slim")
        loaded = load_slim(Path(folder) / "slim", spec.factory, inputs).model
    outputs = []
    for one in (slim, loaded):
        torch.manual_seed(2)
        outputs.append(output_tensors(run_once(one, inputs)))
    return all(torch.equal(a, b) for a, b in zip(*outputs, strict=True))


def _apart(name: str, layers: int | None) -> dict[str, Any]:
    """:func:`measure` in a process of its own; what it says where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "row.json"
        own = multiprocessing.get_context("fork").Process(target=_one, args=(name, layers, answer))
        own.start()
        own.join()
        if own.exitcode == -signal.SIGXCPU:
            return {"error": f"it takes more than {TIMEOUT} seconds of the processor"}
        if not answer.is_file():
            return {"error": f"its process ended with {own.exitcode}"}
        row: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return row


def _one(name: str, layers: int | None, answer: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (TIMEOUT, TIMEOUT + 30))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    row: dict[str, Any] = {} if layers is None else {"layers": layers}
    start = time.monotonic()
    try:
        measure(name, layers, row)
    except BaseException as error:  # whatever a network does, it becomes a row
        kind = "" if isinstance(error, PrunekitError) else f"{type(error).__name__}: "
        row["error"] = f"{kind}{(str(error).splitlines() or [''])[0][:300]}"
        if not isinstance(error, PrunekitError):
            traceback.print_exc()
    row["wall"] = round(time.monotonic() - start, 1)
    answer.write_text(json.dumps(row), encoding="utf-8")


def main() -> None:
    """Measure the networks that are missing, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--layers", type=int)
    asked = parser.parse_args()
    path, known = REPORTS / "coverage.json", networks()
    rows = json.loads(path.read_text(encoding="utf-8"))["networks"] if path.is_file() else {}

    def is_missing(name: str) -> bool:
        return name not in rows or (asked.layers is None and "layers" in rows[name])

    for name in asked.names or [name for name in known if is_missing(name)]:
        rows[name] = {**_apart(name, asked.layers), "commit": environment()["commit"]}
        print(name, rows[name], flush=True)
        _publish({one: rows[one] for one in known if one in rows})


def _is_right(row: dict[str, Any]) -> bool:
    return bool(
        row.get("counted") and row.get("reloaded") and row.get("difference", math.inf) < _WRONG[row["precision"]]
    )


def _publish(rows: dict[str, dict[str, Any]]) -> None:
    write_json(
        REPORTS / "coverage.json", {"format": "prunekit-benchmark/1", "manifest": environment(), "networks": rows}
    )
    count = len(rows)

    def those(test: Callable[[dict[str, Any]], bool]) -> str:
        return f"{sum(test(row) for row in rows.values())} of {count}"

    summary = [
        f"- end with an error: {those(lambda row: 'error' in row)}",
        f"- at least 0.9 of the MACs prunable: {those(lambda row: row.get('prunable', 0) >= 0.9)}",
        f"- 0.5 of the MACs reachable: {those(lambda row: row.get('least', 1) <= 0.5)}",
        f"- counted as predicted, same outputs as the silenced network, same after reloading: {those(_is_right)}",
    ]
    header = [
        "network",
        "prunable MACs",
        "least MACs",
        "groups",
        "seconds",
        "as counted",
        "difference",
        "reloaded",
        "commit",
        "why",
    ]
    table = [[name, *_cells(row)] for name, row in rows.items()]
    text = "\n".join([*_HEAD, "", *summary, "", markdown_table(header, table)])
    (REPORTS / "coverage.md").write_text(text, encoding="utf-8")


def _cells(row: dict[str, Any]) -> list[str]:
    def cell(key: str) -> str:
        if key not in row:
            return "–"
        value = row[key]  # a share of 1 or 0 equals True or False
        return ("yes" if value else "**no**") if isinstance(value, bool) else str(value)

    shares = [cell(key) for key in ("prunable", "least", "groups", "seconds", "counted")]
    apart = f"{row['difference']:.0e} ({row['precision']})" if "difference" in row else "–"
    weak = row.get("prunable", 0) < 0.9 or row.get("least", 1) > 0.5
    told = [f"{share:.2f}: {reason}" for reason, share in row.get("reasons", {}).items()] if weak else []
    told += [f"at most {row['layers']} layers of each kind"] if "layers" in row else []
    told += [str(row["error"])] if "error" in row else []
    why = "; ".join(told)
    return [*shares, apart, cell("reloaded"), str(row.get("commit") or "–")[:7], why.replace("|", "/")]


_HEAD = [
    "# Coverage of other people's networks",
    "",
    "Tiny widths, real depth unless a row says otherwise, weights with a standard deviation of 1/√fan_in, no gates of zero.",
    "*Prunable MACs*: share of the MACs that some width changes. *Least MACs*: share that is left with all widths at their least.",
    "*Seconds*: of the processor, for `trace`. *As counted*: predicted MACs of two random plans equal an independent counter's.",
    "*Difference*: largest relative difference between the slim network's outputs and those of the full one with the same channels",
    "silenced; statistics of norms, which change when channels go, are recorded on one and replayed on the other.",
    "A row is right up to " + ", ".join(f"{most:g} ({precision})" for precision, most in _WRONG.items()) + ".",
    "*Reloaded*: a saved slim model gives the same bits. *Commit*: of the engine that was measured.",
]


if __name__ == "__main__":
    main()
