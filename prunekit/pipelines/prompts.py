"""Files of prompts: a prompt on each line."""

from pathlib import Path

from prunekit.errors import FileFormatError, MissingFileError
from prunekit.limits import check_limit

__all__ = ["read_prompts"]


def read_prompts(path: Path | str) -> list[str]:
    """The prompts of a text file in UTF-8, one for each line; empty lines are left out.

    Raises:
        MissingFileError: there is no such file.
        FileFormatError: it is no text, or has no prompts.
        LimitError: it is larger than the limit ``metadata-bytes``.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"{path} does not exist; expected a text file with a prompt on each line.")
    check_limit("metadata-bytes", path.stat().st_size, str(path))
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no text in UTF-8; expected a prompt on each line.") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise FileFormatError(f"{path} has no prompts; expected one on each line.")
    return found
