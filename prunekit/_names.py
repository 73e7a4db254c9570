"""Names in place of paths: shared files contain the names of files but never their paths, which may reveal users' names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit._json import JsonDict, JsonObject
from prunekit._missing import is_hub_id

__all__ = ["name_of", "public_about", "public_manifest", "split_source", "without_paths"]

_NAME = r"[^\s/\\\"'`<>|]+"
_FOLDERS = re.compile(
    r"(?<![^\s\"'`(\[<=,;:])"  # before the start of a path in a sentence
    rf"(?:(?:~[\w.-]*|[A-Za-z]:)[/\\](?:{_NAME}[/\\])*|(?:file://)?/(?:{_NAME}/)+|\\\\(?:{_NAME}\\)+)"
)
# a path by itself; with a space in it, one after which a folder ends
_WHOLE = re.compile(r"(?:(?:file://)?/|~[\w.-]*[/\\]|[A-Za-z]:[/\\]|\\\\)(?:\S*|[^\n]*\s[^\n]*[/\\][^\n]*)")
_RELATIVE = (
    "source",
    "checkpoint",
    "latency_table",
    "study",
)  # a recipe's keys with paths as values, including relative ones
_USER = re.compile(r"(?<=://)[^/@\s]*@")


def name_of(path: str) -> str:
    """The last name of a path of any system; a bare name is returned unchanged."""
    parts = [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..", "~")]
    return parts[-1] if parts else "unnamed"


def without_paths(value: Any) -> Any:
    """JSON with the last name in place of every absolute path, as a value or within a sentence."""
    if isinstance(value, str):
        return _text_without_paths(value)
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    return value


def _text_without_paths(text: str) -> str:
    home = str(Path.home())
    if (
        len(home) > 1 and home in text
    ):  # the home folder's name may have spaces, where a path in a sentence seems to end
        text = re.sub(rf"{re.escape(home)}(?![^\s/\\\"'`<>|,;:)])", "~", text)
    return name_of(text) if _WHOLE.fullmatch(text) else _FOLDERS.sub("", text)


def public_about(about: JsonDict) -> JsonObject:
    """A model's metadata with names in place of paths; also for its images in ``data``, which may have a relative path."""
    public: JsonObject = without_paths(about)
    data = about.get("data")
    if isinstance(data, Mapping) and isinstance(data.get("source"), str):
        public["data"] = {**public["data"], "source": name_of(data["source"])}
    return public


def public_manifest(manifest: JsonDict) -> JsonObject:
    """A manifest with names in place of paths, including relative paths in its recipe, and no user in a URL."""
    public: JsonObject = without_paths(_named(manifest))
    return public


def _named(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {own: _named(part, own) for own, part in value.items()}
    if isinstance(value, list | tuple):
        return [_named(part) for part in value]
    if not isinstance(value, str):
        return value
    if key == "url":
        return _USER.sub("", value)
    return name_of(value) if key in _RELATIVE and not (key == "checkpoint" and is_hub_id(value)) else value


def split_source(source: str) -> tuple[str, str | None]:
    """The path of an image source, and what the user wrote after ``::``: the key of an array, or the name of a split.

    Example:
        >>> split_source("mnist.npz::x_train")
        ('mnist.npz', 'x_train')
    """
    path, mark, key = source.rpartition("::")
    return (path, key) if mark and path and not Path(source).exists() else (source, None)
