"""Paths on this machine of the images that models were trained on.

Checkpoints, slim models and experts store the name and the hash of their images but not their path, since they may be shared. The
path is noted in ``.prunekit/images.json`` next to them, in the run's folder or in the folder with a command's output, with a
``.gitignore`` that keeps it out of repositories.
"""

import os
from contextlib import suppress
from pathlib import Path

from prunekit._files import atomic_path, write_json
from prunekit._json import read_json
from prunekit._names import split_source
from prunekit.data.images import ImageSplit
from prunekit.errors import PrunekitError
from prunekit.results.formats import IMAGES

__all__ = ["note_place", "noted_places"]

_FILE = ".prunekit/images.json"
_LEVELS = 4  # a run's experts/group-0 is two levels below the run; for an entry of a comparison it is four


def noted_places(sha256: str, name: str, near: Path) -> list[Path]:
    """Possible paths of images: first those noted next to a model or in a folder above, then their name there or here.

    Args:
        sha256: hash of the images.
        name: name of their file or folder.
        near: a model's file or folder.
    """
    folders = [*list(near.absolute().parents)[:_LEVELS], Path.cwd()]
    noted = [Path(place) for folder in folders if (place := _read(folder).get(sha256)) is not None]
    places = dict.fromkeys([*noted, *(folder / name for folder in folders)])
    return [place for place in places if os.path.exists(split_source(str(place))[0])]


def note_place(images: ImageSplit, folder: Path) -> None:
    """Note the path of images in a folder with models; skipped if a folder above has it already, and for embedded images.

    A folder that cannot be written to is skipped: the user is then asked for the images when they are needed.
    """
    place = Path(images.source).expanduser().absolute()
    if not images.is_file or any(_read(above).get(images.sha256) == str(place) for above in _with_parents(folder)):
        return
    with suppress(OSError, PrunekitError):
        write_json(folder / _FILE, {"format": IMAGES, "images": {**_read(folder), images.sha256: str(place)}})
        with atomic_path((folder / _FILE).with_name(".gitignore")) as part:
            part.write_text("*\n", encoding="utf-8")


def _with_parents(folder: Path) -> list[Path]:
    return [folder.absolute(), *folder.absolute().parents][:_LEVELS]


def _read(folder: Path) -> dict[str, str]:
    try:
        known = read_json(folder / _FILE, IMAGES).get("images")
    except (OSError, PrunekitError):
        return {}
    return {key: place for key, place in known.items() if isinstance(place, str)} if isinstance(known, dict) else {}
