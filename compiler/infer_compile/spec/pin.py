"""Pins: decisions that the user takes, by the names that this version serves."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from ..runtime.formats.kv import LEVELS
from ..runtime.formats.weights import GROUPS
from ..runtime.formats.weights import NAMES as WEIGHTS
from .fields import Count, Strict
from .unserved import UNSERVED, served_name


def _served(key: str, names: tuple[str, ...]) -> Any:
    """A name of ``key`` that this version serves; the JSON Schema lists them."""
    return (
        AfterValidator(lambda value: served_name(key, value, names)),
        WithJsonSchema({"type": "string", "enum": list(names)}),
    )


WeightsName = Annotated[str, *_served("weights", WEIGHTS)]
KvName = Annotated[str, *_served("kv", tuple(LEVELS))]
EngineName = Annotated[str, *_served("engine", ("native",))]
SpeculationName = Annotated[str, *_served("speculation", ("none",))]


class WeightsPin(Strict):
    format: WeightsName
    group: Annotated[
        int | None, Field(description="inputs that share a scale, of int8 and int4-rtn; default: chosen")
    ] = None

    @field_validator("group")
    @classmethod
    def _group(cls, group: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("format", "int8")
        if group is not None and name == "bf16":
            raise PydanticCustomError("IC013", 'weights "bf16" has no groups', {"fix": "remove group"})
        if group is not None and group not in GROUPS:
            names = ", ".join(map(str, GROUPS))
            raise PydanticCustomError(
                "IC007",
                '"pin.weights.group" must be one of {names}, not {group}',
                {"names": names, "group": group},
            )
        return group


def _weights_pin(value: Any) -> Any:
    """The short form: a format's name stands for ``{format: name}``."""
    if isinstance(value, str):
        return {"format": value}
    if value is None or isinstance(value, dict | WeightsPin):
        return value
    raise PydanticCustomError("weights_form", "not a pin of weights")


def _speculation_name(value: Any) -> Any:
    """The long form ``{method, tokens}`` belongs to methods still to come: refused by the method's name."""
    method = value.get("method") if isinstance(value, dict) else None
    if isinstance(method, str) and method in UNSERVED["speculation"]:
        return method
    return value


class Parallelism(Strict):
    """Ways to split the model over devices; what is not pinned is chosen."""

    tensor: Count | None = None
    pipeline: Count | None = None
    expert: Count | None = None
    data: Count | None = None


class Pin(Strict):
    """Decisions taken by the user: obeyed, or refused with a reason."""

    weights: Annotated[
        WeightsPin | None,
        BeforeValidator(_weights_pin, json_schema_input_type=WeightsName | WeightsPin | None),
        Field(description="weight format: a name, or {format, group}"),
    ] = None
    kv: Annotated[KvName | None, Field(description="level of the key-value cache")] = None
    engine: Annotated[EngineName | None, Field(description="what runs the model")] = None
    speculation: Annotated[
        SpeculationName | None,
        BeforeValidator(_speculation_name, json_schema_input_type=SpeculationName | None),
        Field(description="how tokens are drafted"),
    ] = None
    parallelism: Annotated[Parallelism | None, Field(description="split over devices")] = None
