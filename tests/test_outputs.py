"""Outputs replace an earlier output of the same kind and nothing else; a kill at any moment loses neither the old nor the new."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from things import THING, write

from prunekit import _leftovers
from prunekit._files import atomic_folder, atomic_path, check_file, check_folder, write_json
from prunekit._kinds import PICTURE
from prunekit._leftovers import part_of, restore, restore_within, sweep
from prunekit.errors import InputError


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else "folder" for path in folder.rglob("*")
    }


names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=12
)
paths = st.lists(names.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map(
    lambda parts: Path(*parts)
)


@given(foreign=st.sets(paths, min_size=1, max_size=4), before=st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_file_of_a_user_survives_any_replacement(tmp_path_factory, foreign, before):
    """In a folder of the user's, and in one that prunekit wrote earlier."""
    target = tmp_path_factory.mktemp("any") / "target"
    if before:
        write(target, "old")
    own = set(content(target)) if before else set()
    placed = set()
    for path in foreign:
        if str(path) in own:
            continue
        try:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            with (target / path).open("x") as file:
                file.write("mine")
        except OSError:  # a name that is too long here, or that another of the set has as a folder
            continue
        placed.add(path)
    if not placed:
        return
    found = content(target)
    with pytest.raises(InputError, match=r"no earlier thing|not part of it"):
        write(target)
    assert content(target) == found
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_an_earlier_output_is_replaced_and_the_sentence_names_what_is_not_part_of_it(tmp_path):
    write(tmp_path / "made", "old")
    write(tmp_path / "made")
    assert (tmp_path / "made" / "part-0" / "weights.bin").read_bytes() == b"new"
    (tmp_path / "made" / "part-0" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds an earlier thing and also part-0/notes\.txt"):
        write(tmp_path / "made")
    (tmp_path / "made" / "part-0" / "notes.txt").unlink()
    (tmp_path / "made" / "part-1").mkdir()  # empty folders of a part's name hold nothing to lose
    write(tmp_path / "made")


def test_a_user_who_adds_a_file_during_the_work_keeps_it(tmp_path):
    target = tmp_path / "made"
    write(target, "old")

    def meanwhile():
        with atomic_folder(target, THING) as part:
            write_json(part / "thing.json", {"format": "thing/1"})
            (target / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"notes\.txt"):
        meanwhile()
    assert (target / "notes.txt").read_text() == "mine"
    assert (target / "README.md").read_text() == "old"


@pytest.mark.parametrize("mark", ["{", "[]", '{"format": "other/1"}', "[" * 100_000, '{"format": ["thing/1"]}'])
def test_a_folder_with_another_marker_is_not_ours(tmp_path, mark):
    target = tmp_path / "made"
    target.mkdir()
    (target / "thing.json").write_text(mark)
    with pytest.raises(InputError, match=r"holds no earlier thing"):
        write(target)
    assert (target / "thing.json").read_text() == mark


# links, devices and folders that must stay


def test_a_link_to_a_folder_stays_and_its_folder_is_replaced(tmp_path):
    write(tmp_path / "disk" / "made", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "made")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "made" / "README.md").read_text() == "new"
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["made"]


def test_a_link_to_a_file_stays_and_its_file_is_replaced_with_its_permissions(tmp_path):
    real = tmp_path / "real.json"
    real.write_text("{}")
    real.chmod(0o600)
    (tmp_path / "link.json").symlink_to("real.json")
    write_json(tmp_path / "link.json", {"a": 1})
    assert (tmp_path / "link.json").is_symlink()
    assert '"a": 1' in real.read_text()
    assert real.stat().st_mode & 0o777 == 0o600


def test_links_inside_an_earlier_output_are_the_users(tmp_path):
    write(tmp_path / "made", "old")
    (tmp_path / "made" / "README.md").rename(tmp_path / "mine.md")
    (tmp_path / "made" / "README.md").symlink_to(tmp_path / "mine.md")
    with pytest.raises(InputError, match=r"README\.md, which is not part of it"):
        write(tmp_path / "made")


def test_places_that_cannot_be_an_output_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "to-file").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for place in ("nowhere", "pipe", "/dev/null", "."):
        with pytest.raises(InputError, match=r"symbolic link to|device or a pipe|is a folder"):
            check_file(tmp_path / place)
    for place in ("nowhere", "file", "to-file", "pipe", "file/x"):
        with pytest.raises(InputError, match=r"symbolic link to|it is a file|is no folder"):
            check_folder(tmp_path / place, THING)
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for empty in (".", "..", tmp_path / "home"):
        with pytest.raises(InputError, match=r"runs in, or one above|home folder|no earlier thing"):
            check_folder(Path(empty), THING)
    for place in ("/", "/proc"):
        with pytest.raises(InputError):
            check_folder(Path(place), THING)
    assert (tmp_path / "file").read_text() == "mine"


# kills


