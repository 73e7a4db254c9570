"""A kind of output folder with a part of another kind in it, written as slim models and experts are."""

from prunekit._files import atomic_folder, write_json
from prunekit._kinds import FolderKind, has_format

PART = FolderKind("part", ("weights.bin",), marker="part.json", is_ours=has_format("part/1"))
THING = FolderKind("thing", ("README.md",), {"part-[0-9]": PART}, marker="thing.json", is_ours=has_format("thing/1"))


def write(folder, text="new"):
    """What a command of this kind does."""
    with atomic_folder(folder, THING) as made:
        write_json(made / "thing.json", {"format": "thing/1"})
        (made / "README.md").write_text(text)
        with atomic_folder(made / "part-0", PART) as part:
            write_json(part / "part.json", {"format": "part/1"})
            (part / "weights.bin").write_bytes(text.encode())
