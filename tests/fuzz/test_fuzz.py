"""Damaged files of every kind: each is read, or refused in one sentence, in little time and memory."""

import random
import time
import tracemalloc
import warnings
import zlib

import pytest
from readers import damaged, readers

from prunekit.errors import PrunekitError

READERS = {reader.name: reader for reader in readers()}
SECONDS, BYTES = 10.0, 300 * 2**20


def attempt(reader, content, folder):
    """Read a file of this content; what went wrong beyond a refusal in one sentence, or None."""
    folder.mkdir()
    path = folder / reader.name
    path.write_bytes(content)
    began = time.monotonic()
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except PrunekitError as error:
        if "\n" in str(error) or len(str(error)) > 1000:
            return f"no single sentence: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    if peak > BYTES or time.monotonic() - began > SECONDS:
        return f"{peak:,} bytes, {time.monotonic() - began:.1f} s"
    return None


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_file_is_read(tmp_path, name):
    assert attempt(READERS[name], READERS[name].valid, tmp_path / "valid") is None
    assert READERS[name].read is not None


def failures(name, count, seed, tmp_path):
    chance = random.Random(zlib.crc32(name.encode()) + seed)  # noqa: S311 - damage, not secrets
    found = []
    for index in range(count):
        content = damaged(READERS[name].valid, chance)
        wrong = attempt(READERS[name], content, tmp_path / str(index))
        if wrong is not None:
            found.append(f"{name} {seed}/{index}: {wrong}")
    return found


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path, name):
    assert failures(name, 12, 0, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_refused_in_one_sentence(tmp_path, name):
    """160 of each of 25 kinds: 4,000."""
    assert failures(name, 160, 1, tmp_path) == []
