"""The manifest of a run: what was measured, with what, where."""

import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import prunekit
from prunekit._files import json_hash
from prunekit._types import JsonDict
from prunekit.recipe import MEASURED_METHODS, Recipe

__all__ = ["FORMAT", "environment", "manifest_of"]

FORMAT = "prunekit-manifest/1"
_PACKAGES = ("torch", "torch-pruning", "diffusers", "accelerate", "numpy", "torchmetrics", "scikit-learn")


def environment(recipe: Recipe) -> dict[str, Any]:
    """Recipe, commit, versions, device and threads: the manifest's head."""
    config = recipe.model_dump(mode="json")
    return {
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


def manifest_of(recipe: Recipe, done: Mapping[str, JsonDict], base: JsonDict) -> dict[str, Any]:
    """The manifest of a run that makes experts, without its allocation.

    Args:
        recipe: the run's.
        done: by stage, its ``seconds``, ``facts`` and, since they are recorded, ``threads``.
        base: what is to be said of the base.
    """
    head = environment(recipe)
    facts = [stage["facts"] for stage in done.values()]
    threads = {name: stage.get("threads", head["threads"]) for name, stage in done.items()}
    others = {name: count for name, count in threads.items() if count != head["threads"]}
    manifest: dict[str, Any] = {
        **head,
        **({"stage_threads": others} if others else {}),
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
    """Commit of the source tree that the package runs from, with ``+changes`` where it has some; None outside a checkout."""
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
        return None  # installed into somebody else's checkout
    head, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", str(folder))
    return None if head is None else head + ("+changes" if changes else "")
