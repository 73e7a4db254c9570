"""A recipe's endpoints: none is reached, and no variable is read, until its user has confirmed both."""

import copy
import pickle

import pytest
import yaml
from loopback import loopback, says

from prunekit.errors import FileFormatError, InputError
from prunekit.recipe import PruneOptions, Recipe, load_recipe
from prunekit.search import Endpoint, SearchOptions, UnconfirmedEndpoint

SECRET = "wJalrXUtnFEMI"  # noqa: S105 - a test's
STOLEN = "AWS_SECRET_ACCESS_KEY"
QUESTION = [{"role": "user", "content": "hello"}]
LLM = {"url": "http://llm.example/v1", "model": "m", "key_variable": "LLM_KEY"}
CONFIRMED = (LLM["url"], LLM["key_variable"])
MODEL = {"class": "UNet2DModel", "config": {"in_channels": 1}}


def data_of(**llm):
    return {
        "name": "asks",
        "base": {"checkpoint": "embedded:digits"},
        "prune": {"search": {"proposer": "llm", "llm": {**LLM, **llm}}},
    }


@pytest.fixture
def loaded(tmp_path):
    """A recipe as a user gets it: from a file."""

    def load(data):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data))
        return load_recipe(tmp_path / "recipe.yaml")

    return load


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv(STOLEN, SECRET)
    with loopback() as endpoint:
        endpoint.script = [says("hello")]
        yield endpoint


def evidence(entries):
    """A recipe that compares, whose own prune section asks for nothing."""
    return {
        "name": "compares",
        "base": {"model": MODEL},
        "groups": {"count": 2},
        "allocation": {"budget": 0.8},
        "prune": {"samples": 4},
        "finetune": {},
        "evaluation": {},
        "evidence": {"entries": entries, "headline": next(iter(entries))},
    }


def test_a_recipe_sends_nothing_before_it_is_confirmed_and_the_key_afterwards(loaded, server):
    recipe = loaded(data_of(url=server.url, key_variable=STOLEN))
    endpoint = recipe.prune.search.llm
    with pytest.raises(InputError, match=r"nobody has confirmed it; confirm it by `llm_endpoint`"):
        endpoint.complete(QUESTION)
    with pytest.raises(InputError, match="nobody has confirmed it"):
        endpoint.key()
    assert server.asked == server.headers == []

    trusted = recipe.confirming((server.url, STOLEN)).prune.search.llm
    assert trusted.complete(QUESTION) == "hello"
    assert server.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert isinstance(recipe.prune.search.llm, UnconfirmedEndpoint)  # the recipe itself is as it was


def test_what_is_asked_for_is_shown_with_the_options_to_type(loaded):
    recipe = loaded(data_of())
    assert recipe.unconfirmed == (CONFIRMED,)
    with pytest.raises(InputError) as caught:
        recipe.check_confirmed()
    said = str(caught.value)
    assert "language model at http://llm.example/v1 with the API key in the environment variable LLM_KEY;" in said
    assert "--llm-endpoint http://llm.example/v1 --llm-key-variable LLM_KEY" in said
    assert "\n" not in said
    recipe.confirming(CONFIRMED).check_confirmed()


def test_an_address_that_a_shell_would_run_is_shown_quoted(loaded):
    recipe = loaded(data_of(url="http://h/v1;$(touch$IFS'x')&", key_variable=None))
    with pytest.raises(InputError, match="without an API key") as caught:
        recipe.check_confirmed()
    assert """--llm-endpoint 'http://h/v1;$(touch$IFS'"'"'x'"'"')&'""" in str(caught.value)
    assert "--llm-key-variable" not in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        ("http://llm.example/v2", "LLM_KEY"),
        ("http://llm.example/v1/", "LLM_KEY"),
        ("https://llm.example/v1", "LLM_KEY"),
        ("http://llm.example/v1", "OTHER_KEY"),
        ("http://llm.example/v1", "llm_key"),
        ("http://llm.example/v1", None),
    ],
)
def test_both_must_match_exactly(loaded, other):
    with pytest.raises(InputError, match=r"asks for --llm-endpoint http://llm\.example/v1 --llm-key-variable LLM_KEY;"):
        loaded(data_of()).confirming(other)
    changed = data_of(url=other[0], key_variable=other[1])
    with pytest.raises(InputError, match="expected exactly what the recipe says"):
        loaded(changed).confirming(CONFIRMED)


