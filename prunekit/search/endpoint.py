"""The user's OpenAI-compatible endpoint: sends one question, gets one text. It is optional."""

import json
import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import IO, Annotated, ClassVar
from urllib.parse import urlsplit

from typing_extensions import TypedDict

from prunekit._json import Bounded, checked, parse_json
from prunekit.errors import FileFormatError, InputError

__all__ = ["Endpoint", "EndpointError", "UnconfirmedEndpoint"]

_LARGEST = 1_000_000  # bytes of an answer
_MOST_RETRIES = 100
_LONGEST_URL = 2048  # characters
_URL = re.compile(r"https?://[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+", re.ASCII)  # RFC 3986's characters and no others
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)


class _Message(TypedDict):
    content: str


class _Choice(TypedDict):
    message: _Message


class _Completion(TypedDict):
    choices: Annotated[list[_Choice], Bounded(min_length=1)]


class EndpointError(Exception):
    """The endpoint returned no usable answer. The message never quotes the server, since the server knows the key."""


@dataclass(frozen=True)
class Endpoint:
    """Address of a language model; the API key itself is never stored or logged.

    Args:
        url: URL of the API, such as ``http://127.0.0.1:8000/v1``; ``/chat/completions`` is appended.
        model: the model's name at the endpoint.
        key_variable: environment variable that holds the API key; no key is sent if missing.
        timeout: seconds that an answer may take in total, at most 86,400.
        retries: further attempts after an unusable answer, at most 100.

    Raises:
        InputError: an argument is invalid, such as a URL that contains a key, or a variable name with an illegal character.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 120.0
    retries: int = 2

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            legal = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
            legal = legal and "@" not in parts.netloc and not parts.query and not parts.fragment
            legal = legal and len(self.url) <= _LONGEST_URL and _URL.fullmatch(self.url) is not None
        except ValueError:
            legal = False
        if not legal:
            raise InputError(
                "The language model's endpoint is no plain http or https URL; expected one such as http://127.0.0.1:8000/v1, "
                "with the key in an environment variable and not in the URL."
            )
        if not self.model or not 0 < self.timeout <= 86_400 or not 0 <= self.retries <= _MOST_RETRIES:
            raise InputError(
                f"Expected a model's name, a timeout of above 0 to 86,400 seconds, and retries from 0 to {_MOST_RETRIES}."
            )
        if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
            raise InputError(
                f"Got the key variable {self.key_variable[:80]!r}; expected the name of an environment variable, made of letters, "
                "digits and underscores."
            )

    def key(self) -> str | None:
        """The API key.

        Raises:
            InputError: its variable is not set, or holds a character that an HTTP header cannot carry.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key or not key.isascii() or not key.isprintable():
            raise InputError(
                f"The environment variable {self.key_variable} holds no API key; set it, or name another one."
            )
        return key

    def complete(self, messages: Sequence[dict[str, str]]) -> str:
        """The model's answer to a conversation.

        Args:
            messages: ``{"role", "content"}`` each.

        Raises:
            EndpointError: the answer is an error, late, longer than a megabyte, or not of the expected form.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        key = self.key()
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": 0, "stream": False})
        url = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(url, body.encode(), headers)  # noqa: S310 - http and https only, see above
        return _content(_within(self.timeout, lambda: _fetch(request, self.timeout)))


@dataclass(frozen=True)
class UnconfirmedEndpoint(Endpoint):
    """An endpoint named in a file: nothing is sent to it, and its key is not read, until the user has confirmed it."""

    def confirmed(self) -> Endpoint:
        """The same endpoint, ready for use."""
        return Endpoint(**{each.name: getattr(self, each.name) for each in fields(self)})

    def key(self) -> str | None:
        """Refuses.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"The endpoint {self.url} comes from a recipe and nobody has confirmed it; confirm it by `llm_endpoint`, or in Python "
            "by Recipe.confirming."
        )

    def complete(self, messages: Sequence[dict[str, str]]) -> str:
        """Refuses.

        Raises:
            InputError: always.
        """
        self.key()
        raise AssertionError("key has refused")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Treats a redirect as an error: the question and the key are for the user's endpoint only."""

    def redirect_request(self, *_: object) -> None:
        return None


def _fetch(request: urllib.request.Request, timeout: float) -> bytes:
    opener = urllib.request.build_opener(_NoRedirect)
    answer: IO[bytes]
    with opener.open(request, timeout=timeout) as answer:
        return answer.read(_LARGEST + 1)


def _within(seconds: float, fetch: Callable[[], bytes]) -> bytes:
    """Run ``fetch`` with a time limit on the whole answer; a socket's own timeout applies to each piece only."""
    result: Future[bytes] = Future()

    def run() -> None:
        try:
            result.set_result(fetch())
        except BaseException as error:  # raised again in the waiting thread
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(seconds)
    except urllib.error.HTTPError as error:
        raise EndpointError(f"the endpoint answered with HTTP status {error.code}") from None
    except TimeoutError:
        raise EndpointError(f"no whole answer came within {seconds:g} s") from None
    except Exception as error:  # a broken server can cause any error
        raise EndpointError(f"the endpoint could not be asked ({type(error).__name__})") from None


def _content(body: bytes) -> str:
    """The text in a chat completion."""
    if len(body) > _LARGEST:
        raise EndpointError("the answer was longer than a megabyte")
    try:
        return checked(_Completion, parse_json(body, "the answer"), "the answer")["choices"][0]["message"]["content"]
    except FileFormatError:  # its message quotes the answer
        raise EndpointError("the answer was no chat completion") from None
