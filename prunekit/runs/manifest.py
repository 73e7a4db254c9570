"""The manifest of a run: its results, and the versions and the machine that made them."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import prunekit
from prunekit._files import json_hash, write_json
from prunekit._names import public_manifest
from prunekit._types import JsonDict
from prunekit.recipe import MEASURED_METHODS, Recipe

__all__ = ["FORMAT", "environment", "manifest_of", "write_manifest"]

FORMAT = "prunekit-manifest/1"
_PACKAGES = ("torch", "torch-pruning", "diffusers", "accelerate", "numpy", "torchmetrics", "scikit-learn")


def environment(recipe: Recipe, done: Mapping[str, JsonDict]) -> dict[str, Any]:
    """Recipe, commit, versions, device and threads: the manifest's head.

    Args:
        recipe: the run's recipe.
        done: by stage, its record; ``stage_threads`` and ``stage_versions`` list stages made with other threads or versions.
    """
    config = public_manifest(recipe.model_dump(mode="json"))
    head = {
        "format": FORMAT,
        "recipe": recipe.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "prunekit": prunekit.__version__,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": "cuda" if torch.cuda.is_available() else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "config_hash": json_hash(config),
        "config": config,
    }
    own = {"prunekit": head["prunekit"], "torch": str(torch.__version__)}
    threads = {name: stage.get("threads", head["threads"]) for name, stage in done.items()}
    versions = {name: stage.get("versions", own) for name, stage in done.items()}
    others = {
        "stage_threads": {name: count for name, count in threads.items() if count != head["threads"]},
        "stage_versions": {name: made for name, made in versions.items() if made != own},
    }
    return head | {key: stages for key, stages in others.items() if stages}


def write_manifest(folder: Path, manifest: JsonDict) -> Path:
    """Write ``manifest.json``, with paths replaced by names; returns its path."""
    write_json(folder / "manifest.json", public_manifest(manifest))
    return folder / "manifest.json"


def manifest_of(recipe: Recipe, done: Mapping[str, JsonDict], base: JsonDict) -> dict[str, Any]:
    """The manifest of a run that makes experts, without its allocation.

    Args:
        recipe: the run's recipe.
        done: by stage, its ``seconds`` and ``facts``, and, if recorded, ``threads`` and ``versions``.
        base: the manifest's entry about the base.
    """
    facts = [stage["facts"] for stage in done.values()]
    manifest: dict[str, Any] = {
        **environment(recipe, done),
        "seeds": _seeds(recipe),
        "seconds": {name: stage["seconds"] for name, stage in done.items()},
        "base": base,
        "ledger": [row for fact in facts for row in fact.get("ledger", [])],
    }
    experts = [fact["expert"] for fact in facts if "expert" in fact]
    if experts:
        manifest["experts"] = experts
    return manifest | {key: fact[key] for fact in facts for key in ("assembled", "losses", "metrics") if key in fact}


def _seeds(recipe: Recipe) -> dict[str, Any]:
    seeds: dict[str, Any] = {"base": recipe.base.train.seed}
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
