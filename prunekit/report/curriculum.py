"""What a comparison of ways to train found: a table and the learning curves, made from its manifest alone."""

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

__all__ = ["curriculum_claim", "training_curves", "write_curriculum_report"]


def training_curves(manifest: dict[str, Any]) -> list[LearningCurve]:
    """The ways to train of a manifest, in its order, the baseline first.

    Raises:
        FileFormatError: it is no manifest of such a comparison.
    """
    try:
        by_entry: dict[str, list[dict[str, Any]]] = {}
        for row in manifest["curriculum"]:
            by_entry.setdefault(row["entry"], []).append(row)
        return [curves_of(name, rows) for name, rows in by_entry.items()]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FileFormatError(f"The manifest holds no comparison of ways to train ({error}).") from error


def curriculum_claim(manifest: dict[str, Any]) -> str:
    """What the comparison found, in one sentence."""
    base, *others = training_curves(manifest)
    return learning_claim(base, others)


def write_curriculum_report(folder: Path) -> Path:
    """Write ``report/curriculum.md`` and its picture from the folder's manifest; returns the first.

    Raises:
        FileFormatError: the manifest is of another kind.
    """
    manifest = read_json(folder / "manifest.json", MANIFEST_FORMAT)
    curves = training_curves(manifest)
    section, base = manifest["config"]["curriculum"], curves[0]
    rows = [["training", "what it changes", "loss", "FID", "share to the loss", "share to the FID"]]
    for curve in curves:
        changes = section["entries"][curve.title]
        rows.append(
            [
                curve.title,
                ", ".join(f"{key} {value}" for key, value in changes.items()) or "–",
                mean_and_error(curve.losses[:, -1], 5),
                mean_and_error(curve.fids[:, -1], 3),
                _share(curve, base, "losses"),
                _share(curve, base, "fids"),
            ]
        )
    spent = kinds_sentence([LedgerRow.from_json(row) for row in manifest.get("ledger") or ()])
    return write_learning(folder, "curriculum", curves, _text(manifest, base), rows, words=2, after=spent)


def _text(manifest: dict[str, Any], base: LearningCurve) -> str:
    config, look = manifest["config"], manifest["curriculum"][0]["curve"][-1]
    train, section = config["base"]["train"], config["curriculum"]
    return (
        f"# Ways to train, at equal train steps: {manifest['recipe']}\n\n"
        f"{config['description']}\n\n"
        f"Each training: {train['steps']:,} steps of {train['batch_size']}, {base.training_macs[0, -1] / 1e12:.2f} TMACs "
        f"(backward counted as twice forward), from the same first weights for a seed, over {len(section['seeds'])} seeds; "
        f"the learning rate is {train['lr_scheduler']} unless an entry says otherwise, and what is measured is the moving average. "
        f"{measured_on(look, section['sampler'], section['sampling_steps'])} The last columns: steps until the final mean loss "
        f"and FID of {base.title} are reached, as a share of its own, and how many times fewer that is, linear between looks; "
        "— where they are not reached."
    )


def _share(curve: LearningCurve, base: LearningCurve, of: str) -> str:
    share = 1.0 if curve is base else share_to_reach(curve, base, of)
    return "—" if share is None else f"{share:.2f} ({1 / share:.1f}×)"
