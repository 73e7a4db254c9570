"""A model as a predictor of the clean image, for any prediction type; single experts can be evaluated at any timestep."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from prunekit import nets
from prunekit.errors import InputError
from prunekit.groups import TimestepGroups
from prunekit.sampling import Evaluation, clean_prediction
from prunekit.schedule import Parameterization, Parameterized
from prunekit.training import predict

__all__ = ["Denoiser"]


@dataclass(frozen=True, eq=False)
class Denoiser(Parameterized):
    """A network with the data needed to interpret its predictions.

    Args:
        model: called as ``model(x, t)``; any ``nn.Module``, :class:`~prunekit.nets.TimestepExperts` and
            :class:`~prunekit.nets.MultiDecoderUNet` too.
        parameterization: noise schedule, and what the model predicts.
    """

    model: nn.Module
    parameterization: Parameterization

    @property
    def groups(self) -> TimestepGroups | None:
        """The timestep groups by which experts are routed; None for a single network."""
        return self.model.groups if isinstance(self.model, nets.TimestepExperts | nets.MultiDecoderUNet) else None

    def group_at(self, timestep: float) -> int | None:
        """Index of the timestep group that t belongs to; None for a single network."""
        return None if self.groups is None else int(self.groups.index_of(np.array([timestep]))[0])

    def part(self, index: int) -> "Denoiser":
        """The network of one timestep group, usable at every timestep.

        Raises:
            InputError: the model has no timestep groups, or none with this index.
        """
        match self.model:
            case nets.TimestepExperts():
                part = self.model.expert(self.model.groups[index].index)
            case nets.MultiDecoderUNet():
                part = self.model.stage(index)
            case _:
                raise InputError("The model has no timestep groups; expected experts or a multi-decoder network.")
        return Denoiser(part, self.parameterization)

    def clean(self, state: Tensor, timestep: float) -> Tensor:
        """Prediction of the clean image at x_t, not clamped, shape (batch, channels, height, width), on the device of ``state``."""
        timeline = self.parameterization.timeline
        told = float(timeline.time_of(np.array(timestep)))
        t = torch.tensor(int(told) if timeline.counts and told.is_integer() else told)
        device = next((tensor.device for tensor in self.model.parameters()), state.device)
        prediction = predict(self.model, state.to(device), t)
        return self._clean(prediction.to(state.device), state, timestep)

    def clean_of(self, evaluation: Evaluation) -> Tensor:
        """Prediction of the clean image from an existing evaluation."""
        return self._clean(evaluation.prediction, evaluation.state, evaluation.timestep)

    def _clean(self, prediction: Tensor, state: Tensor, timestep: float) -> Tensor:
        return clean_prediction(prediction, state, timestep, self.parameterization)
