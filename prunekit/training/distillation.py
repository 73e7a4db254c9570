"""Distillation: a pruned network learns from the images and from the network that it was pruned from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import torch
from torch import Generator, Tensor, nn

from prunekit._chosen import check_choice
from prunekit._files import json_hash
from prunekit.choices import Fade
from prunekit.errors import InputError
from prunekit.graph.stubs import has_layer
from prunekit.schedule import NoiseSchedule
from prunekit.training.checkpoints import weights_hash
from prunekit.training.objective import DenoisingObjective

__all__ = ["Distillation", "Fade", "feature_layers"]


@dataclass(frozen=True, eq=False)
class Distillation:
    """Mean of the denoising loss and the distance from a teacher's prediction, and the distance of features.

    (1 − w)·‖ŷ − y‖² + w·‖ŷ − ŷ_T‖² + v·mean_l ‖f_l − f_T,l‖²/‖f_T,l‖², with y the target from noise and image and ŷ_T the teacher's
    prediction on the same x_t (output distillation of Hinton et al., arXiv:1503.02531, for regression; features as in FitNets,
    arXiv:1412.6550, without its regressor, since a pruned layer's channels are a subset of the teacher's). The relative scale of
    the features is this project's choice.

    Args:
        objective: the denoising loss.
        teacher: has the student's prediction type; it is only evaluated, in eval mode and without gradients.
        weight: w, in [0, 1].
        feature_weight: v ≥ 0.
        features: layer name → output channels of the teacher that the student's layer has kept, shape (kept,), int64; None for all
            channels.
        fade: ``linear`` lets w and v fall to zero over the training, ``constant`` does not.

    Raises:
        InputError: a weight is out of its range, the fade is unknown, or the teacher lacks a layer of ``features``.
    """

    objective: DenoisingObjective
    teacher: nn.Module
    weight: float = 0.5
    feature_weight: float = 0.0
    features: Mapping[str, Tensor | None] = field(default_factory=dict)
    fade: Fade = "constant"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1 or not 0 <= self.feature_weight < float("inf"):
            raise InputError(
                f"Got a distillation weight of {self.weight:g} and a feature weight of {self.feature_weight:g}; expected a share "
                "from 0 to 1 and a number of at least 0."
            )
        check_choice("fade", self.fade, get_args(Fade))
        if self.feature_weight and not self.features:
            raise InputError("Got a feature weight and no features; expected the layers whose outputs are to agree.")
        known = dict(self.teacher.named_modules())
        if missing := sorted(set(self.features) - set(known)):
            raise InputError(f"The teacher has no layer {missing[0]}, whose output was to be learnt.")

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self.objective.schedule

    def at(self, progress: float) -> "Distillation":
        """The objective at a moment of the training; ``progress`` is the share of the training that is done."""
        if self.fade == "constant":
            return self
        left = 1 - progress
        return replace(self, weight=self.weight * left, feature_weight=self.feature_weight * left)

    def draw(self, timesteps: Tensor, generator: Generator) -> tuple[Tensor, ...]:
        """See :meth:`prunekit.training.DenoisingObjective.draw`."""
        return self.objective.draw(timesteps, generator)

    def per_sample(
        self, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor, *conditions: Tensor
    ) -> Tensor:
        """Loss of shape (batch,).

        Raises:
            InputError: the student lacks a layer of ``features``.
        """
        noisy, target = self.objective.pair(clean, noise, timesteps)
        names = list(self.features) if self.feature_weight else []
        from accelerate.utils import extract_model_from_parallel  # noqa: PLC0415 - nothing but a training needs it

        student: nn.Module = extract_model_from_parallel(model)
        if gone := next((name for name in names if not has_layer(student, name)), None):
            raise InputError(
                f"The student has no layer {gone}, whose output was to be learnt; leave out layers of removed branches."
            )
        with _outputs(student, names) as own:
            halves = self.objective.output(model, noisy, timesteps, *conditions)
        loss, known = (1 - self.weight) * _distance(halves.mean, target), None
        if self.weight or names:
            with torch.no_grad(), _outputs(self.teacher, names) as wanted:
                teacher = self.teacher.to(noisy.device).eval()
                taught = self.objective.output(teacher, noisy, timesteps, *conditions)
            loss, known = loss + self.weight * _distance(halves.mean, taught.mean), (self.teacher, taught)
            for name in names:
                loss = loss + self.feature_weight / len(names) * self._feature_distance(name, own[name], wanted[name])
        return self.objective.with_variance(loss, halves, clean, noisy, timesteps, conditions, known)

    def _feature_distance(self, name: str, own: Tensor, wanted: Tensor) -> Tensor:
        """Squared distance of two layers' outputs, divided by the square of the teacher's, shape (batch,)."""
        kept = self.features[name]
        if kept is not None:
            axis = 1 if wanted.ndim == 4 else wanted.ndim - 1
            wanted = wanted.index_select(axis, kept.to(wanted.device))
        if own.shape != wanted.shape:
            raise InputError(
                f"Layer {name} gives {tuple(own.shape)} and the teacher's {tuple(wanted.shape)}; name the channels that it kept."
            )
        return _distance(own, wanted) / wanted.square().flatten(1).mean(1).clamp(min=1e-12)

    def fingerprint(self) -> str:
        """Hash of the denoising loss, the teacher's weights and the distillation's settings."""
        return json_hash([self.objective.fingerprint(), self._teacher_hash, self._described()])

    def _described(self) -> list[object]:
        features = {name: None if kept is None else kept.tolist() for name, kept in self.features.items()}
        return [self.weight, self.feature_weight, features, self.fade]

    @cached_property
    def _teacher_hash(self) -> str:
        return weights_hash(self.teacher)


def feature_layers(model: nn.Module) -> list[str]:
    """The last convolution or linear layer of every block: every entry of a top-level list, and other parts with several layers."""
    blocks: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList):
            blocks += [(f"{name}.{i}", part) for i, part in enumerate(child)]
        else:
            blocks.append((name, child))
    found = []
    for name, block in blocks:
        layers = [own for own, module in block.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        if len(layers) > 1:
            found.append(f"{name}.{layers[-1]}")
    return found


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of each sample, shape (batch,)."""
    return (a - b).square().flatten(1).mean(1)


@contextmanager
def _outputs(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Outputs of the named layers within the block; for a layer that runs twice, the last output."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