def killed_at(step: int, target: Path) -> None:
    """Replace a folder in a process that is killed right before its nth rename."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from things import write
count, rename = 0, Path.rename
def counted(self, to):
    global count
    if count == {step} and "part-0" not in str(self):
        os.kill(os.getpid(), signal.SIGKILL)
    count += "part-0" not in str(self)
    return rename(self, to)
Path.rename = counted
write(Path({str(target)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)  # noqa: S603 - the script above
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_kill_between_renames_is_mended_by_a_reader_and_by_a_writer(tmp_path, step):
    target = tmp_path / "made"
    write(target, "old")
    killed_at(step, target)
    assert target.exists() == (step != 1)
    restore_within(tmp_path)
    assert (target / "README.md").read_text() == ("new" if step == 2 else "old")
    write(target, "newest")
    assert (target / "part-0" / "weights.bin").read_bytes() == b"newest"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_writer_after_a_kill_starts_from_the_old_folder(tmp_path):
    target = tmp_path / "made"
    write(target, "old")
    killed_at(1, target)
    with pytest.raises(RuntimeError), atomic_folder(target, THING):
        raise RuntimeError
    assert (target / "README.md").read_text() == "old"


def test_nothing_is_put_back_over_what_is_there(tmp_path):
    write(tmp_path / "made", "new")
    write(tmp_path / "other", "old")
    (tmp_path / "other").rename(tmp_path / ".made.old.part")
    restore(tmp_path / "made")
    assert (tmp_path / "made" / "README.md").read_text() == "new"
    restore(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_two_processes_that_replace_one_folder_leave_one_whole_folder(tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from things import write
for i in range(25):
    write(Path({str(tmp_path / "made")!r}), sys.argv[1])
"""
    running = [subprocess.Popen([sys.executable, "-c", script, name]) for name in ("one", "two")]  # noqa: S603
    assert [process.wait() for process in running] == [0, 0]
    assert (tmp_path / "made" / "README.md").read_bytes() == (tmp_path / "made" / "part-0" / "weights.bin").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_leftovers_of_dead_processes_are_removed_and_those_of_others_are_not(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    alive = part_of(tmp_path / "x.json")
    dead = tmp_path / alive.name.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    elsewhere = tmp_path / re.sub(r"\.[0-9a-f]{8}-", ".00000000-", dead.name)
    mine = [".x.json.part", "x.part", ".x.7.part", f"{dead.name}.bak"]
    for path in (alive, dead, elsewhere, *(tmp_path / name for name in mine)):
        path.write_text("half")
    folder = dead.with_name(dead.name.replace("x.json", "made"))
    folder.mkdir()
    (folder / "weights").write_text("half")
    write_json(tmp_path / "y.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, elsewhere.name, *mine, "y.json"}
    monkeypatch.setattr(_leftovers, "_is_alive", lambda _: False)
    sweep(tmp_path)
    assert not alive.exists()


# full disks and syncing


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    mounted = subprocess.run(command, check=False, capture_output=True)  # noqa: S603
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # noqa: S603, S607


def test_a_full_disk_leaves_the_old_output_whole_and_names_the_output(small_disk):
    write(small_disk / "made", "old")
    write_json(small_disk / "x.json", {})
    before = content(small_disk)
    for writer, name in ((write, "made"), (lambda path, text: write_json(path, {"a": text}), "x.json")):
        with pytest.raises(OSError, match="No space left") as caught:
            writer(small_disk / name, "new" * 200_000)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(small_disk / name)
        assert content(small_disk) == before


def test_a_mounted_disk_itself_is_not_an_output(small_disk):
    with pytest.raises(InputError, match=r"mounted disk"):
        check_folder(small_disk, THING)


def test_what_libraries_say_of_the_disk_in_their_own_words_is_a_system_error(tmp_path):
    from safetensors.torch import save_file
    from torch import zeros

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        with pytest.raises(OSError) as caught, atomic_folder(tmp_path / "made") as part:  # noqa: PT011 - see below
            save_file({"a": zeros(10_000)}, part / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "made"))
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "new" / "x"):
        raise ZeroDivisionError
    with pytest.raises(OSError, match=r"of a network") as caught, atomic_path(tmp_path / "new" / "x"):
        raise OSError(errno.ECONNRESET, "of a network")
    assert caught.value.filename is None
    assert list(tmp_path.iterdir()) == []


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    write(tmp_path / "new" / "made")
    ends = [name.removeprefix(str(tmp_path)) for name in synced]
    assert ends[-1] == "/new"
    assert ends[0] == ""  # the folder that "new" was made in
    last = [re.sub(r"\.made\.[^/]*\.part", "made", name) for name in ends]
    for name in (
        "/new/made",
        "/new/made/part-0",
        "/new/made/part-0/weights.bin",
        "/new/made/README.md",
        "/new/made/thing.json",
    ):
        assert name in last


def test_pictures_of_others_are_told_from_those_of_prunekit(tmp_path):
    from PIL import Image

    Image.new("L", (4, 4)).save(tmp_path / "mine.png")
    assert not PICTURE.recognises(tmp_path / "mine.png")
    assert not PICTURE.recognises(tmp_path / "absent.png")