def test_a_confirmation_of_what_no_recipe_asks_for_is_refused(loaded):
    recipe = loaded({"name": "plain", "base": {"checkpoint": "embedded:digits"}})
    recipe.check_confirmed()
    with pytest.raises(InputError, match="asks for no endpoint"):
        recipe.confirming(CONFIRMED)


def test_every_entry_of_a_comparison_counts(loaded):
    changes = {"prune": {"search": {"proposer": "llm", "llm": LLM}}}
    other = copy.deepcopy(changes)
    other["prune"]["search"]["llm"] |= {"url": "http://other.example/v1", "key_variable": None}
    recipe = loaded(evidence({"plain": {}, "asks": {"changes": changes}, "asks another": {"changes": other}}))
    assert recipe.unconfirmed == (CONFIRMED, ("http://other.example/v1", None))

    half = recipe.confirming(CONFIRMED)
    with pytest.raises(InputError) as caught:
        half.check_confirmed()
    options = "--llm-endpoint http://llm.example/v1 --llm-key-variable LLM_KEY"
    assert f"{options} --llm-endpoint http://other.example/v1 --llm-key-variable -" in str(caught.value)
    assert type(half.entry("asks").prune.search.llm) is Endpoint
    assert type(half.entry("asks another").prune.search.llm) is UnconfirmedEndpoint
    worker = pickle.loads(pickle.dumps(half))  # noqa: S301 - as a worker gets it
    assert type(worker.entry("asks").prune.search.llm) is Endpoint
    assert worker.unconfirmed == half.unconfirmed
    half.confirming(("http://other.example/v1", None)).check_confirmed()


def test_a_confirmation_goes_with_the_recipe_and_not_with_its_text(loaded):
    recipe = loaded(data_of()).confirming(CONFIRMED)
    assert type(pickle.loads(pickle.dumps(recipe)).prune.search.llm) is Endpoint  # noqa: S301 - as a worker gets it
    assert recipe.with_base("other.pt").unconfirmed == ()
    assert recipe.model_copy(update={"finetune": None}).unconfirmed == ()
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    assert again.unconfirmed == (CONFIRMED,)
    pickled = pickle.loads(pickle.dumps(loaded(data_of())))  # noqa: S301 - as a worker gets it
    assert pickled.unconfirmed == (CONFIRMED,)


@pytest.mark.parametrize("key", ["_confirmed", "confirmed", "unconfirmed"])
def test_a_recipe_cannot_confirm_itself(loaded, key):
    with pytest.raises(FileFormatError, match=rf"{key}: "):
        loaded({**data_of(), key: [list(CONFIRMED)]})
    with pytest.raises(FileFormatError, match=rf"prune\.search\.llm\.{key}: "):
        loaded(data_of(**{key: True}))


def test_an_endpoint_that_is_made_in_python_is_the_callers_own():
    own = PruneOptions(search=SearchOptions(proposer="llm", llm=Endpoint(*CONFIRMED)))
    recipe = Recipe.model_validate({"name": "own", "base": {"checkpoint": "embedded:digits"}, "prune": own})
    recipe.check_confirmed()


@pytest.mark.parametrize(
    "name",
    ["", "A B", "A=B", "1A", "A\x1b[2K", "A\nB", "A\u202eB", "A\0", "K\u212a", "$(id)", "A" * 300],
)
def test_a_variables_name_shows_what_it_is(name):
    with pytest.raises(InputError, match="expected the name of an environment variable") as caught:
        Endpoint(LLM["url"], "m", name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "http://h/v1\x1b[2K",
        "http://h/\r\nHost: other",
        "http://h\\@other/v1",
        "http://h/<script>",
        "http://h/`id`",
        'http://h/"',
        "http://h/{a}|b^",
        "http://user:key@h/v1",
        "http://h/v1?key=1",
        "http://h/v1#a",
        "http://\u0430pple.example/v1",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "//h/v1",
        "http:///v1",
        "http://h/" + "a" * 3000,
    ],
)
def test_an_address_shows_what_it_is(url):
    with pytest.raises(InputError, match="no plain http or https URL"):
        Endpoint(url, "m")
