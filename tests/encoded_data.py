"""Folders of encoded images with random numbers, as the tiny pipelines' denoisers take them."""

from pathlib import Path

import torch
from torch import Generator

from prunekit.data import EncodedWriter, Encoding

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "sd": {"encoder_hidden_states": (16, 32)},
    "sdxl": {
        "encoder_hidden_states": (16, 64),
        "added_cond_kwargs.text_embeds": (16,),
        "added_cond_kwargs.time_ids": (6,),
    },
    "sd3": {"encoder_hidden_states": (9, 32), "pooled_projections": (32,)},
}
"""Conditions of tiny pipelines by their names in :mod:`tiny_pipelines`."""
COUNTS = {"train": 24, "held-out": 8}
SIDE = 8
"""Of the latents."""


def encoded_folder(name: str, folder: Path) -> Path:
    """A folder of encoded images.

    Args:
        name: a key of :data:`SHAPES`.
        folder: where to write it.
    """
    shapes, draws = SHAPES[name], Generator().manual_seed(0)
    captions = {part: ["a"] * count for part, count in COUNTS.items()}
    empty = {key: torch.zeros(shape) for key, shape in shapes.items() if not key.endswith("time_ids")}
    writer = EncodedWriter(folder, Encoding({"class": name}, (SIDE, SIDE), captions, empty=empty))
    for part, count in COUNTS.items():
        columns = {key: torch.randn(count, *shape, generator=draws) for key, shape in shapes.items()}
        writer.append(part, torch.randn(count, 4, SIDE, SIDE, generator=draws), columns)
    writer.finish()
    return folder
