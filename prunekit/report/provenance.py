"""The last parts of every page: where the run's numbers come from, and how to repeat the run."""

import json
import shlex
from typing import Any

from prunekit._names import public_manifest
from prunekit._types import JsonDict
from prunekit.ledger import LedgerRow
from prunekit.report.document import Block, Code, Facts, Fold, Section, Words
from prunekit.report.ledger import kinds_table, ledger_table
from prunekit.report.table import Table
from prunekit.report.tables import seconds_table
from prunekit.report.wording import count_text

__all__ = ["again", "cost_blocks", "provenance"]

_SHOWN_HASH = 16  # digits of a hash to show; the manifest has all
_LONG = 16  # tables with at least this many rows are folded


def provenance(manifest: JsonDict, features: JsonDict | None = None) -> Section:
    """Commit, versions, device, seeds, hashes and data; a fact that was not recorded is marked so.

    Args:
        manifest: the run's manifest.
        features: the manifest's description of FID's features.
    """
    manifest = public_manifest(manifest)  # manifests of earlier versions have paths
    blocks: list[Block] = [Facts(tuple(_facts(manifest, features)))]
    if versions := manifest.get("versions"):
        blocks.append(Fold("Versions", (Facts(tuple((name, str(number)) for name, number in versions.items())),)))
    return Section("provenance", "Provenance", tuple(blocks))


def again(manifest: JsonDict) -> Section:
    """The commands that repeat the run and make its page."""
    manifest = public_manifest(manifest)
    commit, name = manifest.get("commit"), f"{manifest.get('recipe', 'unnamed')}.yaml"
    lines = [f"git checkout {shlex.quote(str(commit))}"] if commit else []
    lines += [f"prunekit run {shlex.quote(name)}", "prunekit report RUN"]
    text = (
        f"The first commands repeat the run; {name} is the configuration below. The last one makes this page again from the run's "
        "folder RUN, in which manifest.json has every number in full. The configuration names data and files without their "
        "folders, which have to be added."
    )
    blocks: list[Block] = [Words(text), Code("Commands", "\n".join(lines))]
    if config := manifest.get("config"):
        told = Words(f"Save this as {name}: it is the recipe (JSON is valid YAML).", note=True)
        whole = Code("Configuration", json.dumps(config, indent=2, ensure_ascii=False))
        blocks.append(Fold("The whole configuration", (told, whole)))
    return Section("again", "Repeating the run", tuple(blocks))


def cost_blocks(manifest: JsonDict) -> list[Block | None]:
    """The ledger, its totals by kind, and wall-clock time. Long tables are folded; missing ones are left out."""
    ledger = [LedgerRow.from_json(row) for row in manifest.get("ledger") or ()]
    seconds = seconds_table(manifest)
    missing = Words("This run kept no ledger of MACs.", note=True) if seconds is not None and not ledger else None
    return [
        missing,
        _folded(ledger_table(ledger), "Ledger, stage by stage"),
        kinds_table(ledger),
        None if seconds is None else Fold("Wall-clock time", (seconds,)),
    ]


def _folded(table: Table | None, summary: str) -> Block | None:
    return Fold(summary, (table,)) if table is not None and len(table.rows) > _LONG else table


def _facts(manifest: JsonDict, features: JsonDict | None) -> list[tuple[str, str]]:
    base = manifest.get("base") or {}
    data = base.get("data") or (manifest.get("config") or {}).get("data") or {}
    seeds = manifest.get("seeds") or {}
    facts = [
        ("Made", _stated(manifest.get("created"))),
        ("Commit", _stated(manifest.get("commit"))),
        ("prunekit", _stated(manifest.get("prunekit"))),
        ("Device", _stated(manifest.get("device"))),
        ("Threads", _stated(manifest.get("threads"))),
        ("Seeds", ", ".join(f"{name} {_listed(seed)}" for name, seed in seeds.items())),
        ("Configuration", _hash(manifest.get("config_hash"))),
        ("Base checkpoint", _hash(base.get("sha256"))),
        ("Data", ", ".join(f"{key} {value}" for key, value in data.items() if value is not None)),
    ]
    if "sha256" not in base:
        facts = [fact for fact in facts if fact[0] != "Base checkpoint"]
    if features is not None:
        facts.append(("Features", _features_text(features)))
    words = {"macs": "MACs", "params": "parameters"}
    if sizes := [f"{count_text(base[key])} {word}" for key, word in words.items() if key in base]:
        facts.append(("Base cost", ", ".join(sizes)))
    return [(name, text or "not recorded") for name, text in facts]


def _features_text(features: JsonDict) -> str:
    parts = [str(features.get("name", "not named")), f"SHA-256 {_hash(features.get('sha256')) or 'not recorded'}"]
    if features.get("accuracy") is not None:
        parts.append(f"accuracy {features['accuracy']:.4g} as a classifier")
    if features.get("resolution") is not None:
        parts.append(f"resolution {features['resolution']}")
    return ", ".join(parts)


def _listed(seeds: Any) -> str:
    return " ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)


def _stated(value: Any) -> str:
    return "" if value is None else str(value)


def _hash(value: Any) -> str:
    text = _stated(value)
    return text if len(text) <= _SHOWN_HASH else f"{text[:_SHOWN_HASH]}…"
