import hashlib
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit._files import (
    atomic_folder,
    atomic_path,
    canonical_json,
    json_hash,
    sha256_file,
    write_json,
)
from prunekit._json import read_json
from prunekit._kinds import FolderKind, has_format
from prunekit.errors import FileFormatError, InputError, MissingFileError

KIND = FolderKind("test", ("old.txt", "new.txt", "part-*.bin"), marker="mark.json", is_ours=has_format("test/1"))
MARK = '{"format": "test/1"}'


def earlier(folder, **files):
    """An earlier output of the kind."""
    folder.mkdir(parents=True)
    (folder / "mark.json").write_text(MARK)
    for name, text in files.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**63, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_makes_missing_folders_and_leaves_only_the_file(tmp_path):
    target = tmp_path / "a" / "b" / "x.txt"
    with atomic_path(target) as part:
        part.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert names_in(target.parent) == ["x.txt"]


def test_atomic_path_leaves_the_old_file_and_nothing_else_when_the_block_raises(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")

    def interrupted():
        with atomic_path(target) as part:
            part.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_in(tmp_path) == ["x.txt"]
    assert target.read_text() == "old"


def test_atomic_path_leaves_nothing_when_the_block_writes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "x.txt"):
        pass
    assert names_in(tmp_path) == []


def test_atomic_path_refuses_a_folder_before_the_block_runs(tmp_path):
    with pytest.raises(InputError, match="is a folder; expected the name of a file"), atomic_path(tmp_path):
        pytest.fail("the block ran")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_a_file_in_the_way_of_the_parent_folder_is_one_sentence(tmp_path, writer):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot be written"), writer(tmp_path / "file" / "x"):
        pytest.fail("the block ran")


def test_atomic_folder_replaces_as_a_whole(tmp_path):
    target = earlier(tmp_path / "run", old="old")
    with atomic_folder(target, KIND) as part:
        (part / "new.txt").write_text("new")
        assert names_in(target) == ["mark.json", "old.txt"]
    assert names_in(target) == ["new.txt"]
    assert names_in(tmp_path) == ["run"]


def test_atomic_folder_keeps_the_old_one_when_the_block_raises(tmp_path):
    target = earlier(tmp_path / "run", old="old")

    def failing():
        with atomic_folder(target, KIND) as part:
            (part / "new.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert names_in(tmp_path) == ["run"]
    assert names_in(target) == ["mark.json", "old.txt"]


def test_atomic_folder_keeps_the_old_one_when_the_replacement_itself_fails(tmp_path):
    target = earlier(tmp_path / "run", old="old")
    with pytest.raises(FileNotFoundError), atomic_folder(target, KIND) as part:
        part.rmdir()  # nothing to put in the old one's place
    assert names_in(tmp_path) == ["run"]
    assert names_in(target) == ["mark.json", "old.txt"]


def test_atomic_folder_does_not_turn_a_users_file_into_a_folder(tmp_path):
    target = tmp_path / "notes"
    target.write_text("mine")
    with pytest.raises(InputError, match="it is a file; expected a new name"), atomic_folder(target):
        pytest.fail("the block ran")
    assert target.read_text() == "mine"
    assert names_in(tmp_path) == ["notes"]


@given(data=st.dictionaries(st.text(), VALUES, max_size=4))
@settings(max_examples=40, deadline=None)
def test_json_comes_back_equal(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    write_json(path, data)
    assert read_json(path) == data


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_no_word_for_are_refused_both_ways(tmp_path, value):
    path = tmp_path / "x.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": [value]})
    assert names_in(tmp_path) == []
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(value)
    path.write_text(json.dumps({"a": value}))
    with pytest.raises(FileFormatError, match="is no JSON number"):
        read_json(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"a": 1,}', b"\xff\xfe{}", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "truncated", "trailing comma", "not UTF-8", "nested too deep", "too many digits"],
)
def test_broken_json_is_refused_with_its_name(tmp_path, content):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"broken\.json is not readable JSON"):
        read_json(path)


def test_json_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1]")
    with pytest.raises(FileFormatError, match="holds a list of 1; expected an object"):
        read_json(path)
    write_json(path, {"format": "other/2"})
    with pytest.raises(FileFormatError, match="has format 'other/2'; expected 'mine/1'"):
        read_json(path, "mine/1")
    assert read_json(path, "other/2") == {"format": "other/2"}
    for missing, said in ((tmp_path / "none.json", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(MissingFileError, match=said):
            read_json(missing)


@given(data=st.dictionaries(st.text(), VALUES, min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_equal_data_has_one_canonical_text(data):
    backwards = dict(reversed(data.items()))
    assert canonical_json(backwards) == canonical_json(data)
    assert json_hash(backwards) == json_hash(data) == hashlib.sha256(canonical_json(data).encode()).hexdigest()
    assert json_hash({**data, "one more": 1}) != json_hash(data)


def test_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
