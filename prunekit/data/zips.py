"""Zip archives of pictures: unpacked into a temporary folder, and read by the rules of folders."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prunekit._containers import open_archive
from prunekit._messages import one_line
from prunekit.data.picture_folders import PICTURES, is_hidden, split_name
from prunekit.errors import FileFormatError, InputError, LimitError, MissingFileError, PrunekitError
from prunekit.limits import check_unpacked

__all__ = ["unpacked"]

_METADATA = ("metadata.jsonl", "metadata.csv")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A temporary folder with the pictures and the metadata of an archive; hidden files stay packed.

    If everything is in one folder with folders in it, as in an archive of a folder, it is that one.

    Raises:
        FileFormatError: it is broken.
        LimitError: it is beyond the limits ``unpacked-bytes`` or ``unpacked-ratio``.
        MissingFileError: it has no pictures.
    """
    with tempfile.TemporaryDirectory(prefix="prunekit-") as place:
        folder = Path(place)
        with open_archive(path) as archive:
            outside = next((each.filename for each in archive.infolist() if ".." in Path(each.filename).parts), None)
            if outside is not None:
                raise FileFormatError(
                    f"{path} has {outside[:100]!r}, a place outside of the archive; pack the folder again."
                )
            members = [each for each in archive.infolist() if not each.is_dir() and _is_wanted(Path(each.filename))]
            if not any(Path(each.filename).suffix.lower() in PICTURES for each in members):
                raise MissingFileError(f"{path} has no pictures; expected .png, .jpg or other picture files in it.")
            check_unpacked(
                sum(each.compress_size for each in members), sum(each.file_size for each in members), str(path)
            )
            try:
                made = Counter(archive.extract(member, folder) for member in members)
            except PrunekitError:
                raise
            except Exception as error:  # a damaged archive makes zipfile raise errors of many kinds
                raise FileFormatError(f"{path} is no readable archive ({one_line(error)}); copy it again.") from error
        twice = next((place for place, times in made.items() if times > 1), None)
        if twice is not None:
            raise FileFormatError(
                f"{path} has {Path(twice).name} twice at one place; expected a name for each picture."
            )
        inner = _inner(folder)
        try:
            yield inner
        except (FileFormatError, InputError, MissingFileError) as error:  # the user knows the archive, not the folder
            if isinstance(error, LimitError):
                raise
            raise type(error)(str(error).replace(str(inner), str(path))) from error


def _inner(folder: Path) -> Path:
    """The only folder in a folder if it has folders or metadata in it, and is no split; otherwise the folder itself."""
    tops = list(folder.iterdir())
    if len(tops) != 1 or not tops[0].is_dir() or split_name(tops[0].name) is not None:
        return folder
    return tops[0] if any(each.is_dir() or each.name in _METADATA for each in tops[0].iterdir()) else folder


def _is_wanted(name: Path) -> bool:
    return not any(map(is_hidden, name.parts)) and (name.suffix.lower() in PICTURES or name.name in _METADATA)
