"""A recipe: which sections there are, and what they need of each other."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from prunekit.errors import InputError
from prunekit.recipe.bounds import unsafe_values
from prunekit.recipe.comparisons import CurriculumOptions, EvidenceOptions, MultistageOptions
from prunekit.recipe.endpoints import Confirmation, asked_for, check_confirmed, confirmed, typed_options
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
    """A whole experiment. Stages whose section is absent are not run.

    A recipe may come from a stranger. It can have data and checkpoints read, has everything written into its run's folder, and
    reaches a language model's endpoint only after :meth:`confirming`.
    """

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
    _confirmed: tuple[Confirmation, ...] = PrivateAttr(default=())

    @property
    def unconfirmed(self) -> tuple[Confirmation, ...]:
        """Endpoints that it asks for, its entries' included, and that nobody has confirmed: URL and key variable of each."""
        entries = [self.entry(name).prune for name in self.evidence.entries] if self.evidence else []
        return tuple(dict.fromkeys(asked_for([self.prune, *entries])))

    def confirming(self, *endpoints: Confirmation) -> "Recipe":
        """The same recipe, which may reach these endpoints.

        Args:
            endpoints: URL and key variable (None for no key) of each, exactly as the recipe gives them.

        Raises:
            InputError: the recipe asks for another one, or for none.

        Example:
            >>> recipe = Recipe.model_validate({"name": "mine", "base": {"checkpoint": "base.pt"}})
            >>> recipe.confirming().unconfirmed
            ()
        """
        asked = self.unconfirmed
        if other := [endpoint for endpoint in endpoints if endpoint not in (*asked, *self._confirmed)]:
            wanted = f"asks for {typed_options(asked)}" if asked else "asks for no endpoint"
            raise InputError(
                f"Got {typed_options(other)}, but the recipe {self.name} {wanted}; expected exactly what the recipe says."
            )
        return self._trusting((*self._confirmed, *endpoints))

    def check_confirmed(self) -> None:
        """Refuse to be run while an endpoint is not confirmed.

        Raises:
            InputError: one is not.
        """
        check_confirmed(self.name, self.unconfirmed, self._confirmed)

    def _trusting(self, endpoints: tuple[Confirmation, ...]) -> "Recipe":
        recipe = self.model_copy(update={"prune": confirmed(self.prune, endpoints)})
        recipe._confirmed = endpoints
        return recipe

    def with_base(self, checkpoint: str) -> "Recipe":
        """The same with a base that is trained already.

        Raises:
            InputError: the recipe's other sections need one that they train.
        """
        data = self.model_dump(mode="json")
        data["base"] |= {"checkpoint": checkpoint, "model": None, "noise_schedule": None, "prediction_type": None}
        try:
            return Recipe.model_validate(data)._trusting(self._confirmed)
        except ValidationError as error:
            said = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
            raise InputError(f"The recipe {self.name} does not take a trained base: {said}.") from error

    @model_validator(mode="before")
    @classmethod
    def _is_safe(cls, data: Any) -> Any:
        """No key has a value that could only do harm, see :func:`prunekit.recipe.bounds.unsafe_values`."""
        for place, said in unsafe_values(data):
            fault = PydanticCustomError("unsafe_value", "{said}", {"said": said})
            raise ValidationError.from_exception_data("Recipe", [InitErrorDetails(type=fault, loc=place, input=None)])
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
        merged = _merged(data, self.evidence.entries[name].changes)
        return Recipe.model_validate(merged)._trusting(self._confirmed)


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
