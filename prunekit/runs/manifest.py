"""The manifest of a run: its results, and the versions and the machine that made them."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import prunekit
from prunekit._files import json_hash, write_json
from prunekit._names import public_manifest
from prunekit.allocation import Allocation
from prunekit.recipe import MEASURED_METHODS, Recipe
from prunekit.results.expert_results import BaseManifest, BaseResult, ExpertsManifest
from prunekit.results.formats import MANIFEST
from prunekit.results.manifest_head import Head
from prunekit.results.model import JsonValue, plain
from prunekit.results.reading_manifests import Manifest
from prunekit.results.stage_files import StageRecord

__all__ = ["environment", "manifest_of", "write_manifest"]

_PACKAGES = ("torch", "torch-pruning", "diffusers", "accelerate", "numpy", "torchmetrics", "scikit-learn")


def environment(recipe: Recipe, done: Mapping[str, StageRecord]) -> Head:
    """Recipe, commit, versions, device and threads: the manifest's head.

    Args:
        recipe: the run's recipe.
        done: by stage, its record; ``stage_threads`` and ``stage_versions`` list stages made with other threads or versions.
    """
    config = plain(public_manifest(recipe.model_dump(mode="json")))
    head = Head(
        format=MANIFEST,
        recipe=recipe.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        prunekit=prunekit.__version__,
        versions={"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        device="cuda" if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        threads=torch.get_num_threads(),
        config_hash=json_hash(config),
        config=config,
    )
    own = {"prunekit": prunekit.__version__, "torch": str(torch.__version__)}
    others = {
        "stage_threads": {
            name: stage.threads for name, stage in done.items() if stage.threads not in (None, head.threads)
        },
        "stage_versions": {name: stage.versions for name, stage in done.items() if stage.versions not in (None, own)},
    }
    return head.model_copy(update={key: stages for key, stages in others.items() if stages})


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write ``manifest.json``, with paths replaced by names; returns its path."""
    write_json(folder / "manifest.json", public_manifest(manifest.to_json()))
    return folder / "manifest.json"


def manifest_of(
    recipe: Recipe, done: Mapping[str, StageRecord], base: BaseResult, allocation: Allocation | None, base_seed: object
) -> BaseManifest:
    """The manifest of a run that makes a base or experts.

    Args:
        recipe: the run's recipe.
        done: by stage, its record.
        base: the manifest's entry about the base.
        allocation: the allocation of a run that makes experts.
        base_seed: seed of the base's training, as its provenance has it; not recorded if it is not a whole number.
    """
    facts = [stage.results for stage in done.values()]
    experts = [fact.expert for fact in facts if fact.expert is not None]
    found = {
        name: part
        for fact in facts
        for name in ("assembled", "losses", "metrics")
        if (part := getattr(fact, name)) is not None
    }
    if experts:
        found["experts"] = experts
    if allocation is not None:
        found["allocation"] = plain(allocation.to_json())
    return (BaseManifest if allocation is None else ExpertsManifest).joined(
        environment(recipe, done),
        seeds=_seeds(recipe, base_seed),
        seconds={name: stage.seconds for name, stage in done.items()},
        base=base,
        ledger=[row for fact in facts for row in fact.ledger or ()],
        **found,
    )


def _seeds(recipe: Recipe, base_seed: object) -> dict[str, JsonValue]:
    seeds: dict[str, JsonValue] = {"base": base_seed} if isinstance(base_seed, int) else {}
    if recipe.groups and recipe.groups.method in MEASURED_METHODS:
        seeds["groups"] = recipe.groups.seed
    seeds |= {"calibration": recipe.prune.seed} if recipe.prune else {}
    seeds |= {"finetune": recipe.finetune.train.seed} if recipe.finetune else {}
    return seeds | ({"sampling": list(recipe.evaluation.seeds)} if recipe.evaluation else {})


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the source tree that the package runs from, with ``+changes`` if it was modified; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(  # noqa: S603 - fixed arguments
                ["git", "-C", str(folder), *arguments],  # noqa: S607 - whichever git the user has
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    if git("ls-files", "--error-unmatch", str(Path(__file__).resolve())) is None:
        return None  # installed inside the checkout of another project
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", str(folder))
    return None if head is None else head + ("+changes" if changes else "")
