"""Pictures with captions as latents and conditions on disk, in the form in which training reads them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from prunekit._json import JsonObject
from prunekit.data.captions import CaptionedPart
from prunekit.errors import InputError
from prunekit.pipelines.conditioning import Conditioning, conditioning_of, conditions_for
from prunekit.pipelines.latents import check_latents, default_size, encoded
from prunekit.pipelines.listening import Subject
from prunekit.pipelines.own_arguments import check_own_arguments
from prunekit.pipelines.signatures import takes
from prunekit.pipelines.stand_in import StandIn
from prunekit.training import weights_hash

__all__ = ["Encoder", "identity"]

_CACHE = 2**28  # bytes of conditions that are kept for captions that come again


@dataclass(eq=False)
class Encoder:
    """Turns pictures and captions into what a pipeline's denoiser is trained on.

    Args:
        pipeline: of diffusers, with stand-ins for its denoisers.
        size: height and width of the pictures; None for the pipeline's own.
        drawn: draw latents from the VAE's distribution by this seed, rather than take its mode; None for the mode.
        arguments: of the pipeline's own call.

    Raises:
        InputError: the pipeline says no size of pictures, does not take an argument, or its latents are not what the denoiser gets.
    """

    pipeline: Any
    size: tuple[int, int] | None = None
    drawn: int | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    _known: dict[Subject, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    _bytes: int = 0

    def __post_init__(self) -> None:
        check_own_arguments(self.pipeline, self.arguments)
        self.size = self.size or default_size(self.pipeline)
        if self.size is None:
            raise InputError(
                f"The {type(self.pipeline).__name__} does not say which size its pictures have; give it as the resolution."
            )
        two: tuple[Subject, ...] = ("a", "b") if self.by_text else (0, 1)
        self.conditioning: Conditioning = conditioning_of(self.pipeline, self.size, self.arguments)
        check_latents(self.pipeline, two, self.size, self.arguments)

    @property
    def by_text(self) -> bool:
        """Whether the pipeline takes captions; otherwise it takes classes."""
        return "prompt" in takes(self.pipeline)

    def latents(self, part: CaptionedPart, rows: range, first: int = 0) -> Tensor:
        """Latents of some pictures, shape (rows, …).

        Args:
            part: the pictures.
            rows: which of them.
            first: number of the part's first picture among all pictures. A picture's draw depends on its own number alone.

        Raises:
            InputError: the size of the pictures is not known, or their latents have another shape than the denoiser's samples.
        """
        if self.size is None:
            raise InputError("The size of the pictures is not known.")
        pictures = part.pictures(rows.start, rows.stop, self.size)
        generators = None
        if self.drawn is not None:
            generators = [Generator().manual_seed(self.drawn * 1_000_003 + first + row + 1) for row in rows]
        found = encoded(self.pipeline, pictures, generators)
        if tuple(found.shape[1:]) != self.conditioning.sample:
            raise InputError(
                f"The pictures become latents of shape {tuple(found.shape[1:])} and the pipeline's denoiser gets "
                f"{self.conditioning.sample}; give another resolution."
            )
        return found

    def conditions(self, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        """Conditions of some captions, one row each; those of captions that came before are not computed again."""
        new = [subject for subject in dict.fromkeys(subjects) if subject not in self._known]
        if self._bytes > _CACHE:
            self._known, self._bytes = {}, 0
            new = list(dict.fromkeys(subjects))
        if new:
            rows = conditions_for(self.pipeline, new, self.conditioning, self.size, self.arguments)
            for number, subject in enumerate(new):
                own = {name: value[number].cpu().clone() for name, value in rows.items()}
                self._known[subject] = own
                self._bytes += sum(value.nbytes for value in own.values())
        return {name: torch.stack([self._known[each][name] for each in subjects]) for name in self.conditioning.shapes}


def identity(pipeline: Any) -> JsonObject:
    """The classes of a pipeline and its components, with hashes of the weights of all that are not stand-ins."""
    parts: JsonObject = {}
    for name, component in pipeline.components.items():
        if isinstance(component, torch.nn.Module):
            if isinstance(component, StandIn):
                parts[name] = {"class": type(component.network).__name__}
            else:
                parts[name] = {"class": type(component).__name__, "weights_sha256": weights_hash(component)}
    return {"class": type(pipeline).__name__, "components": parts}
