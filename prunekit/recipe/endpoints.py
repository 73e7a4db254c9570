"""Endpoints that a recipe asks for. None is contacted until the user of the recipe has confirmed it."""

import shlex
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

from prunekit.errors import InputError
from prunekit.recipe.planning_sections import PruneOptions
from prunekit.search import UnconfirmedEndpoint

__all__ = ["Confirmation", "asked_for", "check_confirmed", "confirmed", "typed_options"]

Confirmation = tuple[str, str | None]
"""An endpoint's URL and the environment variable that holds its key, None for no key."""


def asked_for(sections: Iterable[PruneOptions | None]) -> Iterator[Confirmation]:
    """The endpoints in prune sections that nobody has confirmed."""
    for section in sections:
        if section is not None and isinstance(section.search.llm, UnconfirmedEndpoint):
            yield section.search.llm.url, section.search.llm.key_variable


def confirmed(section: PruneOptions | None, known: Collection[Confirmation]) -> PruneOptions | None:
    """The section, allowed to use its endpoint if the endpoint's URL and key variable are among those confirmed."""
    if section is None or not isinstance(section.search.llm, UnconfirmedEndpoint):
        return section
    endpoint = section.search.llm
    if (endpoint.url, endpoint.key_variable) not in known:
        return section
    return replace(section, search=replace(section.search, llm=endpoint.confirmed()))


def check_confirmed(name: str, unconfirmed: Collection[Confirmation], known: Collection[Confirmation]) -> None:
    """Refuse a recipe that asks for endpoints which nobody has confirmed.

    Args:
        name: of the recipe.
        unconfirmed: endpoints that it asks for and that are not confirmed.
        known: endpoints that are confirmed; the message shows the options for these too, so that it can be copied as a whole.

    Raises:
        InputError: ``unconfirmed`` is not empty.
    """
    if not unconfirmed:
        return
    url, variable = next(iter(unconfirmed))
    key = "without an API key" if variable is None else f"with the API key in the environment variable {variable}"
    raise InputError(
        f"The recipe {name} asks for a language model at {url} {key}; if you trust that address with what is sent, confirm it "
        f"with {typed_options([*known, *unconfirmed])} (in Python: Recipe.confirming)."
    )


def typed_options(endpoints: Iterable[Confirmation]) -> str:
    """The options of ``prunekit run`` that confirm endpoints, quoted for a shell.

    Example:
        >>> typed_options([("http://h:8000/v1", None)])
        '--llm-endpoint http://h:8000/v1'
        >>> typed_options([("http://h:8000/v1", None), ("https://api/$v1", "KEY")])
        "--llm-endpoint http://h:8000/v1 --llm-key-variable - --llm-endpoint 'https://api/$v1' --llm-key-variable KEY"
    """
    every = list(dict.fromkeys(endpoints))
    keys = any(variable is not None for _, variable in every)
    words: list[str] = []
    for url, variable in every:
        words += ["--llm-endpoint", shlex.quote(url)]
        words += ["--llm-key-variable", shlex.quote(variable or "-")] if keys else []
    return " ".join(words)
