"""Every reader of files from outside with a small valid file of its kind, and ways to damage one."""

import gzip
import io
import json
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from prunekit._json import read_json
from prunekit.allocation import Allocation, allocate
from prunekit.checkpoint.tensors import load_state
from prunekit.data import load_images
from prunekit.data.pictures import read_picture
from prunekit.features import read_features
from prunekit.groups import TimestepGroups, make_groups
from prunekit.importance import ImportanceMap
from prunekit.recipe import load_recipe
from prunekit.report.run import read_samples
from prunekit.schedule import NoiseSchedule
from prunekit.training.checkpoints import latest_checkpoint


@dataclass(frozen=True)
class Reader:
    """How a kind of file is made and read.

    Args:
        name: of the file, with its suffix.
        valid: bytes of a file that can be read.
        read: reads the file at a path.
    """

    name: str
    valid: bytes
    read: Callable[[Path], Any]


def _saved(save: Callable[[io.BytesIO], Any]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def _tensors() -> dict[str, torch.Tensor]:
    return {"conv.weight": torch.ones(2, 1, 3, 3), "conv.bias": torch.zeros(2)}


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _samples(path: Path) -> Any:
    folder = path.parent / "samples"
    folder.mkdir(exist_ok=True)
    path.replace(folder / "base.npz")
    return read_samples(path.parent)


def _zip(picture: Image.Image) -> bytes:
    """Two pictures, one of them packed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pics/a.png", _saved(lambda file: picture.save(file, "PNG")))
        archive.writestr("pics/b.bmp", _saved(lambda file: picture.save(file, "BMP")), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _idx() -> bytes:
    return struct.pack(">4I", 0x803, 3, 4, 4) + _pixels(48).tobytes()


def _allocation() -> dict[str, Any]:
    schedule = NoiseSchedule.linear(1000)
    return allocate(make_groups(schedule, count=3), schedule, 0.8, np.arange(0, 1000, 20)).to_json()


_RECIPE = """name: small
data: {source: digits}
base: {checkpoint: 'embedded:digits'}
groups: {count: 2}
allocation: {budget: 0.8, steps: 3}
prune: {samples: 16, search: {rounds: 2}}
finetune: {train: {steps: 4, batch_size: 8, learning_rate: 0.0001}}
"""


def readers() -> list[Reader]:
    """All of them."""
    image = Image.fromarray(_pixels(9, 7, 3))
    grey = Image.fromarray(_pixels(6, 6))
    arrays = {"images": _pixels(4, 6, 6, 3), "labels": np.arange(4)}
    legacy = _saved(lambda file: torch.save(_tensors(), file, _use_new_zipfile_serialization=False))
    groups = make_groups(NoiseSchedule.linear(1000), count=3)
    return [
        Reader("x.png", _saved(lambda file: image.save(file, "PNG")), read_picture),
        Reader("grey.png", _saved(lambda file: grey.save(file, "PNG")), read_picture),
        Reader("x.jpg", _saved(lambda file: image.save(file, "JPEG")), read_picture),
        Reader("x.webp", _saved(lambda file: image.save(file, "WEBP")), read_picture),
        Reader("x.bmp", _saved(lambda file: image.save(file, "BMP")), read_picture),
        Reader("x.tif", _saved(lambda file: image.save(file, "TIFF", compression="tiff_lzw")), read_picture),
        Reader("x.ppm", _saved(lambda file: image.save(file, "PPM")), read_picture),
        Reader("pictures.zip", _zip(grey), lambda path: load_images(str(path))),
        Reader("x.npy", _saved(lambda file: np.save(file, _pixels(4, 6, 6))), lambda path: load_images(str(path))),
        Reader(
            "x.npz", _saved(lambda file: np.savez(file, **arrays)), lambda path: load_images(str(path), labels=True)
        ),
        Reader(
            "packed.npz", _saved(lambda file: np.savez_compressed(file, **arrays)), lambda path: load_images(str(path))
        ),
        Reader(
            "latents.safetensors",
            safetensors_bytes({"latents": torch.zeros(4, 4, 2, 2), "labels": torch.arange(4)}),
            lambda path: load_images(str(path), labels=True),
        ),
        Reader("x-idx3-ubyte", _idx(), lambda path: load_images(str(path))),
        Reader("x-idx3-ubyte.gz", gzip.compress(_idx(), mtime=0), lambda path: load_images(str(path))),
        Reader("x.pt", _saved(lambda file: torch.save({"ema": _tensors()}, file)), load_state),
        Reader("legacy.pt", legacy, load_state),
        Reader("x.safetensors", safetensors_bytes(_tensors(), metadata={"prunekit": "{}"}), load_state),
        Reader("features.safetensors", _features(), read_features),
        Reader("step.pt", _saved(lambda file: torch.save({"step": 3, **_tensors()}, file)), _checkpoint),
        Reader("importance.npz", _importance(".npz"), ImportanceMap.load),
        Reader("importance.json", _importance(".json"), ImportanceMap.load),
        Reader("samples.npz", _saved(lambda file: np.savez(file, images=_pixels(2, 4, 4, 1))), _samples),
        Reader("recipe.yaml", _RECIPE.encode(), load_recipe),
        Reader(
            "groups.json", json.dumps(groups.to_json()).encode(), lambda path: TimestepGroups.from_json(read_json(path))
        ),
        Reader(
            "allocation.json", json.dumps(_allocation()).encode(), lambda path: Allocation.from_json(read_json(path))
        ),
    ]


def _importance(suffix: str) -> bytes:
    groups = tuple(make_groups(NoiseSchedule.linear(1000), count=2))
    scores = tuple({"conv1": np.arange(4.0), "conv2": np.ones(3)} for _ in groups)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"importance{suffix}"
        ImportanceMap("magnitude", groups, {"conv1": 4, "conv2": 3}, {"out": "the output"}, scores).save(path)
        return path.read_bytes()


def _features() -> bytes:
    from prunekit import features

    return (Path(features.__file__).parent / "assets" / "features-digits-cnn.safetensors").read_bytes()


def _checkpoint(path: Path) -> Any:
    """A training's checkpoint under the name that its hash gives it, so that its content is read."""
    import hashlib

    name = f"step-00000003-{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}.pt"
    path.replace(path.with_name(name))
    return latest_checkpoint(path.parent)


_NUMBERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF]


def damaged(valid: bytes, chance: random.Random) -> bytes:
    """A file with one to three things wrong: flipped, cut, repeated, inserted or exchanged bytes, or other sizes."""
    content = bytearray(valid)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(content) or 1)
        match chance.randrange(7):
            case 0:
                content[place : place + 1] = bytes([chance.randrange(256)])
            case 1:
                del content[place:]
            case 2:
                del content[place : place + chance.randint(1, 40)]
            case 3:
                content[place:place] = content[place : place + chance.randint(1, 200)]
            case 4:
                content[place:place] = chance.randbytes(chance.randint(1, 40))
            case 5:
                length = chance.choice([1, 2, 4, 8])
                number = chance.choice(_NUMBERS) % 256**length
                content[place : place + length] = number.to_bytes(length, chance.choice(["little", "big"]))
            case 6:
                other = chance.randrange(len(content) or 1)
                content[place : place + 8], content[other : other + 8] = (
                    content[other : other + 8],
                    content[place : place + 8],
                )
    return bytes(content)
