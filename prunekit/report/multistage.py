"""What a comparison of multistage networks found: a table and the learning curves, made from its manifest alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit._files import read_json
from prunekit.errors import FileFormatError
from prunekit.ledger import LedgerRow
from prunekit.report.learning import (
    LearningCurve,
    curves_of,
    learning_claim,
    mean_and_error,
    measured_on,
    share_to_reach,
    write_learning,
)
from prunekit.report.ledger import kinds_sentence
from prunekit.report.run import MANIFEST_FORMAT

__all__ = ["Entry", "entries_of", "multistage_claim", "write_multistage_report"]

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
        curve: how its training went.
    """

    network: str
    grouping: str
    cuts: tuple[int, ...]
    stage_macs: tuple[int, ...]
    sampling_macs: float
    params: int
    curve: LearningCurve


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
                curves_of(_title(network, grouping), rows),
            )
            for (network, grouping, cuts), rows in by_network.items()
        ]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileFormatError(f"The manifest holds no comparison of multistage networks ({error}).") from error


def _title(network: str, grouping: str) -> str:
    title = _TITLES.get(network, network)
    return f"{title}, {grouping}" if grouping else title


def multistage_claim(manifest: dict[str, Any]) -> str:
    """What the comparison found, in one sentence."""
    entries = entries_of(manifest)
    unified = next(entry.curve for entry in entries if entry.network == "unified")
    return learning_claim(unified, [entry.curve for entry in entries if entry.network != "unified"])


def write_multistage_report(folder: Path) -> Path:
    """Write ``report/multistage.md`` and its picture from the folder's manifest; returns the first.

    Raises:
        FileFormatError: the manifest is of another kind.
    """
    manifest = read_json(folder / "manifest.json", MANIFEST_FORMAT)
    entries = entries_of(manifest)
    unified = next((entry.curve for entry in entries if entry.network == "unified"), None)
    rows = [_HEADER]
    for entry in entries:
        rows.append(
            [
                entry.curve.title,
                " ".join(map(str, entry.cuts)) or "–",
                " ".join(f"{macs / 1e6:.1f}" for macs in entry.stage_macs),
                f"{entry.sampling_macs / 1e6:.1f}",
                f"{entry.params / 1e6:.2f}",
                mean_and_error(entry.curve.losses[:, -1], 5),
                mean_and_error(entry.curve.fids[:, -1], 3),
                _share(entry.curve, unified, "losses"),
                _share(entry.curve, unified, "fids"),
            ]
        )
    spent = kinds_sentence([LedgerRow.from_json(row) for row in manifest.get("ledger") or ()])
    curves = [entry.curve for entry in entries]
    return write_learning(folder, "multistage", curves, _text(manifest), rows, after=spent)


_HEADER = [
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


def _text(manifest: dict[str, Any]) -> str:
    config, look = manifest["config"], manifest["multistage"][0]["curve"][-1]
    train, multistage = config["base"]["train"], config["multistage"]
    return (
        f"# Networks for stages, at equal training MACs: {manifest['recipe']}\n\n"
        f"{config['description']}\n\n"
        f"Every network was trained {_start(config)} with {manifest['unified']['training_macs'] / 1e12:.2f} TMACs, those of "
        f"{train['steps']:,} steps of {train['batch_size']} for the unified network (backward counted as twice forward), over "
        f"{len(multistage['seeds'])} seeds; the learning rate {_RATES[train['lr_scheduler']]}. Stages are listed from the "
        f"cleanest. {measured_on(look, multistage['sampler'], multistage['sampling_steps'])} The last columns: training MACs "
        "until the unified network's final mean loss and FID are reached, as a share of its own, linear between looks; — where "
        "they are not."
    )


def _start(config: dict[str, Any]) -> str:
    checkpoint = config["base"].get("checkpoint")
    return f"on from {checkpoint}" if checkpoint else "from scratch"


_RATES = {
    "constant": "stays where it is, and what is measured is the moving average",
    "cosine": "falls to zero over each network's own steps",
}


def _share(curve: LearningCurve, unified: LearningCurve | None, of: str) -> str:
    if unified is None or curve is unified:
        return "1" if curve is unified else "—"
    share = share_to_reach(curve, unified, of)
    return "—" if share is None else f"{share:.2f}"
