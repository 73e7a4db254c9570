"""The last parts of every page: where the run's numbers come from, and how to repeat the run."""

import json
import shlex

from prunekit._names import public_manifest
from prunekit.ledger import LedgerRow
from prunekit.report.cost_tables import kinds_table, ledger_table
from prunekit.report.document import Block, Code, Facts, Fold, Section, Words
from prunekit.report.table import Table
from prunekit.report.tables import seconds_table
from prunekit.report.wording import count_text
from prunekit.results.expert_results import BaseResult, ExpertsManifest
from prunekit.results.learning_results import MultistageManifest
from prunekit.results.manifest_head import Features
from prunekit.results.reading_manifests import Manifest, manifest_of

__all__ = ["again", "cost_blocks", "provenance"]

_SHOWN_HASH = 16  # digits of a hash to show; the manifest has all
_LONG = 16  # tables with at least this many rows are folded


def provenance(manifest: Manifest, features: Features | None = None) -> Section:
    """Commit, versions, device, seeds, hashes and data; a fact that was not recorded is marked so.

    Args:
        manifest: the run's manifest.
        features: the manifest's description of FID's features.
    """
    manifest = _public(manifest)
    blocks: list[Block] = [Facts(tuple(_facts(manifest, features)))]
    if versions := manifest.versions:
        blocks.append(Fold("Versions", (Facts(tuple((name, str(number)) for name, number in versions.items())),)))
    return Section("provenance", "Provenance", tuple(blocks))


def again(manifest: Manifest) -> Section:
    """The commands that repeat the run and make its page."""
    manifest = _public(manifest)
    if manifest.config is None and isinstance(manifest, ExpertsManifest):
        return _by_hand(manifest)
    commit, name = manifest.commit, f"{manifest.recipe}.yaml"
    lines = [f"git checkout {shlex.quote(commit)}"] if commit else []
    lines += [f"prunekit run {shlex.quote(name)}", "prunekit report RUN"]
    text = (
        f"The first commands repeat the run; {name} is the configuration below. The last one makes this page again from the run's "
        "folder RUN, in which manifest.json has every number in full. The configuration names data and files without their "
        "folders, which have to be added."
    )
    blocks: list[Block] = [Words(text), Code("Commands", "\n".join(lines))]
    if config := manifest.config:
        told = Words(f"Save this as {name}: it is the recipe (JSON is valid YAML).", note=True)
        whole = Code("Configuration", json.dumps(config, indent=2, ensure_ascii=False))
        blocks.append(Fold("The whole configuration", (told, whole)))
    return Section("again", "Repeating the run", tuple(blocks))


def _by_hand(manifest: ExpertsManifest) -> Section:
    """The commands that make what single commands have made, without the options that are not recorded."""
    plan = manifest.allocation
    lines = [
        f"prunekit allocate --budget {plan.get('budget')} --rule {plan.get('rule')} --base BASE",
        "prunekit prune BASE",
        "prunekit finetune slim",
        "prunekit assemble slim",
        "prunekit evaluate experts --base BASE",
        "prunekit report .",
    ]
    text = (
        "These files were made by single commands, one after the other, like the ones below; BASE is the base's file. Options that "
        "were given besides are in the files where they matter. `prunekit run` keeps all of them, and every stage's time and MACs."
    )
    return Section("again", "Repeating it", (Words(text), Code("Commands", "\n".join(lines))))


def cost_blocks(manifest: Manifest) -> list[Block | None]:
    """The ledger, its totals by kind, and wall-clock time. Long tables are folded; missing ones are left out."""
    ledger = list(map(LedgerRow.from_json, manifest.ledger or ()))
    seconds = seconds_table(manifest.seconds)
    missing = Words("This run kept no ledger of MACs.", note=True) if seconds is not None and not ledger else None
    return [
        missing,
        _folded(ledger_table(ledger), "Ledger, stage by stage"),
        kinds_table(ledger),
        None if seconds is None else Fold("Wall-clock time", (seconds,)),
    ]


def _folded(table: Table | None, summary: str) -> Block | None:
    return Fold(summary, (table,)) if table is not None and len(table.rows) > _LONG else table


def _public(manifest: Manifest) -> Manifest:
    """The same manifest with names in place of paths, which earlier versions wrote."""
    return manifest_of(public_manifest(manifest.to_json()))


def _facts(manifest: Manifest, features: Features | None) -> list[tuple[str, str]]:
    base = None if isinstance(manifest, MultistageManifest) else manifest.base
    known = base if isinstance(base, BaseResult) else None
    data = (known.data if known else None) or manifest.settings.data or {}
    seeds = manifest.seeds or {}
    facts = [
        ("Made", manifest.created or ""),
        ("Commit", manifest.commit or ""),
        ("prunekit", manifest.prunekit or ""),
        ("Device", manifest.device or ""),
        ("Threads", "" if manifest.threads is None else str(manifest.threads)),
        ("Seeds", ", ".join(f"{name} {_listed(seed)}" for name, seed in seeds.items())),
        ("Configuration", _hash(manifest.config_hash)),
    ]
    if known is not None and "sha256" in known.model_fields_set:
        facts.append(("Base checkpoint", _hash(known.sha256)))
    facts.append(("Data", ", ".join(f"{key} {value}" for key, value in data.items() if value is not None)))
    if features is not None:
        facts.append(("Features", _features_text(features)))
    sizes = ((base.macs, "MACs"), (base.params, "parameters")) if base else ()
    if words := [f"{count_text(size)} {word}" for size, word in sizes if size is not None]:
        facts.append(("Base cost", ", ".join(words)))
    return [(name, text or "not recorded") for name, text in facts]


def _features_text(features: Features) -> str:
    parts = [features.name or "not named", f"SHA-256 {_hash(features.sha256) or 'not recorded'}"]
    if features.accuracy is not None:
        parts.append(f"accuracy {features.accuracy:.4g} as a classifier")
    if features.resolution is not None:
        parts.append(f"resolution {features.resolution}")
    return ", ".join(parts)


def _listed(seeds: object) -> str:
    return " ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds)


def _hash(text: str | None) -> str:
    return "" if text is None else text if len(text) <= _SHOWN_HASH else f"{text[:_SHOWN_HASH]}…"
