"""Keeps a run's writes inside its own folder, whatever the recipe and links in the folder say."""

import os
from pathlib import Path

from prunekit.errors import InputError
from prunekit.recipe import PruneOptions, check_inner_name

__all__ = ["check_links", "check_places", "inside", "own_or_elsewhere"]


def check_links(folder: Path, part: str | None = None) -> None:
    """Refuse a run's folder if a symbolic link in it leads out of it. The folder itself may be a link.

    Args:
        folder: the run's folder.
        part: the only file or folder in it that is written, so that other links are the user's own.

    Raises:
        InputError: there is such a link.
    """
    root = folder.resolve()
    for parent, folders, files in os.walk(root):
        if part is not None and Path(parent) == root:
            folders[:], files = ([name for name in names if name == part] for names in (folders, files))
        for name in (*folders, *files):
            path = Path(parent, name)
            if path.is_symlink() and not _is_within(path, root):
                raise InputError(
                    f"{folder / path.relative_to(root)} is a symbolic link that leads out of the run's folder, where a run would "
                    "write; remove it, or put the whole folder where the link leads and link to that."
                )


def check_places(options: PruneOptions, folder: Path) -> None:
    """Refuse options with which a run would write outside its folder.

    Raises:
        InputError: an option names such a file.
    """
    if options.search.study is not None:
        inside(folder, options.search.study, "study")
    if options.search.target_of == "latency" and options.latency_table is not None:
        own_or_elsewhere(folder, options.latency_table, "latency_table")


def inside(folder: Path, name: str, what: str) -> Path:
    """The path of a file that a recipe names, after checking that it is in the run's folder even when links are followed.

    Args:
        folder: the run's folder.
        name: relative to it.
        what: the recipe's key, for the message.

    Raises:
        InputError: the name is not a plain relative one, or a link leads out of the folder.
    """
    check_inner_name(name, what)
    path = folder / name
    if not _is_within(path, folder.resolve()):
        raise InputError(
            f"Got {what} {name!r}, which a symbolic link leads out of {folder}; expected a name inside the run's folder."
        )
    return path


def own_or_elsewhere(folder: Path, name: str, what: str) -> tuple[Path, bool]:
    """A file that a recipe names: an existing file is read from its place, a missing one is made in the run's folder.

    Args:
        folder: the run's folder.
        name: any path if the file exists, otherwise relative to the run's folder.
        what: the recipe's key, for the message.

    Returns:
        The file, and whether it belongs to the run and may be written.

    Raises:
        InputError: there is no such file, and it would have to be written outside the run's folder.
    """
    elsewhere = Path(name).expanduser()
    try:
        own = inside(folder, name, what)
    except InputError:
        if elsewhere.is_file():
            return elsewhere, False
        raise
    return (elsewhere, False) if not own.exists() and elsewhere.is_file() else (own, True)


def _is_within(path: Path, root: Path) -> bool:
    """Whether a path is in a folder, after following links."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # circular links, or invalid names
        return False
