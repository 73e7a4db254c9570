"""The base class of all results: what is read is checked strictly, and what is written is what was set."""

from collections.abc import Mapping
from typing import Self, cast, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, JsonValue
from pydantic_core import CoreSchema, core_schema

from prunekit._json import AGAIN, parsed

__all__ = ["Checked", "Free", "Is", "JsonValue", "Model", "NotNull", "plain"]

Free = dict[str, JsonValue]
"""An object with any keys, such as the arguments of a network's class."""


class Model(BaseModel):
    """A result that is stored as JSON.

    Nothing is converted: a text that looks like a number is refused, and a whole number stays one where any number is expected.
    Unknown keys are kept, so that a file of a later version loses nothing when it is copied.
    """

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, protected_namespaces=())

    @classmethod
    def of(cls, data: object, what: str, mend: str = AGAIN) -> Self:
        """Read JSON; a model of this class is returned unchanged.

        Args:
            data: what :func:`prunekit._json.parse_json` returns.
            what: where it comes from, as error messages name it.
            mend: how to get good data, as the end of a sentence.

        Raises:
            FileFormatError: a key is missing, or a value is of another type or out of its range.
        """
        return data if isinstance(data, cls) else parsed(cls, data, what, mend)

    @classmethod
    def joined(cls, *parts: "Model", **fields: object) -> Self:
        """An object with the fields that are set in several parts, and more."""
        found = {name: getattr(part, name) for part in parts for name in part.model_fields_set}
        return cls.model_validate({**found, **fields})

    def to_json(self) -> dict[str, object]:
        """What is written: the keys that were set, in the order in which the class lists them, then unknown keys."""
        return self.model_dump(exclude_unset=True, by_alias=True, warnings=False)


def plain(data: Mapping[str, object]) -> Free:
    """An object as JSON holds it: without tuples."""
    return cast(Free, {key: _plain(value) for key, value in data.items()})


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return plain(value)
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


class Checked:
    """An object that is checked against a model but kept as it is, with its keys in their order.

    Args:
        form: the model.
    """

    def __init__(self, form: type[Model]) -> None:
        self.form = form

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def unchanged(value: object, check: core_schema.ValidatorFunctionWrapHandler) -> object:
            check(value)
            return value

        return core_schema.no_info_wrap_validator_function(
            unchanged,
            handler.generate_schema(self.form),
            serialization=core_schema.plain_serializer_function_ser_schema(_itself),
        )


def _itself(value: object) -> object:
    return value


class NotNull:
    """For ``Annotated[X | None, NotNull()] = None``: the key may be missing, but its value is not null."""

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        (form,) = (part for part in get_args(source) if part is not type(None))
        return handler.generate_schema(form)


class Is:
    """A text that is always the same, such as the name of a format.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.literal_schema([self.text])
