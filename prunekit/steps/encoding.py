"""Turns pictures with captions, or captions alone, into latents and conditions on disk, by a pipeline's own parts."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit._json import JsonDict, JsonObject
from prunekit._locks import alone_at
from prunekit._progress import tell
from prunekit.choices import StoredPrecision
from prunekit.data import EncodedWriter, Encoding
from prunekit.data.captions import Captioned, CaptionedPart, captioned_pictures
from prunekit.data.splitting import drawn_order
from prunekit.errors import InputError
from prunekit.pipelines import Encoder, PipelineSampler, Subject, identity, open_pipeline, takes
from prunekit.pipelines.loading import denoisers_of, without_warnings
from prunekit.steps.placing import compute_device

__all__ = ["EncodeOptions", "Encoded", "encode"]

_NOISE_SEED = 0xE2C0  # added to the seed: an evaluation by the same seed has other noise
_ENDLESS = 10**6  # a tokenizer without a limit of its own names a huge number
_PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class EncodeOptions:
    """How pictures and captions are encoded.

    Args:
        size: height and width of the pictures; None for the pipeline's own.
        caption_column: column of the captions; ``text`` or ``caption`` if missing.
        batch_size: pictures at a time.
        precision: of the pipeline's networks, ``no`` for float32, ``fp16`` or ``bf16``.
        seed: draws the latents from the VAE's distribution by this seed, instead of taking its mode; None for the mode.
        steps: sampling steps, where latents are sampled.
        guidance_scale: of the samples, where latents are sampled; None for the pipeline's default.
        arguments: of the pipeline's own call, see :mod:`prunekit.pipelines.own_arguments`; plain JSON values.
        stored_precision: precision of latents and conditions on the disk.

    Raises:
        InputError: batch size or steps are below 1.
    """

    size: tuple[int, int] | None = None
    caption_column: str | None = None
    batch_size: int = 16
    precision: str = "no"
    seed: int | None = None
    steps: int = 50
    guidance_scale: float | None = None
    arguments: JsonDict = field(default_factory=dict)
    stored_precision: StoredPrecision = "float16"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.steps < 1:
            raise InputError(f"Got batch_size {self.batch_size} and steps {self.steps}; expected at least 1 of each.")


@dataclass(frozen=True)
class Encoded:
    """What was encoded.

    Args:
        train: number of images to train on.
        held_out: number of images that are held out.
        sha256: hash of all latents and conditions.
        report: a sentence about the source, and one about captions that were cut.
        kept: whether the folder was complete before, and nothing was encoded.
    """

    train: int
    held_out: int
    sha256: str
    report: str
    kept: bool = False


def encode(
    pipeline: Path | str, source: str | Sequence[Subject], output: Path, options: EncodeOptions | None = None
) -> Encoded:
    """Write a folder of encoded images, which training, scoring and evaluation read; an interrupted one is resumed.

    Args:
        pipeline: folder of a pipeline.
        source: pictures with captions (or classes, for a class-conditional pipeline), as for
            :func:`prunekit.data.captions.captioned_pictures`; or captions alone, for which the pipeline samples latents.
        output: folder to write.
        options: see :class:`EncodeOptions`.

    Raises:
        MissingFileError: the pipeline or the pictures are missing.
        InputError: the pipeline's latents cannot be followed, the captions are of another kind, the folder has something else, or
            another process encodes into it.
        FileFormatError: pictures are broken or have no captions.
    """
    options = options or EncodeOptions()
    sampled = not isinstance(source, str)
    with ExitStack() as stack:
        busy = f"Another process encodes into {output}; wait for its end, or give another `output`."
        stack.enter_context(alone_at(output, busy))
        opened = open_pipeline(pipeline, _PRECISIONS[options.precision], stand_in=not sampled).to(compute_device())
        classes = "prompt" not in takes(opened)
        if isinstance(source, str):
            pictures = stack.enter_context(captioned_pictures(source, classes, options.caption_column))
        else:
            pictures = _without_pictures(source)
        stack.enter_context(without_warnings())  # one for each caption that is cut, of which there may be thousands
        encoder = Encoder(opened, options.size, options.seed, options.arguments)
        writer = EncodedWriter(output, _encoding(encoder, pictures, source, options))
        kept = writer.is_finished
        making = _sampled(encoder, pictures, options) if sampled else encoder.latents
        _write(writer, encoder, pictures, making, options.batch_size)
        told = pictures.report if kept or classes else f"{pictures.report}{_cut(opened, pictures, options)}"
        return Encoded(len(pictures.train), len(pictures.held_out), writer.finish(), told, kept)


def _cut(pipeline: Any, pictures: Captioned, options: EncodeOptions) -> str:
    """How many captions are too long for every tokenizer of the pipeline, in a sentence after another; empty for none."""
    subjects = [str(subject) for part in (pictures.train, pictures.held_out) for subject in part.subjects]
    tokenizers = [part for name, part in pipeline.components.items() if name.startswith("tokenizer") and callable(part)]
    limits = [_longest(pipeline, tokenizer, options) for tokenizer in tokenizers]
    if not limits or max(limits) >= _ENDLESS:
        return ""
    long = set(subjects)
    for tokenizer, limit in zip(tokenizers, limits, strict=True):
        some = list(long)
        tokens = tokenizer(some, truncation=False, verbose=False).input_ids if some else []
        long = {text for text, own in zip(some, tokens, strict=True) if len(own) > limit}
    count = sum(text in long for text in subjects)
    are, were = ("s are", "were") if count > 1 else (" is", "was")
    return f" {count:,} caption{are} longer than {max(limits):,} tokens and {were} cut." if count else ""


def _longest(pipeline: Any, tokenizer: Any, options: EncodeOptions) -> int:
    """Most tokens of a caption: the tokenizer's own limit, or of others than CLIP's what the pipeline's call says."""
    asked = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    longest = options.arguments.get("max_sequence_length", None if asked is None else asked.default)
    if isinstance(longest, int) and "CLIP" not in type(tokenizer).__name__:
        return longest
    return int(tokenizer.model_max_length)


