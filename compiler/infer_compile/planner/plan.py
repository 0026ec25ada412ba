"""The plan: every decision of a build, with its reason, and what it is expected to give.

A plan is a value: it is written to plan.json, compared by digest and never changed. Bytes are integers and
exact; other numbers keep four significant digits. Memory is that of one device.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ..catalog.figure import Basis, Frozen
from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.kv import LEVELS, CacheLayout, layer_cache
from ..runtime.formats.latent import LATENT_LEVELS, LatentLayout
from ..runtime.formats.program import Limits, Overflow
from ..runtime.formats.weights import WeightFormat, weight_format
from .measured import Measured


class Inputs(Frozen):
    """sha256 of what was planned on: two plans of equal inputs are equal."""

    spec: str
    graph: str
    target: str


class ModelPart(Frozen):
    name: str
    source: str
    revision: str | None
    architecture: str
    parameters: int


class TargetPart(Frozen):
    """``count`` devices in each of ``nodes`` machines."""

    id: str
    name: str
    kind: Literal["cpu", "gpu", "unified"]
    isa: str | None
    count: int
    nodes: int
    memory_gb: float
    bandwidth_gbs: float
    matrix_tflops: float | None
    """Rate that the matrix products of the chosen weights are reckoned with, 1e12 operations per second."""
    measured: bool


class WeightsPart(Frozen):
    format: str
    group: int
    """0: no groups."""
    bits_per_weight: float
    """Of the layers' matrices (of the experts', where the format is for these alone), scales included."""
    bytes: int
    """Of the whole model, embedding and vectors included."""
    gib: float

    @property
    def descriptor(self) -> WeightFormat:
        """The format of the layers' matrices, of a plan for our own engine."""
        return weight_format(self.format, self.group) if self.group else weight_format(self.format)


class KvPart(Frozen):
    """The cache. ``pages`` are those that the sequences see; our own engine keeps them in two pools of
    ``exact_pages`` and ``packed_pages`` (none with bf16). ``spare_pages`` of the exact ones are beyond what
    the sequences hold: for ends of prompts and answers that others may go on behind."""

    level: str
    bits_per_element: float
    bytes_per_token: int
    """Marginal bytes of one more token over all layers."""
    page_tokens: int
    sink_pages: int
    recent_pages: int
    pages: int
    exact_pages: int
    spare_pages: int
    packed_pages: int
    layers: tuple[str, ...]
    """Level of each layer that keeps keys and values."""
    table_bytes: int = 0
    """Of the numbers that calibrated levels are read with, at most; all of them, beside the pages."""

    def layout(self, kv_heads: int, head_dim: int, signs: str = "") -> CacheLayout:
        """The layout of this cache in our own engine, for a model of this geometry."""
        return CacheLayout(
            level=LEVELS[self.level],
            page_tokens=self.page_tokens,
            sink_pages=self.sink_pages,
            recent_pages=self.recent_pages,
            kv_heads=kv_heads,
            head_dim=head_dim,
            layers=tuple(layer_cache(LEVELS[level], head_dim) for level in self.layers),
            signs=signs,
        )

    def latent_layout(self, rank: int, rope: int) -> LatentLayout:
        """The same for a model with latent attention."""
        return LatentLayout(
            level=LATENT_LEVELS[self.level],
            page_tokens=self.page_tokens,
            sink_pages=self.sink_pages,
            recent_pages=self.recent_pages,
            rank=rank,
            rope=rope,
            layers=len(self.layers),
        )


class Speculation(Frozen):
    """``tokens`` are drafted for every step, one behind the other, and ``width`` choices for each;
    ``acceptance`` is the share of the first choices that is expected to be kept, ``sibling_acceptance`` how
    often one of the others is drawn where the first is not, ``tokens_per_step`` what a step is expected to
    yield. Lookahead has a window of so many ``columns``."""

    method: str = "none"
    tokens: int = 0
    width: int = 1
    columns: int = 0
    acceptance: float | None = None
    sibling_acceptance: float | None = None
    draft: str | None = None
    tokens_per_step: float = 1.0
    pays_up_to: int | None = None
    """Largest number of sequences in flight at which a step with drafts still yields more per second."""


class Parallelism(Frozen):
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    data: int = 1


class LimitsPart(Frozen):
    max_context: int
    max_sequences: int
    max_batch_tokens: int
    overflow: Overflow = "stop"
    """What becomes of a sequence that reaches ``max_context``."""
    checked_tokens: int = 0
    """Of the longest answer that is checked against an exact cache: pages for it lie behind the others."""


class Source(Frozen):
    """Where a number stems from. A number computed from several is as good as the weakest of them."""

    basis: Basis
    text: str


class Workload(Frozen):
    """The load that the prediction is for; ``context_tokens`` is the mean context of a decode step."""

    concurrency: int
    input_tokens: int
    output_tokens: int
    context_tokens: int


class Milliseconds(Frozen):
    """One decode step at full concurrency, by what it waits for."""

    weights: float
    cache: float
    compute: float
    fixed: float
    links: float
    prefill: float
    """Prompts of other sequences that are computed in between."""


class MemoryGib(Frozen):
    """Of one device, GiB (2**30 bytes)."""

    weights: float
    kv: float
    activations: float
    draft: float
    overhead: float
    total: float
    capacity: float


class Range(Frozen):
    low: float
    expected: float
    high: float


