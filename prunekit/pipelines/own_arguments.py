"""Arguments of a pipeline's own call that users give, such as ``max_sequence_length``; plain JSON values, stored with the data."""

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from prunekit._json import JsonObject
from prunekit._messages import did_you_mean
from prunekit.errors import InputError
from prunekit.pipelines.signatures import takes

__all__ = ["NO_ARGUMENTS", "check_own_arguments", "parse_own_arguments", "with_rows"]

NO_ARGUMENTS: Mapping[str, object] = MappingProxyType({})
_SET_HERE = {
    "prompt": "captions",
    "class_labels": "classes",
    "height": "the resolution",
    "width": "the resolution",
    "guidance_scale": "the guidance scale",
    "num_inference_steps": "the number of sampling steps",
    "timesteps": "the number of sampling steps",
    "sigmas": "the number of sampling steps",
    "generator": "the seed",
}
"""Arguments with an option of their own here, and the option."""
_ALWAYS = {
    "output_type",
    "return_dict",
    "use_resolution_binning",
    "num_frames",
    "num_images_per_prompt",
    "num_videos_per_prompt",
}
"""Arguments that are set here, or whose value is assumed."""
_TEXTS = ("prompt_", "negative_prompt")


def parse_own_arguments(texts: Iterable[str]) -> JsonObject:
    """Arguments from texts such as ``max_sequence_length=77``; a value that is no JSON is taken as a text.

    Raises:
        InputError: there is no equals sign, or a name comes twice.

    Example:
        >>> parse_own_arguments(["max_sequence_length=77", "negative_prompt=blurry", "clip_skip=null"])
        {'max_sequence_length': 77, 'negative_prompt': 'blurry', 'clip_skip': None}
    """
    found: JsonObject = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(
                f"Got the pipeline argument {text!r:.80}; expected NAME=VALUE, as in max_sequence_length=77."
            )
        if name in found:
            raise InputError(f"Got the pipeline argument {name} twice; expected one value for it.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def check_own_arguments(pipeline: Any, arguments: Mapping[str, object]) -> None:
    """Refuse arguments that a pipeline's call does not have, and those that are set here.

    Args:
        pipeline: of diffusers, or its class.
        arguments: by name.

    Raises:
        InputError: an argument is unknown, has an option of its own, or is no plain JSON value.
    """
    known = takes(pipeline)
    kind = pipeline if isinstance(pipeline, type) else type(pipeline)
    for name, value in arguments.items():
        if name in _SET_HERE:
            raise InputError(
                f"Got the pipeline argument {name!r}, which prunekit sets itself; set {_SET_HERE[name]} instead."
            )
        if name in _ALWAYS:
            raise InputError(f"Got the pipeline argument {name!r}, which prunekit sets itself; leave it out.")
        if name not in known or name in ("self", "args", "kwargs"):
            raise InputError(
                f"The call of {kind.__name__} has no argument {name!r:.60}{did_you_mean(name, known)}; expected an argument of its "
                "own call, or leave it out."
            )
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"Got a {type(value).__name__} for the pipeline argument {name}; expected a value that JSON can express."
            ) from error


def with_rows(arguments: Mapping[str, object], count: int) -> dict[str, object]:
    """Arguments as a call takes them for some captions: one text for all, such as a negative prompt, becomes one for each.

    Args:
        arguments: by name.
        count: number of captions.
    """
    return {
        name: [value] * count if isinstance(value, str) and name.startswith(_TEXTS) else value
        for name, value in arguments.items()
    }