def _encoding(
    encoder: Encoder, pictures: Captioned, source: str | Sequence[Subject], options: EncodeOptions
) -> Encoding:
    """What belongs to all rows."""
    known = encoder.conditioning
    about: JsonObject = identity(encoder.pipeline)
    if isinstance(source, str):
        about |= {"latents": "of pictures", "drawn": options.seed, "pictures": pictures.listed()}
    else:
        about |= {"latents": "sampled", "steps": options.steps, "guidance_scale": options.guidance_scale}
        about |= {"seed": options.seed or 0}
    return Encoding(
        pipeline=about,
        image_size=encoder.size or (0, 0),
        captions={"train": list(pictures.train.subjects), "held-out": list(pictures.held_out.subjects)},
        fixed=known.fixed,
        empty=known.empty,
        time_unit=known.unit.to_config(),
        arguments=options.arguments,
        steps=known.steps,
        precision=options.stored_precision,
        pictures=pictures.contents(),
    )


_Latents = Callable[[CaptionedPart, range, int], Tensor]
"""Latents of some rows of a part, whose first row has the given number among those of both parts."""


def _write(writer: EncodedWriter, encoder: Encoder, pictures: Captioned, latents: _Latents, batch_size: int) -> None:
    """Encode the rows that are not on the disk yet."""
    whole = len(pictures.train) + len(pictures.held_out)
    before = 0
    for name, part in (("train", pictures.train), ("held-out", pictures.held_out)):
        for start in range(writer.done(name), len(part), batch_size):
            rows = range(start, min(start + batch_size, len(part)))
            tell("encoding", before + start, whole)
            columns = encoder.conditions([part.subjects[row] for row in rows])
            writer.append(name, latents(part, rows, before).cpu(), columns)
        before += len(part)
    tell("encoding", whole, whole)


def _sampled(encoder: Encoder, captions: Captioned, options: EncodeOptions) -> _Latents:
    """Latents that the pipeline samples for captions. The noise of a row depends on the seed and its number alone."""
    (network,) = denoisers_of(encoder.pipeline).values()
    sampler = PipelineSampler(
        encoder.pipeline,
        options.steps,
        [*captions.train.subjects, *captions.held_out.subjects],
        options.guidance_scale,
        encoder.size,
        decoded=False,
        arguments=options.arguments,
    )

    def latents(_: CaptionedPart, rows: range, first: int) -> Tensor:
        return sampler(network, len(rows), (options.seed or 0) + _NOISE_SEED, len(rows), first=first + rows.start)

    return latents


def _without_pictures(subjects: Sequence[Subject]) -> Captioned:
    """Captions alone, of which one in six is held out by a fixed draw."""
    order, held_out = drawn_order(len(subjects), "The list of captions")
    chosen = [np.sort(part) for part in (order[held_out:], order[:held_out])]
    return Captioned.of_subjects([[subjects[row] for row in rows] for rows in chosen])
