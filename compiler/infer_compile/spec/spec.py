"""The spec: what a user asks for. Only ``model`` and ``target`` are required; every default is stated here.

A name is accepted here only when some engine of the catalog serves it; ``spec/unserved.py`` knows the names
and keys of the language that are still to come, so that these are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from posixpath import normpath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from ..catalog.engines import load_engines
from ..runtime.formats.program import Overflow
from .fields import Count, NotNegative, Positive, Strict, Text
from .pin import Pin as Pin

DEFAULT_CONTEXT = 4096
DEFAULT_PORT = 8000
NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"


def _source(source: str) -> str:
    """``source`` if it can name a model: a folder, a name of the catalog, or a repository of the hub."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return source
    if scheme != "hf":
        raise PydanticCustomError(
            "IC009",
            'sources of the kind "{scheme}://" are not served by this version',
            {"scheme": scheme, "fix": "source: hf://organisation/name, or a folder"},
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", rest):
        raise PydanticCustomError(
            "IC007",
            '"{source}" does not name a model of the hub',
            {"source": source, "fix": "source: hf://organisation/name"},
        )
    return source


class Model(Strict):
    source: Annotated[
        Text,
        AfterValidator(_source),
        Field(
            description="hf://organisation/name, a folder (relative to the spec), or a name of the catalog",
            examples=["hf://meta-llama/Llama-3.1-8B-Instruct", "models/quickstart"],
        ),
    ]
    revision: Annotated[
        Text | None, Field(description="commit, tag or branch of an hf:// source; default: its main branch")
    ] = None
    draft: Annotated[
        Text,
        AfterValidator(_source),
        Field(
            description="model that drafts for speculation, or heads of the model that do: auto (one that is "
            "known to suit, where it pays), none, or a source",
            examples=["auto", "none", "hf://meta-llama/Llama-3.2-1B-Instruct"],
        ),
    ] = "auto"

    @field_validator("revision")
    @classmethod
    def _revision(cls, revision: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source", "hf://")
        if revision is not None and not source.startswith("hf://"):
            raise PydanticCustomError(
                "IC012",
                'a revision needs an hf:// source, and "{source}" is not one',
                {"source": source, "fix": "remove revision"},
            )
        return revision


class DeviceGroup(Strict):
    """So many devices of one kind in each of so many machines."""

    device: Annotated[Text, Field(description="a name in targets/, a target file, or this-machine")]
    count: Annotated[Count, Field(description="devices in one machine")] = 1
    nodes: Annotated[Count, Field(description="machines")] = 1


def _form(value: Any) -> str | None:
    """Which of the forms of ``target`` this is, by the type of the value."""
    forms = ((str, "<name>"), ((list, tuple), "<list>"), ((dict, DeviceGroup), "<group>"))
    return next((form for kinds, form in forms if isinstance(value, kinds)), None)


TargetChoice = Annotated[
    Annotated[Text, Tag("<name>")]
    | Annotated[tuple[Text, ...], Field(min_length=1, strict=False), Tag("<list>")]
    | Annotated[DeviceGroup, Tag("<group>")],
    Discriminator(
        _form,
        custom_error_type="target_form",
        custom_error_message="not a target",
    ),
]


class Workload(Strict):
    """What the deployment has to carry; tokens are those of the model's tokenizer."""

    context_tokens: Annotated[
        Count, Field(description="longest sequence served: prompt and answer together")
    ] = DEFAULT_CONTEXT
    input_tokens: Annotated[Count, Field(description="typical prompt; default: half the context")] = Field(
        default_factory=lambda data: max(1, data.get("context_tokens", DEFAULT_CONTEXT) // 2)
    )
    output_tokens: Annotated[
        Count, Field(description="typical answer; default: an eighth of the context")
    ] = Field(default_factory=lambda data: max(1, data.get("context_tokens", DEFAULT_CONTEXT) // 8))
    requests_per_second: Annotated[
        Positive | None, Field(description="arrivals of an open load; instead of concurrency")
    ] = None
    concurrency: Annotated[
        Count | None,
        Field(
            description="sequences in flight at once; default: 1, or what requests_per_second brings about"
        ),
    ] = Field(default_factory=lambda data: 1 if data.get("requests_per_second") is None else None)

    @field_validator("concurrency")
    @classmethod
    def _one_load(cls, concurrency: int | None, info: ValidationInfo) -> int | None:
        if concurrency is not None and info.data.get("requests_per_second") is not None:
            raise PydanticCustomError(
                "IC011",
                "concurrency and requests_per_second cannot both be given",
                {
                    "because": "with an open load the concurrency follows from the rate and the speed",
                    "fix": "keep one of the two",
                },
            )
        return concurrency

    def model_post_init(self, context: Any) -> None:
        """Refuse a prompt and an answer that do not fit the context, stated or by default."""
        needed = self.input_tokens + self.output_tokens
        if needed > self.context_tokens:
            raise PydanticCustomError(
                "IC010",
                "input_tokens {input} and output_tokens {output} do not fit context_tokens {context}",
                {
                    "input": self.input_tokens,
                    "output": self.output_tokens,
                    "context": self.context_tokens,
                    "at": "output_tokens",
                    "because": f"together they are {needed}"
                    + (
                        ""
                        if {"input_tokens", "output_tokens", "context_tokens"} <= self.model_fields_set
                        else "; what is not stated takes its default"
                    ),
                    "fix": f"context_tokens: {needed}, or a shorter prompt or answer",
                },
            )


class Slo(Strict):
    """Limits that the plan must keep; each optional."""

    ttft_ms: Annotated[Positive | None, Field(description="time to the first token, milliseconds")] = None
    itl_ms: Annotated[Positive | None, Field(description="time between tokens, milliseconds")] = None
    tokens_per_second: Annotated[
        Positive | None, Field(description="generated tokens of all sequences together per second")
    ] = None


class Quality(Strict):
    max_loss_percent: Annotated[
        NotNegative | None,
        Field(description="perplexity over that of the model in bf16 with a bf16 cache, minus one, percent"),
    ] = None
    calibration: Annotated[
        Text | None,
        Field(
            description="text that calibrated cache levels are computed on, .txt or .jsonl, relative to the "
            "spec; default: one that comes with infer-compile"
        ),
    ] = None
    evaluation: Annotated[
        Text | None,
        Field(
            description="text that max_loss_percent is held on, .txt or .jsonl, relative to the spec; "
            "default: one that comes with infer-compile"
        ),
    ] = None

    @field_validator("evaluation")
    @classmethod
    def _disjoint(cls, evaluation: str | None, info: ValidationInfo) -> str | None:
        calibration = info.data.get("calibration")
        if evaluation and calibration and normpath(evaluation) == normpath(calibration):
            raise PydanticCustomError(
                "IC019",
                "calibration and evaluation are the same text",
                {
                    "because": "a loss on the text that a cache was fitted to says little of any other",
                    "fix": "name another text, or remove evaluation",
                },
            )
        return evaluation


def _price_form(value: Any) -> str | None:
    forms = (((int, float), "<price>"), (dict, "<prices>"))
    fits = (form for kinds, form in forms if isinstance(value, kinds) and not isinstance(value, bool))
    return next(fits, None)


Price = Annotated[
    Annotated[Positive, Tag("<price>")]
    | Annotated[Mapping[Text, Positive], Field(min_length=1), Tag("<prices>")],
    Discriminator(_price_form, custom_error_type="price_form", custom_error_message="not a price"),
]


class Cost(Strict):
    usd_per_hour: Annotated[
        Price | None,
        Field(description="price of the whole target per hour; {target: price} where several are listed"),
    ] = None
    api_usd_per_million_tokens: Annotated[
        Positive | None, Field(description="price of a hosted service to compare with")
    ] = None
    usd_per_kwh: Annotated[Positive | None, Field(description="price of electricity")] = None

    def hourly(self, device: str) -> float | None:
        """USD per hour of the target with ``device``, as the spec names it; None where no price is given."""
        price = self.usd_per_hour
        return price.get(device) if isinstance(price, Mapping) else price


class Shadow(Strict):
    """Finished answers that the server checks against an exact cache while nobody waits for one."""

    fraction: Annotated[
        float, Field(ge=0, le=1, allow_inf_nan=False, description="of the answers, drawn at random")
    ]
    tokens: Annotated[
        Count | None,
        Field(
            description="longest answer that is checked, its prompt included; pages for one are set aside; "
            "default: the typical prompt and answer"
        ),
    ] = None


class Serving(Strict):
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port of the server")] = DEFAULT_PORT
    overflow: Annotated[
        Overflow,
        Field(
            description="what becomes of a sequence that reaches context_tokens: stop ends it; evict goes on "
            "without its oldest tokens, the first ones aside, and says how many it dropped"
        ),
    ] = "stop"
    shadow: Annotated[
        Shadow | None,
        Field(description="measures in production what the cache costs; default: nothing is checked"),
    ] = None
    traces: Annotated[
        bool,
        Field(
            description="OpenTelemetry, a span for each request: the bundle takes its packages along; "
            "default: only where they are installed and OTEL_EXPORTER_OTLP_ENDPOINT is set"
        ),
    ] = False


def _bundle_name(value: str) -> str:
    if not re.fullmatch(NAME_PATTERN, value):
        raise PydanticCustomError(
            "IC007",
            '"name" cannot be "{value}"',
            {
                "value": value,
                "because": "a name has up to 63 lower-case letters, digits, dots and hyphens, "
                "and a letter or digit at each end",
            },
        )
    return value


class Spec(Strict):
    """A deployment, declared."""

    api_version: Annotated[Literal["infer-compile/v1"], Field(alias="apiVersion")] = "infer-compile/v1"
    name: Annotated[
        str,
        AfterValidator(_bundle_name),
        Field(
            description="names the bundle; default: the name of the spec's file",
            json_schema_extra={"pattern": NAME_PATTERN},
        ),
    ] = "deployment"
    model: Model
    target: Annotated[
        TargetChoice,
        Field(
            description="a name in targets/, a file, or this-machine; a list of names ranks them; "
            "{device, count, nodes} is several of one device"
        ),
    ]
    workload: Workload = Workload()
    slo: Slo = Slo()
    quality: Quality = Quality()
    objective: Annotated[
        Literal["latency", "throughput", "cost", "capacity"],
        Field(description="what to favour among the plans that keep every limit"),
    ] = "throughput"
    cost: Cost = Cost()
    pin: Pin = Pin()
    serving: Serving = Serving()

    @field_validator("slo")
    @classmethod
    def _reachable(cls, slo: Slo, info: ValidationInfo) -> Slo:
        """Sequences cannot generate more than arrives to be answered."""
        load = info.data.get("workload")
        if load is None or load.requests_per_second is None or slo.tokens_per_second is None:
            return slo
        most = load.requests_per_second * load.output_tokens
        if slo.tokens_per_second > most:
            raise PydanticCustomError(
                "IC016",
                "{asked} tokens per second cannot be generated for this load",
                {
                    "asked": f"{slo.tokens_per_second:g}",
                    "at": "tokens_per_second",
                    "because": f"{load.requests_per_second:g} requests per second with answers of "
                    f"{load.output_tokens} tokens are {most:g} tokens per second",
                    "fix": f"tokens_per_second: {most:g}, or a load that brings more",
                },
            )
        return slo

    @field_validator("cost")
    @classmethod
    def _priced(cls, cost: Cost, info: ValidationInfo) -> Cost:
        """Prices are those of the targets."""
        target, prices = info.data.get("target"), cost.usd_per_hour
        if target is None or not isinstance(prices, Mapping):
            return cost
        names = _devices(target)
        if stray := [name for name in prices if name not in names]:
            raise PydanticCustomError(
                "IC017",
                'a price is given for "{stray}", which is no target of the spec',
                {
                    "stray": stray[0],
                    "at": f"usd_per_hour.{stray[0]}",
                    "because": f"its targets are {', '.join(names)}",
                    "fix": "remove the price, or add the target",
                },
            )
        return cost

    @field_validator("pin")
    @classmethod
    def _agrees(cls, pin: Pin, info: ValidationInfo) -> Pin:
        """What is pinned agrees with the model's draft and with the machines."""
        model, target = info.data.get("model"), info.data.get("target")
        if (
            pin.speculation is not None
            and pin.speculation.method == "draft"
            and model
            and model.draft == "none"
        ):
            raise PydanticCustomError(
                "IC015",
                "speculation: draft needs a draft model, and model.draft is none",
                {"at": "speculation", "fix": "model: {draft: auto}, or another method"},
            )
        if pin.engine is not None and isinstance(target, DeviceGroup) and target.nodes > 1:
            engines = load_engines()
            if not engines.of(pin.engine).nodes:
                several = " or ".join(engine.name for engine in engines.engines if engine.nodes)
                raise PydanticCustomError(
                    "IC014",
                    'several machines are not served by engine "{engine}"',
                    {"engine": pin.engine, "at": "engine", "fix": f"nodes: 1, or engine: {several}"},
                )
        return pin

    @property
    def targets(self) -> tuple[DeviceGroup, ...]:
        """``target`` in its long form, one entry per candidate."""
        if isinstance(self.target, DeviceGroup):
            return (self.target,)
        return tuple(DeviceGroup(device=name) for name in _devices(self.target))


def _devices(target: str | tuple[str, ...] | DeviceGroup) -> tuple[str, ...]:
    """The devices that a target names."""
    if isinstance(target, DeviceGroup):
        return (target.device,)
    return (target,) if isinstance(target, str) else target
