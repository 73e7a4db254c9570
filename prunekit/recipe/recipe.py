"""A recipe: its sections, and the checks that all kinds of recipes share.

Validating data as a :class:`Recipe` gives one of the classes in :mod:`prunekit.recipe.models`, which say what each kind needs.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from prunekit._json import JsonObject
from prunekit.allocation import check_leaves_cleanest
from prunekit.choices import LocalTracker
from prunekit.errors import InputError
from prunekit.experiments import Experiment
from prunekit.recipe.base_sections import BaseOptions, DataOptions
from prunekit.recipe.bounds import misread_values, unsafe_values
from prunekit.recipe.comparisons import CurriculumOptions, EvidenceOptions, MultistageOptions
from prunekit.recipe.endpoints import Confirmation, asked_for, check_confirmed, confirmed, typed_options
from prunekit.recipe.faults import Place, explain, fault
from prunekit.recipe.planning_sections import AllocationOptions, GroupOptions, PruneOptions
from prunekit.recipe.schema import schema_of
from prunekit.recipe.tracking_options import TrackingOptions
from prunekit.recipe.tuning_sections import EvaluationOptions, FinetuneOptions

__all__ = ["MODELS", "Recipe", "recipe_model"]

MODELS: dict[Experiment, type["Recipe"]] = {}
"""The recipe model of every kind; they are defined in :mod:`prunekit.recipe.models`."""


class Recipe(BaseModel):
    """A whole experiment; its sections decide of which kind.

    A recipe may come from a stranger. It can name data and checkpoints to read, writes only into its run's folder, and
    contacts a language model's endpoint only after the user has confirmed it.

    Args:
        name: name of the run, in its folder's path and in reports: lower-case letters, digits and hyphens.
        description: what the recipe is for, in a sentence; reports show it.
        data: the images.
        base: the network from which experts are made, or which comparisons train.
        groups: how the timesteps are cut into groups.
        allocation: how much compute each group gets.
        prune: how each group's network is pruned.
        finetune: how each pruned network is trained.
        multistage: compares networks for stages.
        curriculum: compares ways to train.
        evidence: compares experts with baselines and ablations.
        evaluation: what is measured at the end.
        tracking: what follows trainings and keeps samples.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    experiment: ClassVar[Experiment] = Experiment.BASE
    from_scratch: ClassVar[bool] = False
    """Whether it needs a base with a model to train."""

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
    tracking: Annotated[TrackingOptions | None, Field(exclude=True)] = None  # decides no result, so it is in no record
    _confirmed: tuple[Confirmation, ...] = PrivateAttr(default=())

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """Enter a class into :data:`MODELS` if it names its kind of experiment."""
        if "experiment" in cls.__dict__:
            MODELS[cls.experiment] = cls

    @property
    def unconfirmed(self) -> tuple[Confirmation, ...]:
        """Endpoints that the recipe or its entries ask for and that are not confirmed: URL and key variable of each."""
        return tuple(dict.fromkeys(asked_for(self._prune_sections())))

    def _prune_sections(self) -> list[PruneOptions | None]:
        return [self.prune]

    def confirming(self, *endpoints: Confirmation) -> "Recipe":
        """The same recipe with these endpoints confirmed.

        Args:
            endpoints: URL and key variable (None for no key) of each, exactly as the recipe gives them.

        Raises:
            InputError: the recipe does not ask for one of these endpoints.

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
        """Refuse a recipe with an endpoint that is not confirmed.

        Raises:
            InputError: an endpoint is not confirmed.
        """
        check_confirmed(self.name, self.unconfirmed, self._confirmed)

    def _trusting(self, endpoints: tuple[Confirmation, ...]) -> Self:
        recipe = self.model_copy(update={"prune": confirmed(self.prune, endpoints)})
        recipe._confirmed = endpoints
        return recipe

    def with_base(self, checkpoint: str) -> "Recipe":
        """The same recipe with a base that is already trained.

        Raises:
            InputError: the recipe's other sections need a base that the run trains.
        """
        data = self.model_dump(mode="json")
        data["tracking"] = self.tracking
        data["base"] |= {"checkpoint": checkpoint, "model": None, "noise_schedule": None, "prediction_type": None}
        try:
            return Recipe.model_validate(data)._trusting(self._confirmed)
        except ValidationError as error:
            said = self.explain(error)[1].rstrip(".")
            raise InputError(f"The recipe {self.name} does not take a trained base: {said}.") from error

    def tracked_by(self, report_to: str) -> Self:
        """The same recipe with these trackers of accelerate, names with commas between; also with ones that use the network."""
        return self.model_copy(update={"tracking": TrackingOptions(cast(LocalTracker, report_to))})

    def only(self, *sections: str) -> "Recipe":
        """The recipe with only these sections besides its data and base."""
        kept = {name: getattr(self, name) for name in ("name", "description", "data", "base", "tracking", *sections)}
        return Recipe.model_validate(kept)._trusting(self._confirmed)

    def deciding(self, sections: Iterable[str]) -> JsonObject:
        """The options in these sections that influence results, JSON-able, for the keys of stages.

        Options at their defaults are left out, so that an option added later changes no key.
        How often trainings save their state, and stated shapes, are left out too.
        """
        found = self.model_dump(mode="json", include=set(sections), exclude_defaults=True)
        if isinstance(data := found.get("data"), dict):
            data.pop("shapes", None)
        kept: JsonObject = _without(found, "checkpoint_minutes")
        return kept

    @classmethod
    def explain(cls, error: ValidationError, within: Place = ()) -> tuple[Place, str]:
        """The place and the sentence of an error in a recipe of this kind, or in the value at a place ``within`` one."""
        return explain(error, schema_of(cls), cls.needs(), within)

    @classmethod
    def needs(cls) -> str:
        """The sentence, without its full stop, that says which sections this kind needs; empty if it needs none."""
        own = cls.experiment.sections
        every = {name: field for name, field in cls.model_fields.items() if name not in ("name", "base", *own)}
        needed = [name for name, field in every.items() if field.is_required()]
        refused = [name for name, field in every.items() if field.annotation is type(None)]
        if not (own and needed and refused):
            return ""
        base = "a base with a model to train, and " if cls.from_scratch else ""
        return (
            f"{_article(own[0]).capitalize()} {own[0]} section needs {base}{_listed(needed, 'and')}, without "
            f"{_listed(refused, 'or')}"
        )

    @classmethod
    @contextmanager
    def _within(cls, *place: str) -> Iterator[None]:
        """Within the block, errors get an entry's name and place; ``place`` begins with section, ``entries``, name."""
        name = place[2]
        try:
            yield
        except InputError as error:
            raise fault(place, str(error)) from error
        except ValidationError as error:
            inner, said = cls.explain(error, place)
            raise fault(
                (*place, *inner), ": ".join(filter(None, (f"Entry {name}", ".".join(map(str, inner)), said)))
            ) from error

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, data: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        """``Recipe.model_validate`` makes a recipe of the kind that the data asks for."""
        if cls is not Recipe or isinstance(data, Recipe):
            return handler(data)
        return recipe_model(data).model_validate(data)

    @model_validator(mode="before")
    @classmethod
    def _is_safe(cls, data: object) -> object:
        """Refuse values that could only do harm or would be misread, see :mod:`prunekit.recipe.bounds`."""
        for place, said in (*unsafe_values(data), *misread_values(data, schema_of(cls))):
            raise fault(place, said)
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        """Refuse sections that contradict each other in a recipe of any kind."""
        measured = self.allocation is not None and self.allocation.rule == "measured"
        if measured and (self.prune is None or self.prune.search.target_of != "macs"):
            raise InputError("Allocation rule measured needs a prune section whose search has target_of macs.")
        if self.allocation and self.groups and self.groups.experts == "noisy":
            check_leaves_cleanest(self.allocation.rule)
        if self.allocation and self.allocation.recoveries and self.finetune and self.finetune.from_scratch:
            raise InputError(
                "Got allocation.recoveries and finetune.from_scratch; expected one of the two, since recoveries train pruned "
                "weights."
            )
        if self.finetune and self.finetune.share_steps and not (self.allocation and self.allocation.sensitivity):
            raise InputError("Got finetune.share_steps without allocation.sensitivity; expected both.")
        tuned = self.finetune.groups if self.finetune else None
        if tuned is not None and self.groups and (not tuned or max(tuned) >= self.groups.number):
            raise InputError(
                f"Got finetune.groups {list(tuned)} and {self.groups.number} groups; expected one or more of 0 to "
                f"{self.groups.number - 1}."
            )
        rates = self.finetune.learning_rates if self.finetune else None
        if rates is not None and self.groups and len(rates) != self.groups.number:
            raise InputError(
                f"Got {len(rates)} finetune.learning_rates and {self.groups.number} groups; expected one for each group."
            )
        known = self.base.model is not None or self.base.noise_schedule is not None
        if known and self.groups:
            self.groups.check_number_of_timesteps(self.base.schedule.num_timesteps, "groups")
        if self.from_scratch and self.base.model is None:
            raise InputError(f"{self.needs()}; got a base with a checkpoint.")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, object]:
        """One schema with every section and what each kind needs, so that editors complete a recipe from its first line."""
        schema = handler(core)
        if cls is Recipe:
            handler.resolve_ref_schema(schema)["allOf"] = [model._rule() for model in MODELS.values() if model.needs()]
        return schema

    @classmethod
    def _rule(cls) -> dict[str, object]:
        """The sections that a recipe of this kind needs, as if and then of JSON Schema."""
        there: JsonObject = {name: {"not": {"type": "null"}} for name in cls.experiment.sections}
        required = [name for name, field in cls.model_fields.items() if field.is_required() and name not in there]
        refused = [name for name, field in cls.model_fields.items() if field.annotation is type(None)]
        then: dict[str, object] = {name: {"type": "null"} for name in refused}
        if cls.from_scratch:
            then["base"] = {"required": ["model"]}
        return {"if": {"required": [*there], "properties": there}, "then": {"required": required, "properties": then}}


def recipe_model(data: object) -> type[Recipe]:
    """The model of the kind of recipe that some data asks for."""
    return MODELS[Experiment.asked_for(data) if isinstance(data, Mapping) else Experiment.BASE]


def _article(name: str) -> str:
    return "an" if name[0] in "aeiou" else "a"


def _listed(names: list[str], last: str) -> str:
    """List sections in words."""
    if len(names) == 1:
        return f"{_article(names[0])} {names[0]} section"
    return f"{', '.join(names[:-1])} {last} {names[-1]} sections"


def _without(data: Any, name: str) -> Any:
    """Nested mappings without a key, at any depth."""
    if isinstance(data, Mapping):
        return {key: _without(value, name) for key, value in data.items() if key != name}
    return [_without(value, name) for value in data] if isinstance(data, list) else data
