"""Training checkpoints that survive a kill: each carries its own hash, and a damaged one is skipped with a warning."""

import hashlib
import io
import re
import warnings
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit._files import atomic_path, sha256_file
from prunekit._leftovers import sweep
from prunekit._types import StateDict
from prunekit.checkpoint.tensors import read_content
from prunekit.errors import FileFormatError, LimitError

__all__ = ["drop_checkpoints", "latest_checkpoint", "save_checkpoint", "saved_step", "weights_hash"]

_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")


def save_checkpoint(folder: Path, step: int, state: StateDict, keep: int = 2) -> Path:
    """Write ``step-<step>-<hash>.pt`` atomically and drop all but the ``keep`` newest.

    Args:
        folder: created if missing.
        step: number of train steps done.
        state: tensors, numbers, strings, lists and dicts only, so that it can be read without running code.
        keep: how many to keep, at least 1.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    path = folder / f"step-{step:08d}-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    with atomic_path(path) as part:
        part.write_bytes(content)
    for old in _listed(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def latest_checkpoint(folder: Path) -> StateDict | None:
    """State of the newest checkpoint whose hash is right, or None; a damaged one raises a warning that names it.

    Raises:
        LimitError: the checkpoint is undamaged, but larger than a limit; the user may raise the limit.
    """
    for path in _listed(folder):
        state = _read(path)
        if state is not None:
            return state
        warnings.warn(f"{path} is damaged and is passed over for the checkpoint before it.", stacklevel=2)
    return None


def drop_checkpoints(folder: Path) -> None:
    """Remove all checkpoints in a folder, and the folder if it is then empty; ignores errors."""
    with suppress(OSError):
        for path in _listed(folder):
            path.unlink(missing_ok=True)
        if folder.is_dir():
            sweep(folder)
            folder.rmdir()


def saved_step(folder: Path) -> int | None:
    """Number of train steps in the newest checkpoint, from its name; None if there is no checkpoint."""
    names = [_NAME.fullmatch(path.name) for path in _listed(folder)[:1]]
    return int(names[0][1]) if names and names[0] else None


def _read(path: Path) -> StateDict | None:
    """A checkpoint's state; None if the file does not match the hash in its name, or would run code when read."""
    match = _NAME.fullmatch(path.name)
    if match is None or not sha256_file(path).startswith(match[2]):
        return None
    try:
        return dict(read_content(path)[1])
    except LimitError:
        raise
    except FileFormatError:
        return None


def _listed(folder: Path) -> list[Path]:
    """Checkpoints, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()), reverse=True)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and stored buffers, in any file layout; 64 hex digits."""
    digest = hashlib.sha256()
    state: dict[str, Tensor] = model.state_dict()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
