"""A recipe: which sections there are, and what they need of each other."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prunekit.errors import InputError
from prunekit.recipe.comparisons import CurriculumOptions, EvidenceOptions, MultistageOptions
from prunekit.recipe.sections import (
    AllocationOptions,
    BaseOptions,
    DataOptions,
    EvaluationOptions,
    FinetuneOptions,
    GroupOptions,
    PruneOptions,
)

__all__ = ["Recipe"]


class Recipe(BaseModel):
    """A whole experiment. Stages whose section is absent are not run."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    description: str = ""
    data: DataOptions = DataOptions()
    base: BaseOptions
    groups: GroupOptions | None = None
    allocation: AllocationOptions | None = None
    prune: PruneOptions | None = None
    finetune: FinetuneOptions | None = None
    multistage: MultistageOptions | None = None
    curriculum: CurriculumOptions | None = None
    evidence: EvidenceOptions | None = None
    evaluation: EvaluationOptions | None = None

    def with_base(self, checkpoint: str) -> "Recipe":
        """The same with a base that is trained already.

        Raises:
            InputError: the recipe's other sections need one that they train.
        """
        data = self.model_dump(mode="json")
        data["base"] |= {"checkpoint": checkpoint, "model": None}
        try:
            return Recipe.model_validate(data)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
            raise InputError(f"The recipe {self.name} does not take a trained base: {said}.") from error

    @model_validator(mode="before")
    @classmethod
    def _finite(cls, data: Any) -> Any:
        """Networks' configs and entries' changes are free-form; what is not finite in them is refused here."""
        if (found := next(_not_finite(data), None)) is not None:
            raise InputError(f"Got {found[0]} {found[1]}; expected a finite number.")
        return data

    @model_validator(mode="after")
    def _can_measure(self) -> "Recipe":
        """Rule ``measured`` has the searches of the prune section decide, which then must be for targets of MACs."""
        if (
            self.allocation
            and self.allocation.rule == "measured"
            and (self.prune is None or self.prune.search.target_of != "macs")
        ):
            raise InputError("Allocation rule measured needs a prune section whose search has target_of macs.")
        rates = self.finetune.learning_rates if self.finetune else None
        if rates is not None and self.groups and len(rates) != self.groups.number:
            raise InputError(
                f"Got {len(rates)} finetune.learning_rates and {self.groups.number} groups; expected one for each group."
            )
        comparisons = [name for name in ("multistage", "curriculum") if getattr(self, name)]
        if comparisons and (self.evaluation is None or self.allocation or comparisons[1:]):
            raise InputError(
                f"A {comparisons[0]} section needs an evaluation section, and no allocation or other comparison."
            )
        if self.base.model is None and (
            self.curriculum or (self.multistage and "tailored" in self.multistage.networks)
        ):
            raise InputError("A curriculum, and tailored decoders, need a base with a model to train from scratch.")
        if self.multistage and self.base.train.timestep_sampler != "uniform":
            raise InputError("A multistage section needs timestep_sampler uniform; its draw says how stages are drawn.")
        if self.curriculum:
            self.curriculum.settings(self.base.train)
        if self.evidence:
            self._check_entries(self.evidence)
        return self

    def _check_entries(self, evidence: EvidenceOptions) -> None:
        sections = (self.base.model, self.groups, self.allocation, self.prune, self.finetune, self.evaluation)
        if any(section is None for section in sections) or self.multistage or self.curriculum:
            raise InputError(
                "An evidence section needs a base with a model to train, groups, allocation, prune, finetune and evaluation, and "
                "no other comparison."
            )
        for name in evidence.entries:
            try:
                self.entry(name)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                message = first["msg"].removeprefix("Value error, ").rstrip(".")
                raise InputError(f"Entry {name}: {where or 'recipe'}: {message}.") from error

    def deciding(self, sections: Iterable[str]) -> dict[str, Any]:
        """What sections say that decides results, JSON-able, for the keys of stages.

        What is as by default is left out, so that an option which is added later changes no key; so is how often trainings
        save their state.
        """
        found = self.model_dump(mode="json", include=set(sections), exclude_defaults=True)
        kept: dict[str, Any] = _without(found, "checkpoint_minutes")
        return kept

    def entry(self, name: str) -> "Recipe":
        """The recipe of an entry of ``evidence``.

        Raises:
            ValidationError: what it changes is none of the recipe's, or does not fit.
        """
        assert self.evidence is not None  # noqa: S101 - asked of such a recipe
        data = self.model_dump(mode="json", exclude={"evidence"})
        return Recipe.model_validate(_merged(data, self.evidence.entries[name].changes))


def _not_finite(data: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number that is NaN or an infinity, and the keys that lead to it."""
    if isinstance(data, float) and not math.isfinite(data):
        yield place, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from _not_finite(value, f"{place}.{key}".lstrip("."))
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _not_finite(value, place)


def _without(data: Any, name: str) -> Any:
    """Nested mappings without a key, wherever it is."""
    if isinstance(data, Mapping):
        return {key: _without(value, name) for key, value in data.items() if key != name}
    return [_without(value, name) for value in data] if isinstance(data, list) else data


def _merged(data: Mapping[str, Any], changes: Mapping[Any, Any]) -> dict[str, Any]:
    """Nested mappings with the values of others in their place."""
    merged = dict(data)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
