"""What a comparison of multistage networks found: a table and the learning curves, made from its manifest alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from prunekit._files import atomic_path, read_json
from prunekit._types import FloatArray
from prunekit.errors import FileFormatError
from prunekit.ledger import LedgerRow
from prunekit.report.figures import save_figure, scale_by_log, styled
from prunekit.report.ledger import kinds_sentence
from prunekit.report.run import MANIFEST_FORMAT

__all__ = ["Entry", "entries_of", "reaching", "write_multistage_report"]

_TITLES = {
    "unified": "unified",
    "separate": "separate networks",
    "equal": "equal decoders",
    "tailored": "tailored decoders",
}


@dataclass(frozen=True)
class Entry:
    """One network on one grouping, over its seeds.

    Args:
        network: ``unified``, ``separate``, ``equal`` or ``tailored``.
        grouping: method that cut the stages.
        cuts: first timesteps of all stages but the first.
        stage_macs: MACs per sample of every stage.
        sampling_macs: mean MACs of an evaluation while sampling.
        params: number of parameters.
        training_macs: at every look, shape (seeds, looks).
        losses: held-out loss on all timesteps, likewise.
        fids: likewise.
    """

    network: str
    grouping: str
    cuts: tuple[int, ...]
    stage_macs: tuple[int, ...]
    sampling_macs: float
    params: int
    training_macs: FloatArray
    losses: FloatArray
    fids: FloatArray

    @property
    def title(self) -> str:
        """What tables call it."""
        title = _TITLES.get(self.network, self.network)
        return title if self.network == "unified" else f"{title}, {self.grouping}"


def entries_of(manifest: dict[str, Any]) -> list[Entry]:
    """The networks of a manifest, in its order.

    Raises:
        FileFormatError: it is no manifest of such a comparison.
    """
    try:
        by_network: dict[tuple[str, str, tuple[int, ...]], list[dict[str, Any]]] = {}
        for row in manifest["multistage"]:
            key = (row["network"], "" if row["network"] == "unified" else row["grouping"], tuple(row["cuts"]))
            by_network.setdefault(key, []).append(row)
        return [
            Entry(
                network,
                grouping,
                cuts,
                tuple(rows[0]["stage_macs"]),
                float(rows[0]["sampling_macs"]),
                int(rows[0]["params"]),
                *(
                    np.array([[look[name] for look in row["curve"]] for row in rows], dtype=np.float64)
                    for name in _CURVES
                ),
            )
            for (network, grouping, cuts), rows in by_network.items()
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileFormatError(f"The manifest holds no comparison of multistage networks ({error}).") from error


_CURVES = ("training_macs", "loss", "fid")


def reaching(macs: FloatArray, values: FloatArray, goal: float) -> float | None:
    """Training MACs at which a curve first gets down to a goal, linear between looks; None where it never does.

    Args:
        macs: shape (looks,), rising.
        values: shape (looks,).
        goal: what is to be reached.
    """
    below = np.flatnonzero(values <= goal)
    if not len(below):
        return None
    i = int(below[0])
    if i == 0:
        return float(macs[0])
    share = (values[i - 1] - goal) / (values[i - 1] - values[i])
    return float(macs[i - 1] + share * (macs[i] - macs[i - 1]))


def write_multistage_report(folder: Path) -> Path:
    """Write ``report/multistage.md`` and its picture from the folder's manifest; returns the first.

    Raises:
        FileFormatError: the manifest is of another kind.
    """
    manifest = read_json(folder / "manifest.json", MANIFEST_FORMAT)
    entries = entries_of(manifest)
    target = folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    _draw(entries, target / "multistage.png")
    with atomic_path(target / "multistage.md") as part:
        part.write_text(_markdown(manifest, entries), encoding="utf-8")
    return target / "multistage.md"


def _markdown(manifest: dict[str, Any], entries: list[Entry]) -> str:
    config, look = manifest["config"], manifest["multistage"][0]["curve"][-1]
    train, multistage = config["base"]["train"], config["multistage"]
    unified = next((entry for entry in entries if entry.network == "unified"), None)
    text = (
        f"# Networks for stages, at equal training MACs: {manifest['recipe']}\n\n"
        f"{config['description']}\n\n"
        f"Every network was trained from scratch with {manifest['unified']['training_macs'] / 1e12:.2f} TMACs, those of "
        f"{train['steps']:,} steps of {train['batch_size']} for the unified network (backward counted as twice forward), over "
        f"{len(multistage['seeds'])} seeds; the learning rate {_FALLS[train['lr_scheduler']]}. Stages are listed from "
        f"the cleanest. Loss: ε on held-out images, all timesteps alike. FID: {look['count']:,} images, "
        f"{multistage['sampling_steps']} steps of {multistage['sampler']}, features {look['features'].get('name', 'as stated')}. "
        "± is the standard error over the seeds. The last columns: training MACs until the unified network's final mean loss and "
        "FID are reached, as a share of its own, linear between looks; — where they are not.\n\n"
    )
    header = [
        "network",
        "cuts",
        "MACs by stage (M)",
        "sampling MACs (M)",
        "parameters (M)",
        "loss",
        "FID",
        "share to its loss",
        "share to its FID",
    ]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for entry in entries:
        lines.append(
            [
                entry.title,
                " ".join(map(str, entry.cuts)) or "–",
                " ".join(f"{macs / 1e6:.1f}" for macs in entry.stage_macs),
                f"{entry.sampling_macs / 1e6:.1f}",
                f"{entry.params / 1e6:.2f}",
                _with_error(entry.losses[:, -1], 5),
                _with_error(entry.fids[:, -1], 3),
                _share(entry, unified, "losses"),
                _share(entry, unified, "fids"),
            ]
        )
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    spent = kinds_sentence([LedgerRow.from_json(row) for row in manifest.get("ledger") or ()])
    return text + table + "\n\n![Learning curves](multistage.png)\n" + (f"\n{spent}\n" if spent else "")


_FALLS = {
    "constant": "stays, and what is measured is the moving average",
    "cosine": "falls to zero over each network's own steps",
}


def _with_error(values: FloatArray, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


def _share(entry: Entry, unified: Entry | None, curve: str) -> str:
    """Share of the unified network's training MACs that a network takes to its final value; means over the seeds."""
    if unified is None or entry is unified:
        return "1" if entry is unified else "—"
    goal = float(getattr(unified, curve)[:, -1].mean())
    reached = reaching(entry.training_macs.mean(0), getattr(entry, curve).mean(0), goal)
    return "—" if reached is None else f"{reached / float(unified.training_macs[:, -1].mean()):.2f}"


def _draw(entries: Iterable[Entry], path: Path) -> None:
    """Loss and FID over training MACs, one line for each network."""
    entries = list(entries)
    with styled():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        for axes, curve, word in zip(figure.subplots(1, 2), ("losses", "fids"), ("held-out loss", "FID"), strict=True):
            for i, entry in enumerate(entries):
                values = getattr(entry, curve)
                macs = entry.training_macs.mean(0) / 1e12
                style = {"color": f"C{i}", "marker": "o", "markersize": 3}
                axes.plot(
                    macs, values.mean(0), label=entry.title, linewidth=2 if entry.network == "unified" else 1, **style
                )
            scale_by_log(axes)
            axes.set_xlabel("training TMACs")
            axes.set_ylabel(word)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False)
        save_figure(figure, path)
