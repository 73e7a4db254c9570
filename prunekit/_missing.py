"""Checks that a user's paths exist; they run before heavy imports, and the readers check again."""

import re
from pathlib import Path

from prunekit.errors import InputError, MissingFileError

__all__ = [
    "EMBEDDED",
    "check_base",
    "check_checkpoint",
    "check_countable",
    "check_json",
    "check_recipe",
    "check_slim",
    "is_hub_id",
    "is_shipped",
]

EMBEDDED = "embedded:"
"""Prefix of the name of a shipped base."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".json")


def is_hub_id(name: str) -> bool:
    """Whether a name looks like ``owner/name`` and is not a path; a name in an existing folder counts as a path."""
    owner, _, model = name.partition("/")
    known = _HUB_ID.fullmatch(name) is not None and Path(name).suffix.lower() not in _FILES
    return known and not Path(owner).exists() and owner.strip(".") != "" and model.strip(".") != ""


def is_shipped(source: str) -> bool:
    """Whether an image source is not a file: the digits, or pictures that prunekit ships."""
    return source == "digits" or source.startswith(EMBEDDED)


def check_base(path: Path | str) -> None:
    """Refuse a base that is not a path, not an id of the Hugging Face Hub and not shipped."""
    if not (str(path).startswith(EMBEDDED) or Path(path).exists() or is_hub_id(str(path))):
        check_checkpoint(path)


def check_checkpoint(path: Path | str) -> None:
    """Refuse a checkpoint that is not a file."""
    _check_file(
        path,
        "a checkpoint, which `prunekit train` makes, or a folder of what `prunekit prune` or `prunekit assemble` made.",
    )


def check_countable(path: Path | str) -> None:
    """Refuse a model that :func:`check_base` refuses, and a recipe with the command that is meant for it.

    Raises:
        InputError: nothing is there, or it is a recipe.
    """
    if str(path).lower().endswith((".yaml", ".yml")):
        raise InputError(
            f"Got {path}, a recipe; expected a model. `prunekit estimate {path}` says what a recipe takes."
        )
    check_base(path)


def check_slim(folder: Path | str) -> None:
    """Refuse a missing folder of a slim model.

    Raises:
        MissingFileError: the folder does not exist.
    """
    if not Path(folder).is_dir():
        raise MissingFileError(f"{folder} does not exist; expected a slim model's folder, as `prunekit prune` writes.")


def check_recipe(path: Path | str) -> None:
    """Refuse a recipe that is not a file.

    Raises:
        InputError: the path is a folder, or nothing is there.
    """
    if Path(path).is_dir():
        raise InputError(f"Got {path}, a folder; expected a recipe, a .yaml file.")
    if not Path(path).is_file():
        raise MissingFileError(f"Recipe {path} does not exist; expected a .yaml file.")


def check_json(path: Path | str) -> None:
    """Refuse JSON that is not a file."""
    _check_file(path, "a JSON file there.")


def _check_file(path: Path | str, expected: str) -> None:
    if not Path(path).is_file():
        there = "is a folder" if Path(path).is_dir() else "does not exist"
        raise MissingFileError(f"{path} {there}; expected {expected}")
