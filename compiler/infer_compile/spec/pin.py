"""Pins: decisions that the user takes, by the names that this version serves."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from ..catalog.engines import Engine, Part, load_engines
from .fields import Count, Strict
from .names import ENGINES, GROUPED, GROUPS, KV, SPECULATION, WEIGHTS
from .unserved import NOUNS, served_name


def _served(key: str, names: tuple[str, ...]) -> Any:
    """A name of ``key`` that some engine serves; the JSON Schema lists them."""
    return (
        AfterValidator(lambda value: served_name(key, value, names)),
        WithJsonSchema({"type": "string", "enum": list(names)}),
    )


WeightsName = Annotated[str, *_served("weights", WEIGHTS)]
KvName = Annotated[str, *_served("kv", KV)]
EngineName = Annotated[str, *_served("engine", ENGINES)]
SpeculationName = Annotated[str, *_served("speculation", SPECULATION)]


class WeightsPin(Strict):
    format: WeightsName
    group: Annotated[
        int | None,
        Field(
            description="inputs that share a scale, of the native engine's int8 and int4-rtn; default: chosen"
        ),
    ] = None

    @field_validator("group")
    @classmethod
    def _group(cls, group: int | None, info: ValidationInfo) -> int | None:
        name = info.data.get("format", GROUPED[0])
        if group is not None and name not in GROUPED:
            raise PydanticCustomError(
                "IC013",
                'weights "{name}" have no groups to choose',
                {
                    "name": name,
                    "because": f"{' and '.join(GROUPED)} of the native engine have",
                    "fix": "remove group",
                },
            )
        if group is not None and group not in GROUPS:
            names = ", ".join(map(str, GROUPS))
            raise PydanticCustomError(
                "IC007",
                '"pin.weights.group" must be one of {names}, not {group}',
                {"names": names, "group": group},
            )
        return group


class SpeculationPin(Strict):
    method: SpeculationName
    tokens: Annotated[Count | None, Field(description="tokens drafted in each step; default: chosen")] = None
    width: Annotated[
        Count | None, Field(description="choices for each drafted token, 1 is a chain; default: chosen")
    ] = None

    @field_validator("tokens", "width")
    @classmethod
    def _drafts(cls, count: int | None, info: ValidationInfo) -> int | None:
        if count is not None and info.data.get("method") == "none":
            raise PydanticCustomError(
                "IC015",
                "speculation: none drafts no tokens",
                {"fix": f"remove {info.field_name}, or name a method"},
            )
        return count


def _short(field: str, form: str, kind: type[Strict]) -> Any:
    """The short form, a name, stands for ``{field: name}``."""

    def widen(value: Any) -> Any:
        if isinstance(value, str):
            return {field: value}
        if value is None or isinstance(value, dict | kind):
            return value
        raise PydanticCustomError(form, "not a pin")

    return widen


class Parallelism(Strict):
    """Ways to split the model over devices; what is not pinned is chosen."""

    tensor: Count | None = None
    pipeline: Count | None = None
    expert: Count | None = None
    data: Count | None = None


class Pin(Strict):
    """Decisions taken by the user: obeyed, or refused with a reason."""

    engine: Annotated[EngineName | None, Field(description="what runs the model")] = None
    weights: Annotated[
        WeightsPin | None,
        BeforeValidator(
            _short("format", "weights_form", WeightsPin),
            json_schema_input_type=WeightsName | WeightsPin | None,
        ),
        Field(description="weight format: a name, or {format, group}"),
    ] = None
    kv: Annotated[KvName | None, Field(description="level of the key-value cache")] = None
    speculation: Annotated[
        SpeculationPin | None,
        BeforeValidator(
            _short("method", "speculation_form", SpeculationPin),
            json_schema_input_type=SpeculationName | SpeculationPin | None,
        ),
        Field(description="how tokens are drafted: a name, or {method, tokens, width}"),
    ] = None
    parallelism: Annotated[Parallelism | None, Field(description="split over devices")] = None

    @field_validator("weights")
    @classmethod
    def _weights(cls, weights: WeightsPin | None, info: ValidationInfo) -> WeightsPin | None:
        engine = _pinned(info)
        if weights is not None and engine is not None:
            _serves(engine, "weights", weights.format)
            if weights.group is not None and not engine.architectures.own:
                raise PydanticCustomError(
                    "IC013",
                    'engine "{engine}" has no groups to choose',
                    {
                        "engine": engine.name,
                        "at": "group",
                        "because": "the format fixes what shares a scale",
                        "fix": "remove group, or engine: native",
                    },
                )
        return weights

    @field_validator("kv")
    @classmethod
    def _kv(cls, kv: str | None, info: ValidationInfo) -> str | None:
        engine = _pinned(info)
        if kv is not None and engine is not None:
            _serves(engine, "kv", kv)
        return kv

    @field_validator("speculation")
    @classmethod
    def _speculation(cls, pin: SpeculationPin | None, info: ValidationInfo) -> SpeculationPin | None:
        engine = _pinned(info)
        if pin is not None and pin.method != "none" and engine is not None:
            _serves(engine, "speculation", pin.method)
            if (pin.width or 1) > 1 and not engine.trees:
                raise PydanticCustomError(
                    "IC014",
                    'several choices for a drafted token are not served by engine "{engine}"',
                    {
                        "engine": engine.name,
                        "at": "width",
                        "because": f"{engine.title} is planned to verify chains",
                        "fix": "width: 1, or engine: "
                        + " or ".join(one.name for one in load_engines().engines if one.trees),
                    },
                )
        return pin

    @field_validator("parallelism")
    @classmethod
    def _parallelism(cls, pin: Parallelism | None, info: ValidationInfo) -> Parallelism | None:
        engine = _pinned(info)
        if pin is None or engine is None:
            return pin
        ways = [way for way, count in pin if (count or 1) > 1 and way not in engine.parallelism]
        if ways:
            raise PydanticCustomError(
                "IC014",
                '{ways} parallelism is not served by engine "{engine}"',
                {
                    "ways": " and ".join(ways),
                    "engine": engine.name,
                    "at": ways[0],
                    "because": f"{engine.name} splits a model by {' and '.join(engine.parallelism)}",
                    "fix": f"remove {' and '.join(ways)}, or another engine",
                },
            )
        return pin


def _pinned(info: ValidationInfo) -> Engine | None:
    """The engine that is pinned beside the value; None where none is, or its name is none."""
    name = info.data.get("engine")
    return None if name is None else load_engines().of(name)


def _serves(engine: Engine, part: Part, name: str) -> None:
    served = tuple(engine.needs(part)) or ("none",)
    if name in served:
        return
    others = [other.name for other in load_engines().engines if name in other.needs(part)]
    raise PydanticCustomError(
        "IC014",
        '{noun} "{name}" is not served by engine "{engine}"',
        {
            "noun": NOUNS[part],
            "name": name,
            "engine": engine.name,
            "because": f"{engine.title} serves {', '.join(served)}",
            "fix": f"{part}: {served[-1]}, or engine: {' or '.join(others)}",
        },
    )
