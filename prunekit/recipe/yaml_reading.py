"""Reads a recipe's YAML, its values by version 1.2; every error names its line."""

import re
from collections.abc import Hashable, Iterator
from pathlib import Path

import yaml
from pydantic import ValidationError

from prunekit._missing import check_recipe
from prunekit.errors import FileFormatError, LimitError
from prunekit.limits import check_limit
from prunekit.recipe.recipe import Recipe, recipe_model

__all__ = ["load_recipe"]


def load_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is not YAML, or a key is unknown or has a wrong value; the message gives the line.
    """
    path = Path(path)
    check_recipe(path)
    check_limit("yaml-bytes", path.stat().st_size, str(path))
    loader: _Loader | None = None
    try:
        text = path.read_text(encoding="utf-8")
        check_limit("yaml-brackets", text.count("[") + text.count("{"), str(path))
        loader = _Loader(text)
        tree = loader.get_single_node()
        check_limit("yaml-values", _values(tree, {}), str(path))
        repeated = next(_repeated(tree, loader), None)
        data = None if tree is None else loader.construct_document(tree)
    except LimitError:
        raise
    except (
        yaml.YAMLError,
        ValueError,
        ArithmeticError,
        RecursionError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:300]
        raise FileFormatError(f"{path} is not YAML: {said.rstrip('.')}.") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise FileFormatError(f"{path} holds no mapping; expected keys such as name, data and base.")
    if repeated is not None:
        line = repeated.start_mark.line + 1
        raise FileFormatError(f"{path}, line {line}: {str(repeated.value)[:80]}: given twice; keep one of them.")
    model = recipe_model(data)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        place, said = model.explain(error)
        where = ".".join(map(str, place)) or "recipe"
        raise FileFormatError(f"{path}, line {_line_of(tree, place)}: {where}: {said}") from error


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Count the values of a tree; an alias counts as all that it refers to.

    Raises:
        ValueError: a value contains itself.
    """
    if node is None:
        return 0
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("a value contains itself")
        return known[id(node)]
    known[id(node)] = -1  # being counted
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = list(node.value)
    known[id(node)] = 1 + sum(_values(one, known) for one in inner)
    return known[id(node)]


def _repeated(node: yaml.Node | None, loader: "_Loader") -> Iterator[yaml.Node]:
    """Duplicate keys of mappings, also 1, 0x1, "1" and 1.0; YAML forbids them, but PyYAML would keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            own = loader.construct_object(key) if isinstance(key, yaml.ScalarNode) else str(key.value)
            if own in seen or str(own) in seen:
                yield key
            seen |= {own, str(own)}
            yield from _repeated(value, loader)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, loader)


class _Loader(yaml.SafeLoader):
    """Reads plain values by YAML 1.2: 010 is ten, 1e-3 a number, and yes, 1:30 and dates are texts (1.1 has other meanings)."""

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """The value of a whole number."""
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 0 if text[:2] in ("0x", "0o") else 10)


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _begins in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), list(_begins))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole_number)


def _line_of(node: yaml.Node | None, location: tuple[int | str, ...]) -> int:
    """Line (from 1) of the innermost key on the way to ``location`` that exists in the text."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next((pair for pair in node.value if pair[0].value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return int(line)
