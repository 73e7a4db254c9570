"""What belongs to all rows of a folder of encoded images."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from prunekit._files import json_hash
from prunekit._json import JsonDict
from prunekit.choices import StoredPrecision
from prunekit.data.encoded import PARTS, check_name
from prunekit.data.row_files import form_of, plain_array, stored
from prunekit.errors import InputError
from prunekit.limits import check_limit
from prunekit.results.encoded_files import FixedValue
from prunekit.results.model import plain

__all__ = ["CONTENTS", "Encoding"]

CONTENTS = "pictures_sha256"
"""The hash of all pictures' contents among what identifies the pipeline and the pictures; earlier versions wrote none."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """What belongs to all rows of a folder of encoded images.

    Args:
        pipeline: what identifies the pipeline and the pictures, JSON-able; an encoding resumes only if it is the same.
        image_size: height and width of the pictures.
        captions: caption or class of each image, for ``train`` and ``held-out``, at least one for each.
        fixed: arguments of the network that are the same for every image, by their paths.
        empty: the empty condition of each column that guidance replaces, a row without the first axis.
        time_unit: how the network is told a timestep of the scheduler, JSON-able.
        arguments: of the pipeline's own call, as the user gave them, JSON-able.
        steps: what the pipeline gives its scheduler when it sets the steps, JSON-able.
        precision: of floating-point latents and conditions, ``float16`` or ``float32``.
        pictures: name of each picture and hash of its content, of ``train`` and then of ``held-out``; empty without pictures. An
            encoding resumes only if the hashes are the same.

    Raises:
        InputError: captions of a part are missing or are not Unicode, their list is too large, or the precision is unknown.
    """

    pipeline: JsonDict
    image_size: tuple[int, int]
    captions: Mapping[str, Sequence[str | int]]
    fixed: Mapping[str, object] = field(default_factory=dict)
    empty: Mapping[str, Tensor] = field(default_factory=dict)
    time_unit: JsonDict | None = None
    arguments: JsonDict = field(default_factory=dict)
    steps: JsonDict = field(default_factory=dict)
    precision: StoredPrecision = "float16"
    pictures: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        if set(self.captions) != set(PARTS) or not all(self.captions.values()):
            found = ", ".join(f"{len(own)} for {part}" for part, own in self.captions.items())
            raise InputError(f"Got captions {found}; expected at least 1 for each of {' and '.join(PARTS)}.")
        for part, own in self.captions.items():
            broken = next((row for row, each in enumerate(own) if isinstance(each, str) and not _is_text(each)), None)
            if broken is not None:
                raise InputError(
                    f"Caption {broken} of {part} has half of a surrogate pair ({own[broken]!a:.60}); expected Unicode text."
                )
            check_limit("metadata-bytes", len(self.captions_of(part).encode()), f"The list of captions of {part}")
        if self.precision not in ("float16", "float32"):
            raise InputError(f"Got the precision {self.precision!r}; expected float16 or float32.")

    def captions_of(self, part: str) -> str:
        """The captions of ``train`` or ``held-out`` as a JSON list."""
        return json.dumps(list(self.captions[part]), ensure_ascii=False)

    def to_json(self) -> dict[str, object]:
        """The part of the file that does not depend on the rows."""
        contents = {CONTENTS: json_hash([digest for _, digest in self.pictures])} if self.pictures else {}
        head = {
            "pipeline": plain({**self.pipeline, **contents}),
            "image_size": list(self.image_size),
            "fixed": {check_name(name, "The encoding"): _described(value, name) for name, value in self.fixed.items()},
            "empty": [check_name(name, "The encoding") for name in self.empty],
            "captions": json_hash([list(self.captions[part]) for part in PARTS]),
            "train": len(self.captions["train"]),
            "held_out": len(self.captions["held-out"]),
        }
        head |= {} if self.time_unit is None else {"time_unit": plain(dict(self.time_unit))}
        head |= {"steps": plain(dict(self.steps))} if self.steps else {}
        return head | ({"arguments": plain(dict(self.arguments))} if self.arguments else {})


def _is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _described(value: object, name: str) -> dict[str, object]:
    """A fixed argument in JSON.

    Raises:
        InputError: JSON cannot express it, or it is an array that is not finite.
    """
    if isinstance(value, Tensor):
        array = plain_array(value)
        return {"array": form_of(stored(array, name, "float32") if array.is_floating_point() else array).to_json()}
    try:
        constant = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"Got a value of type {type(value).__name__} for {name}; expected a tensor, or a value that JSON can express."
        ) from error
    return FixedValue(constant=constant).to_json()
