"""The environment of a benchmark, stored together with its measurements."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prunekit._files import write_json

REPORTS = Path(__file__).resolve().parents[1] / "reports" / "engine"
_PACKAGES = ("torch", "torch-pruning", "diffusers", "numpy")


def environment() -> dict[str, Any]:
    """Commit, versions and device."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "device": f"cpu ({platform.machine()})",
        "cores": os.cpu_count(),
    }


def publish(name: str, figures: dict[str, Any], folder: Path = REPORTS) -> None:
    """Write ``<name>.json`` and print the figures."""
    write_json(folder / f"{name}.json", {"format": "prunekit-benchmark/1", "manifest": environment(), **figures})
    print(json.dumps(figures, indent=2))


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; the first column is text, the others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _commit() -> str | None:
    """Commit of the source tree, with ``+changes`` if the package or the benchmarks were edited; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()  # noqa: S603

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../prunekit", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
