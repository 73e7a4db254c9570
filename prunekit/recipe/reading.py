"""Reads a recipe's YAML; whatever is wrong with it is said with its line."""

from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import ValidationError

from prunekit.errors import FileFormatError, MissingFileError
from prunekit.recipe.recipe import Recipe

__all__ = ["load_recipe"]


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is not YAML, or a key is unknown or has a wrong value; the message gives the line.
    """
    if not path.is_file():
        raise MissingFileError(f"Recipe {path} does not exist; expected a .yaml file.")
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        repeated = next(_repeated(tree), None)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not YAML: {' '.join(str(error).split()).rstrip('.')}.") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} holds no mapping; expected keys such as name, data and base.")
    if repeated is not None:
        line = repeated.start_mark.line + 1
        raise FileFormatError(f"{path}, line {line}: {repeated.value}: given twice; keep one of them.")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        line = _line_of(tree, first["loc"])
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        raise FileFormatError(f"{path}, line {line}: {where or 'recipe'}: {message}.") from error


def _repeated(node: yaml.Node | None) -> Iterator[yaml.Node]:
    """Keys that a mapping has already; YAML forbids them, and PyYAML would keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                yield key
            seen.add(str(key.value))
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the innermost key on the way to ``location`` that the text has."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == part), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return int(line)
