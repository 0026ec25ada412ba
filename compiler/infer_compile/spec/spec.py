"""The spec: what a user asks for. Only ``model`` and ``target`` are required; every default is stated here.

A name is accepted here only when this version serves it end to end; ``spec/unserved.py`` knows the names and
keys of the language that are still to come, so that these are refused by name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from .fields import Count, NotNegative, Positive, Strict, Text
from .pin import Pin as Pin

DEFAULT_CONTEXT = 4096
DEFAULT_PORT = 8000
NAME_PATTERN = r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$"


def _no_draft(value: Any) -> Any:
    if isinstance(value, str) and value != "none":
        raise PydanticCustomError(
            "IC009",
            "a draft model is not served by this version",
            {"because": "no method of speculation is", "fix": "remove draft"},
        )
    return value


class Model(Strict):
    source: Annotated[
        Text,
        Field(
            description="hf://organisation/name, a folder (relative to the spec), or a name of the catalog",
            examples=["hf://meta-llama/Llama-3.1-8B-Instruct", "models/quickstart"],
        ),
    ]
    revision: Annotated[
        Text | None, Field(description="commit, tag or branch of an hf:// source; default: its main branch")
    ] = None
    draft: Annotated[
        Literal["none"],
        BeforeValidator(_no_draft, json_schema_input_type=Literal["none"]),
        Field(description="model that drafts for speculation"),
    ] = "none"

    @field_validator("source")
    @classmethod
    def _source(cls, source: str) -> str:
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


class Cost(Strict):
    usd_per_hour: Annotated[NotNegative | None, Field(description="price of the whole target per hour")] = (
        None
    )
    api_usd_per_million_tokens: Annotated[
        NotNegative | None, Field(description="price of a hosted service to compare with")
    ] = None


class Serving(Strict):
    port: Annotated[int, Field(ge=1, le=65535, description="TCP port of the server")] = DEFAULT_PORT


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

    @property
    def targets(self) -> tuple[DeviceGroup, ...]:
        """``target`` in its long form, one entry per candidate."""
        if isinstance(self.target, DeviceGroup):
            return (self.target,)
        names = (self.target,) if isinstance(self.target, str) else self.target
        return tuple(DeviceGroup(device=name) for name in names)
