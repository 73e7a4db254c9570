"""Which files of a folder are pictures, and which of its folders are splits: the rules of torchvision and of Hugging Face.

As in torchvision's ``ImageFolder``, links to folders are followed, and these suffixes are read together, in any case: png, jpg,
jpeg, webp, bmp, tif, tiff, ppm, pgm. As in Hugging Face's ``imagefolder``, names that begin with ``.`` or ``__`` are hidden, and
folders called ``train``, ``validation`` and ``test`` (and their usual other names) are splits.
"""

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from prunekit.errors import FileFormatError, InputError, MissingFileError

__all__ = ["PICTURES", "SPLITS", "PictureFolder", "find_pictures", "is_hidden", "several", "split_name"]

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Suffixes that are read, in lower case."""
_NOT_READ = frozenset({".gif", ".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".ico", ".exr", ".hdr"})
_KINDS_READ = ".png, .jpg, .webp, .bmp, .tif or .ppm"

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Names of each split's folder, in lower case."""
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


@dataclass
class PictureFolder:
    """The pictures of a folder, at any depth.

    Args:
        root: the folder.
        files: its pictures, sorted.
        hidden: number of pictures that are hidden, or are in a hidden folder.
        others: number of pictures of kinds that are not read, by suffix.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    hidden: int = 0
    others: Counter[str] = field(default_factory=Counter)

    def splits(self) -> dict[str, list[Path]]:
        """The pictures of each split; empty if the folder has no splits.

        Raises:
            InputError: folders of splits and other folders are next to each other, or there is no split to train on.
        """
        tops: dict[str, list[Path]] = {}
        for file in self.files:
            parts = file.relative_to(self.root).parts
            if len(parts) > 1:
                tops.setdefault(parts[0], []).append(file)
        names = {top: split for top in tops if (split := split_name(top)) is not None}
        if not names:
            return {}
        classes = sorted(set(tops) - set(names))
        if classes:
            split = sorted(names)[0]
            raise InputError(
                f"{self.root} has {split}/, the name of a split, next to {classes[0]}/; expected folders of splits or of classes "
                f"alone: give one of them ({self.root / split}), or rename it."
            )
        if len(set(names.values())) < len(names):
            raise InputError(
                f"{self.root} has two folders for one split among {', '.join(sorted(names))}; give one of them."
            )
        if "train" not in names.values():
            raise InputError(
                f"{self.root} has the split{'s' * (len(names) > 1)} {', '.join(sorted(names))} and no train/; name the one to use, "
                f"such as {self.root / sorted(names)[0]}."
            )
        return {split: tops[top] for top, split in names.items()}

    def skipped(self, passed_over: int = 0) -> str:
        """What was skipped, in words; empty if nothing was.

        Args:
            passed_over: number of pictures that belong to no split.
        """
        parts = [f"{self.hidden:,} hidden"] if self.hidden else []
        parts += [f"{count:,} {suffix}" for suffix, count in sorted(self.others.items())]
        parts += [f"{passed_over:,} outside the splits"] if passed_over else []
        return ", ".join(parts)


def split_name(name: str) -> str | None:
    """``train``, ``validation`` or ``test`` for a folder that is called so or by another usual name; None for any other."""
    return _SPLIT_OF.get(name.lower())


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden: ``.ipynb_checkpoints``, ``._x.png``, ``__MACOSX``."""
    return name.startswith((".", "__"))


def find_pictures(folder: Path) -> PictureFolder:
    """All pictures of a folder at any depth, behind links too.

    Raises:
        MissingFileError: there is none.
        FileFormatError: a picture is a link to nothing or to itself, or links go round in a circle.
    """
    found = PictureFolder(folder)
    _walk(folder, found, ())
    found.files.sort()
    if not found.files:
        skipped = found.skipped()
        rest = f" (skipped: {skipped})" if skipped else ""
        raise MissingFileError(f"{folder} has no {_KINDS_READ} pictures{rest}; expected at least two.")
    return found


def _walk(folder: Path, found: PictureFolder, above: tuple[tuple[int, int], ...]) -> None:
    status = os.stat(folder)
    own = (status.st_dev, status.st_ino)
    if own in above:
        raise FileFormatError(f"{folder} is a link to a folder that it is in; remove the link.")
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        file = folder / entry.name
        if is_hidden(entry.name):
            found.hidden += _hidden_pictures(file)
        elif _holds(entry.is_dir):
            _walk(file, found, (*above, own))
        else:
            _note(file, _holds(entry.is_file), found)


def _holds(is_kind: Callable[[], bool]) -> bool:
    """Whether a folder's entry is of a kind, itself or as a link; a link round in a circle is of none, as one to nothing."""
    try:
        return is_kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _hidden_pictures(path: Path) -> int:
    """Number of pictures behind a hidden name."""
    files = [path] if not path.is_dir() else (Path(name) for _, _, names in os.walk(path) for name in names)
    return sum(file.suffix.lower() in PICTURES for file in files)


def _note(file: Path, is_file: bool, found: PictureFolder) -> None:
    suffix = file.suffix.lower()
    if suffix in _NOT_READ:
        found.others[suffix] += 1
    elif suffix in PICTURES and is_file:
        found.files.append(file)
    elif suffix in PICTURES and file.is_symlink():
        raise FileFormatError(f"{file} is a link to nothing or to itself; mend or remove it.")


def several(files: Iterable[object], most: int = 3) -> str:
    """The first few names of files, and how many others there are."""
    names = [str(file) for file in files]
    rest = f" and {len(names) - most:,} others" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"
