"""One recipe model for each kind of experiment, with the sections that it needs."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, model_validator

from prunekit._json import JsonDict, JsonObject
from prunekit.errors import InputError
from prunekit.experiments import Experiment
from prunekit.recipe.comparisons import CurriculumOptions, EvidenceOptions, MultistageOptions
from prunekit.recipe.planning_sections import AllocationOptions, GroupOptions, PruneOptions
from prunekit.recipe.recipe import Recipe
from prunekit.recipe.tuning_sections import EvaluationOptions, FinetuneOptions
from prunekit.training import TrainOptions

__all__ = [
    "BaseRecipe",
    "CurriculumRecipe",
    "EntryRecipe",
    "EvidenceRecipe",
    "ExpertsRecipe",
    "MultistageRecipe",
]


class BaseRecipe(Recipe):
    """Opens or trains a base, and nothing else."""

    experiment: ClassVar[Experiment] = Experiment.BASE


class ExpertsRecipe(Recipe):
    """Makes timestep experts from a base: prunes them if there is a prune section, and likewise fine-tunes and evaluates them."""

    experiment: ClassVar[Experiment] = Experiment.EXPERTS

    groups: GroupOptions
    allocation: AllocationOptions

    @property
    def has_specialist(self) -> bool:
        """Whether one pruned network serves the noisy timesteps beside the base, which then stays as it is."""
        return self.groups.experts == "noisy"


class EntryRecipe(ExpertsRecipe):
    """Makes timestep experts as an entry of a comparison, with every stage."""

    prune: PruneOptions
    finetune: FinetuneOptions
    evaluation: EvaluationOptions

    @property
    def needs_base(self) -> bool:
        """Whether a trained base is used: as a start, as one of the experts, as a teacher, or to find groups, budgets or widths."""
        groups, tuning = self.groups, self.finetune
        is_used = not tuning.from_scratch or tuning.distillation is not None or self.has_specialist
        cuts_by_it = groups.method == "gradient" and groups.cuts is None
        return is_used or cuts_by_it or self.allocation.rule == "measured" or self.prune.search.proposer != "uniform"


class EvidenceRecipe(EntryRecipe):
    """Compares experts with baselines and ablations, each a recipe of its own."""

    experiment: ClassVar[Experiment] = Experiment.EVIDENCE

    multistage: None = None
    curriculum: None = None
    evidence: EvidenceOptions

    def entry(self, name: str) -> EntryRecipe:
        """The recipe of an entry.

        Raises:
            ValidationError: the entry changes a key that the recipe does not have, or its changes do not fit together.
        """
        data = self.model_dump(mode="json", exclude={"evidence"})
        changes = self.evidence.entries[name].changes
        if {"count", "method"} & set(changes.get("groups", {})) and "cuts" not in changes["groups"]:
            data["groups"]["cuts"] = None  # they would stand above the entry's own method and count
        merged = _merged(data, changes, self)
        entry = EntryRecipe.model_validate(merged)._trusting(self._confirmed)
        return entry.model_copy(update={"tracking": self.tracking})

    def _prune_sections(self) -> list[PruneOptions | None]:
        return [self.prune, *(self.entry(name).prune for name in self.evidence.entries)]

    @model_validator(mode="after")
    def _has_fitting_entries(self) -> Self:
        for name in self.evidence.entries:
            with self._within("evidence", "entries", name, "changes"):
                self.entry(name)
        return self


class MultistageRecipe(Recipe):
    """Compares one network, networks for stages, and one encoder with a decoder for each stage."""

    experiment: ClassVar[Experiment] = Experiment.MULTISTAGE

    groups: None = None
    allocation: None = None
    prune: None = None
    finetune: None = None
    multistage: MultistageOptions
    curriculum: None = None
    evidence: None = None
    evaluation: EvaluationOptions

    @model_validator(mode="after")
    def _trains_what_it_compares(self) -> Self:
        if self.base.model is None and "tailored" in self.multistage.networks:
            raise InputError(
                "A multistage section with tailored decoders needs a base with a model to train from scratch."
            )
        if self.base.train.timestep_sampler != "uniform":
            raise InputError("A multistage section needs timestep_sampler uniform; its draw says how stages are drawn.")
        if self.base.train.loss_weight != "none":
            raise InputError("A multistage section needs loss_weight none; its losses are not weighed.")
        _check_unconditional(self.base.train)
        _check_looks(self.multistage.looks, self.base.train)
        self._check_widths()
        if self.base.model is not None:
            for place, grouping in enumerate(self.multistage.groupings):
                grouping.check_number_of_timesteps(self.base.schedule.num_timesteps, f"multistage.groupings.{place}")
        return self

    def _check_widths(self) -> None:
        """Refuse decoders of another depth than the network's; whether their widths fit is found when they are built."""
        own = (self.base.model or {}).get("config", {}).get("block_out_channels")
        for widths in self.multistage.widths:
            if not widths or (isinstance(own, list) and len(widths) != len(own)):
                depth = (
                    f"{len(own)} widths, as block_out_channels has" if isinstance(own, list) else "one or more widths"
                )
                raise InputError(f"Got decoder widths {list(widths)} in multistage.widths; expected {depth}.")


def _check_looks(looks: int, train: TrainOptions) -> None:
    """Refuse more points on a learning curve than train steps."""
    if looks > train.steps:
        raise InputError(f"Got {looks} looks and {train.steps} train steps; expected at most one look a step.")


class CurriculumRecipe(Recipe):
    """Compares ways to train one network."""

    experiment: ClassVar[Experiment] = Experiment.CURRICULUM
    from_scratch: ClassVar[bool] = True

    groups: None = None
    allocation: None = None
    prune: None = None
    finetune: None = None
    multistage: None = None
    curriculum: CurriculumOptions
    evidence: None = None
    evaluation: EvaluationOptions

    @model_validator(mode="after")
    def _has_fitting_entries(self) -> Self:
        for name in self.curriculum.entries:
            with self._within("curriculum", "entries", name):
                _check_unconditional(self.curriculum.setting(name, self.base.train))
        _check_looks(self.curriculum.looks, self.base.train)
        return self


def _check_unconditional(train: TrainOptions) -> None:
    """Refuse options that hide conditions, since these comparisons have none."""
    if train.label_dropout or train.condition_dropout:
        raise InputError(
            "Got label_dropout or condition_dropout for a comparison of networks without conditions; expected neither."
        )


def _merged(data: JsonDict, changes: Mapping[Any, Any], section: object) -> JsonObject:
    """A section's data in which the values of ``changes`` replace its own; mappings that are values are replaced as a whole."""
    merged = dict(data)
    for key, value in changes.items():
        inner = getattr(section, str(key), None)
        has_keys = is_dataclass(inner) or isinstance(inner, BaseModel)
        merged[key] = _merged(merged[key], value, inner) if has_keys and isinstance(value, Mapping) else value
    return merged