class Cost(Frozen):
    """Money and energy of the whole deployment, at the load of the prediction. US dollars."""

    usd_per_hour: float | None
    """Of all devices; None: no price is known."""
    basis: Basis
    source: str
    """Where the price stems from."""
    usd_per_million_tokens: float | None
    """Of generated tokens."""
    usd_per_query: float | None
    usd_per_month: float | None
    """730 hours."""
    watts: float | None
    """What the devices draw at most."""
    kwh_per_million_tokens: float | None
    energy_usd_per_month: float | None
    """At the spec's price of electricity."""
    break_even_tokens_per_month: float | None
    """Generated tokens per month from which this costs less than the spec's price of an API."""
    break_even_utilization: float | None
    """The same as a share of what the deployment can generate; above 1 it never does."""
    bandwidth_gbs_per_usd_hour: float | None


class Predicted(Frozen):
    """Each time with the ends of an interval that holds four of five measurements."""

    workload: Workload
    ttft_ms: float
    ttft_ms_low: float
    ttft_ms_high: float
    itl_ms: float
    itl_ms_low: float
    itl_ms_high: float
    e2e_s: float
    """One request, from arrival to its last token."""
    e2e_s_low: float
    e2e_s_high: float
    tokens_per_second: float
    """Generated by all sequences together, prefill time included."""
    tokens_per_second_per_user: float
    prefill_tokens_per_second: float
    """Of one prompt, alone on the machine."""
    bottleneck: str
    step_ms: Milliseconds
    memory_gib: MemoryGib
    quality_loss_percent: Range
    cost: Cost
    sources: dict[str, Source]
    """For each number above: where it stems from."""


class Reason(Frozen):
    key: str
    value: str
    why: str
    source: str


class Turn(Frozen):
    """A change of what is asked from which on another decision is better."""

    key: str
    """Of the spec."""
    at: str
    then: str


class Choice(Frozen):
    """A candidate in names."""

    target: str
    engine: str
    weights: str
    kv: str
    speculation: str
    """Method and tokens: ``none``, ``eagle3:4``."""
    parallelism: Parallelism


class Alternative(Choice):
    """A feasible plan that is better in something and worse in something else."""

    ttft_ms: float
    itl_ms: float
    tokens_per_second: float
    memory_gib: float
    quality_loss_percent: float
    usd_per_million_tokens: float | None
    gives_up: str


class Rejected(Choice):
    """A candidate and a limit that it broke."""

    limit: str
    value: str
    allowed: str


class Level(Frozen):
    """A level of the cache with everything else as the plan has it; its own loss alone."""

    level: str
    bits_per_element: float
    bytes_per_token: int
    itl_ms: float
    tokens_per_second: float
    memory_gib: float
    quality_loss_percent: Range
    calibrated: bool
    breaks: str
    """The limits that it breaks, in words; empty where it keeps them."""


class Searched(Frozen):
    """What the search went through."""

    candidates: int
    feasible: int


class Plan(Frozen):
    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    name: str
    inputs: Inputs
    model: ModelPart
    target: TargetPart
    engine: str
    engine_version: str
    """That the facts about it are of."""
    buildable: bool
    not_buildable: str
    """Why this version cannot build the plan; empty if it can."""
    weights: WeightsPart
    kv: KvPart
    speculation: Speculation
    parallelism: Parallelism
    limits: LimitsPart
    predicted: Predicted
    reasons: tuple[Reason, ...]
    turns: tuple[Turn, ...]
    levels: tuple[Level, ...] = ()
    """What the engine serves, where there is more than one; empty where the level is pinned."""
    alternatives: tuple[Alternative, ...]
    rejected: tuple[Rejected, ...]
    searched: Searched
    measured: Measured | None = None
    """None in a plan that nothing was built from; such a plan's JSON does not have the key."""

    @property
    def program_limits(self) -> Limits:
        """The static sizes of the engine."""
        return Limits(
            max_context=self.limits.max_context,
            max_sequences=self.limits.max_sequences,
            max_batch_tokens=self.limits.max_batch_tokens,
            exact_pages=self.kv.exact_pages,
            packed_pages=self.kv.packed_pages,
            overflow=self.limits.overflow,
            checked_tokens=self.limits.checked_tokens,
        )

    def require_buildable(self) -> None:
        """Raises InferCompileError IC220 if this version cannot build the plan."""
        if not self.buildable:
            raise InferCompileError(
                Problem(
                    "IC220",
                    f"a bundle of {self.engine} for {self.target.name} cannot be built by this version",
                    self.name,
                    self.not_buildable,
                    "plan still answers; to build: engine native, on one processor or one NVIDIA GPU",
                )
            )

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, one final newline."""
        fields = self.model_dump(mode="json", by_alias=True)
        if self.measured is None:
            del fields["measured"]
        return json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "") -> Plan:
        """Raises InferCompileError IC221 for what is not a plan of this version."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole file"
            raise InferCompileError(
                Problem(
                    "IC221",
                    "this is not a plan that this version can read",
                    where,
                    f"{place}: {first['msg']} ({error.error_count()} mistakes)",
                    "write it again: infer-compile plan SPEC --format json -o plan.json",
                )
            ) from error


def significant(value: float, digits: int = 4) -> float:
    """``value`` with so many significant digits: a plan does not pretend to more."""
    return float(f"{value:.{digits}g}")
