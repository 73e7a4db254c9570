from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import FileFormatError, InputError, LimitError
from prunekit.limits import LIMITS, VARIABLE, check_limit, limit, raise_limit


@pytest.fixture(autouse=True)
def no_raised_limits(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize("name", sorted(LIMITS))
def test_the_default_is_accepted_and_one_more_is_refused_by_name(name):
    check_limit(name, LIMITS[name].default, "the file")
    with pytest.raises(LimitError, match=name) as caught:
        check_limit(name, LIMITS[name].default + 1, "the file")
    assert caught.value.limit == name
    assert isinstance(caught.value, FileFormatError)


@given(value=st.integers(1, 10**17))
def test_a_raised_limit_is_in_force_and_leaves_the_others(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "json-values=7")
        raise_limit("json-bytes", value)
        assert (limit("json-bytes"), limit("json-values")) == (value, 7)


@pytest.mark.parametrize(
    "text", ["nonsense=3", "json-bytes", "json-bytes=", "json-bytes=-1", "json-bytes=0", "json-bytes=1e9"]
)
def test_a_limit_that_cannot_be_is_refused(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InputError, match="limit"):
        limit("json-bytes")


def test_the_documentation_lists_every_limit_with_its_default():
    text = (Path(__file__).parents[1] / "docs" / "reading.md").read_text()
    for name, bound in LIMITS.items():
        assert f"| `{name}` | {bound.default:,} {bound.unit} | {bound.applies_to} |" in text
