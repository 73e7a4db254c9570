"""The folder ``report/`` of a run: the names of a report's files, so that a new report replaces an earlier one and nothing else."""

from pathlib import Path

from prunekit._kinds import FileKind, FolderKind, has_format
from prunekit.results.formats import MANIFEST

__all__ = ["FOLDER", "PAGE"]

_TABLES = (
    "curriculum",
    "evidence",
    "kinds",
    "ledger",
    "guidance",
    "losses",
    "metrics",
    "multistage",
    "seconds",
    "sensitivity",
    "table",
    "training",
    "widths",
)
_PICTURES = (
    *(
        "curriculum",
        "frontiers",
        "groups",
        "importance",
        "guidance",
        "losses",
        "multistage",
        "pareto_fid",
        "pareto_kid",
        "pareto_loss",
    ),
    *("samples", "snr_targets", "training", "widths"),
)
_NUMBERED = ("grouping", "samples")
_HEAD = 65_536  # bytes at the start of a page that include its kind, which follows the style
_SHOWN = b'<p class="kind">prunekit'
_is_manifest = has_format(MANIFEST)


def _is_page(path: Path) -> bool:
    """Whether a file is a page that prunekit wrote."""
    try:
        with path.open("rb") as file:
            return _SHOWN in file.read(_HEAD)
    except OSError:
        return False


def _is_report(page: Path) -> bool:
    """Whether a folder is a report, by its page; or by the manifest of the run that it is in, if the page was never stored."""
    return _is_page(page) or (not page.exists() and _is_manifest(page.parent.parent / "manifest.json"))


PAGE = FileKind("page of prunekit", _is_page)
"""A page, such as the one about all runs in a folder."""

FOLDER = FolderKind(
    "report",
    (
        *(f"{name}.{suffix}" for name in _TABLES for suffix in ("csv", "md")),
        *(f"{name}.png" for name in _PICTURES),
        *(f"{name}-{digits}.png" for name in _NUMBERED for digits in ("[0-9]", "[0-9][0-9]")),
    ),
    marker="index.html",
    is_ours=_is_report,
)
"""A run's report."""
