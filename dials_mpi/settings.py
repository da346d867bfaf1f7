"""The base of all settings: those of the package and those of a domain."""

from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError


class Settings(BaseModel):
    """Unknown keys are refused, and so are true and false where a number is asked for: YAML reads `yes` as true."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    settled: ClassVar[tuple[str, ...]] = ()
    """Names of those that are null until a run is made, and then its number of steps for ever."""

    def check(self, domain) -> None:
        """Raises UserError if they do not go together with the domain of the run."""

    def remark(self, section: str, steps: int) -> str | None:
        """What is to be said of them, under that name, when a run of so many steps goes on."""
        return None

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        types = _types(cls.model_fields[info.field_name].annotation)
        if bool not in types and (int in types or float in types) and _holds_boolean(value):
            raise PydanticKnownError("int_type" if int in types else "float_type")
        return value


def _types(annotation: Any) -> list[Any]:
    """What an annotation is made of: int and NoneType of `int | None`."""
    parts = get_args(annotation)
    return [leaf for part in parts for leaf in _types(part)] if parts else [annotation]


def _holds_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_boolean, value)))
