"""A stand-in for a denoiser: it notes what its pipeline tells it, and answers with one number. It needs no weights."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.nets import TimestepExperts
from prunekit.nets.drop_in import DropInOutput
from prunekit.sampling.disturbances import Disturbed

__all__ = ["StandIn", "arguments_of", "sample_name"]

_SAMPLES = ("sample", "hidden_states", "x", "latent_model_input")

Heard = Callable[[dict[str, object]], None]
"""Is given the arguments of a call, by name."""


class StandIn(ModelMixin):  # type: ignore[misc]
    """Looks like a denoiser to its pipeline.

    Args:
        network: the denoiser; on the meta device it takes no memory. What the pipeline asks of it is answered by it.
        dtype: of the prediction.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._network = [network]  # in a list, so that it is no part of this module and is not moved
        self._mark = nn.Parameter(torch.zeros(1, dtype=dtype), requires_grad=False)
        self.heard: Heard | None = None
        self.answer = 0.0

    @property
    def network(self) -> nn.Module:
        """The denoiser that it stands for."""
        return self._network[0]

    @property
    def config(self) -> Any:
        """The denoiser's config."""
        return self._network[0].config

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_network"][0], name)

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> DropInOutput:
        """The same number everywhere, in the shape of the denoiser's prediction.

        Args:
            args: of the denoiser.
            return_dict: has no meaning: the answer is a tuple with an attribute ``sample``.
            kwargs: of the denoiser.

        Raises:
            InputError: the pipeline gives the samples in another form than one tensor.
        """
        told = arguments_of(self._network[0], args, kwargs)
        if self.heard is not None:
            self.heard(dict(told))
        sample = told[sample_name(self._network[0])]
        if not isinstance(sample, Tensor):
            raise InputError(
                f"{type(self._network[0]).__name__} takes its samples as a {type(sample).__name__}; expected one tensor."
            )
        shape, out = list(sample.shape), self.config.get("out_channels")
        if isinstance(out, int) and sample.ndim > 3 and shape[1] == self.config.get("in_channels"):
            shape[1] = out
        return DropInOutput(sample.new_full(shape, self.answer))


def arguments_of(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, object]:
    """The arguments of a call by name, without those that are None or only change the result's form."""
    told = inspect.signature(type(_signed(network)).forward).bind(network, *args, **kwargs).arguments
    own = list(told.items())[1:]
    return {name: value for name, value in own if name != "return_dict" and value is not None}


def sample_name(network: nn.Module) -> str:
    """The name of the argument with the noisy samples.

    Raises:
        InputError: the forward pass has no argument with such a name.
    """
    names = inspect.signature(type(_signed(network)).forward).parameters
    found = next((name for name in _SAMPLES if name in names), None)
    if found is None:
        raise InputError(
            f"{type(network).__name__} takes its samples by none of the names {', '.join(_SAMPLES)}; expected a denoiser of "
            "diffusers."
        )
    return found


def _signed(network: nn.Module) -> nn.Module:
    """The network whose arguments a denoiser takes; experts and disturbed networks pass on what they get to one within."""
    if isinstance(network, Disturbed):
        return _signed(network.network)
    return network.expert(len(network.groups) - 1) if isinstance(network, TimestepExperts) else network
