import json
import tracemalloc

import pytest

from prunekit._json import parse_json, read_json
from prunekit.errors import FileFormatError, LimitError, MissingFileError
from prunekit.limits import LIMITS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1, "b": 2, "a": 3}', "occurs twice"),
        ('{"a": 1e999}', "too large"),
        ('{"a": NaN}', "NaN"),
        ('{"a": 9223372036854775808}', "too large"),
        ('{"a": ' + "9" * 5000 + "}", "too large"),
        ('{"a": "\\ud800"}', "not readable JSON"),
        ('{"\\udfff": 1}', "not readable JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("", "not readable JSON"),
        ('{"a": 1', "not readable JSON"),
    ],
)
def test_what_is_no_strict_json_is_refused_in_one_sentence(text, said):
    with pytest.raises(FileFormatError, match=said) as caught:
        parse_json(text.encode(), "x.json")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_large_and_negative_integers_and_escaped_texts_are_read_exactly():
    assert parse_json(b'{"a": -9223372036854775807, "b": "\\ud83d\\ude00"}', "x") == {
        "a": -(2**63) + 1,
        "b": "\U0001f600",
    }


def test_a_list_is_no_object_and_a_folder_is_no_file(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(FileFormatError, match="expected an object"):
        read_json(tmp_path / "list.json")
    with pytest.raises(MissingFileError):
        read_json(tmp_path)


def test_too_many_values_are_refused_before_they_take_memory():
    content = b"[" + b"[]," * (LIMITS["json-values"].default // 2 + 1) + b"[]]"
    tracemalloc.start()
    try:
        with pytest.raises(LimitError, match="json-values"):
            parse_json(content, "x.json")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_large_file_is_refused_by_its_size(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEKIT_LIMITS", "json-bytes=10")
    (tmp_path / "x.json").write_text(json.dumps({"a": "long enough"}))
    with pytest.raises(LimitError, match="json-bytes"):
        read_json(tmp_path / "x.json")
