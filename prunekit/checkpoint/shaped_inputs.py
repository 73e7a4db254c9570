"""Example inputs of other shapes than those that follow from a config, such as more tokens: costs depend on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunekit._messages import did_you_mean
from prunekit.checkpoint.callings import TIMES, sample_of
from prunekit.checkpoint.spec import ModelSpec
from prunekit.conditions import flat, nested
from prunekit.errors import InputError

__all__ = ["LATENTS", "Form", "Shaped", "at_shapes", "parse_shapes"]

LATENTS = "latents"
"""The noisy samples; networks have different names for them."""
_MAX_ELEMENTS = 2**26  # of all inputs together


@dataclass(frozen=True)
class Form:
    """A tensor with the same number everywhere.

    Args:
        shape: of the tensor.
        dtype: its type, by torch's name.
        value: the number.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    value: float = 0

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], example: object, dtype: str = "float32") -> "Form":
        """Of an argument: filled like the example; without one, with ones if it is a mask or a whole number, and else with zeros.

        Args:
            name: of the argument.
            shape: at batch 1.
            example: of the same argument in another shape; None if there is none.
            dtype: for an argument without an example.
        """
        if isinstance(example, Tensor):
            value = example.flatten()[0].item() if example.numel() else 0
            return cls(shape, str(example.dtype).removeprefix("torch."), value)
        return cls(shape, dtype, float("mask" in name or "float" not in dtype))

    def tensor(self) -> Tensor:
        """The tensor."""
        return torch.full(self.shape, self.value, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Shaped:
    """Makes example inputs of given shapes at batch 1; to be the ``inputs`` of a :class:`ModelSpec`.

    Args:
        spec: the network, with the inputs that it has otherwise.
        forms: of tensors by the arguments' paths.
        constants: arguments that are no tensors, by their paths.

    Raises:
        InputError: the shapes are too large for one sample.
    """

    spec: ModelSpec
    forms: Mapping[str, Form]
    constants: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = sum(math.prod(form.shape) for form in self.forms.values())
        if numbers > _MAX_ELEMENTS:
            raise InputError(
                f"The shapes stand for {numbers:,} numbers in one sample; expected at most {_MAX_ELEMENTS:,}."
            )

    def __call__(self, _: object) -> dict[str, object]:
        """The arguments of one forward pass, by name."""
        made = {name: form.tensor() for name, form in self.forms.items()}
        return nested({**flat(self.spec.example_inputs()), **self.constants, **made})


def at_shapes(spec: ModelSpec, shapes: Mapping[str, Sequence[int]]) -> ModelSpec:
    """The same network, whose costs are counted at stated shapes.

    Args:
        spec: a denoiser of diffusers.
        shapes: by the arguments' paths, without the axis for the batch, as ``encoded.json`` has them; :data:`LATENTS` are the noisy
            samples. Arguments that are left out keep the shapes that follow from the config.

    Raises:
        InputError: the network has no such argument, or it has another number of axes.

    Example:
        >>> spec = ModelSpec("UNet2DConditionModel", {"sample_size": 8, "cross_attention_dim": 32})
        >>> inputs = at_shapes(spec, {"encoder_hidden_states": (77, 32)}).example_inputs()
        >>> tuple(inputs["encoder_hidden_states"].shape)
        (1, 77, 32)
    """
    if not shapes:
        return spec
    known = {name: value for name, value in flat(spec.example_inputs()).items() if isinstance(value, Tensor)}
    sample = sample_of(known)
    passed: dict[str, Form] = {}
    for told, sizes in shapes.items():
        name = sample if told == LATENTS else told
        example = known.get(name)
        if example is None or name in TIMES:
            names = [LATENTS, *(own for own in known if own not in (*TIMES, sample))]
            raise InputError(
                f"{spec.class_name} is given no {told!r:.80} in an example{did_you_mean(told, names)}; expected shapes of "
                f"{', '.join(names)}."
            )
        rows = example.ndim > 0 and len(example) == 1 and len(sizes) == example.ndim - 1
        if not rows and len(sizes) != example.ndim:
            wanted = example.ndim - (len(example) == 1)
            raise InputError(
                f"Got the shape {tuple(sizes)} for {told}; expected {wanted} axes, as in {tuple(example.shape)[-wanted:]}, without "
                "the one for the batch."
            )
        passed[name] = Form.of(name, (1, *sizes) if rows else tuple(sizes), example)
    return spec.with_inputs(Shaped(spec, passed))


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shapes from texts such as ``encoder_hidden_states=77x768``.

    Raises:
        InputError: a text is of another form, or a name comes twice.

    Example:
        >>> parse_shapes(["latents=4096x64", "added_cond_kwargs.text_embeds=1280"])
        {'latents': (4096, 64), 'added_cond_kwargs.text_embeds': (1280,)}
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        numbers = sizes.split("x")
        if not name or not all(number.isdecimal() and 0 < int(number) < 2**31 for number in numbers):
            raise InputError(
                f"Got the shape {text!r:.80}; expected NAME=SIZExSIZE, as in encoder_hidden_states=77x768."
            )
        if name in found:
            raise InputError(f"Got the shape of {name} twice; expected one.")
        found[name] = tuple(map(int, numbers))
    return found
