"""A chosen candidate, written down as a plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from pydantic import BaseModel

from ..graph.graph import Graph
from ..spec.spec import Spec
from .block import held_for
from .candidate import Candidate
from .cost import cost
from .deployment import Deployment
from .explain.contest import Contest
from .explain.devices import not_buildable
from .explain.drafts import pays_up_to
from .explain.levels import levels
from .explain.provenance import sources
from .explain.reasons import reasons
from .explain.turns import turns
from .frontier import alternatives, choice, rejected
from .performance.cache import all_token_bytes
from .performance.latency import matrix_tflops
from .performance.memory import pool_limits
from .plan import (
    Inputs,
    KvPart,
    LimitsPart,
    MemoryGib,
    Milliseconds,
    ModelPart,
    Plan,
    Predicted,
    Range,
    Searched,
    Speculation,
    TargetPart,
    WeightsPart,
    Workload,
    significant,
)
from .survey import Survey
from .units import GIB


def compose(found: Survey, chosen: Candidate, best: Callable[[Deployment], Candidate | None]) -> Plan:
    """The plan that ``chosen``, a candidate of ``found``, stands for; ``best`` answers what would be chosen
    if something else were asked."""
    asked = found.asked
    blocked = not_buildable(asked, chosen.engine)
    return Plan(
        name=asked.spec.name,
        inputs=Inputs(
            spec=spec_digest(asked.spec), graph=graph_digest(asked.graph), target=digest(asked.target)
        ),
        model=ModelPart(
            name=asked.graph.name,
            source=asked.spec.model.source,
            revision=asked.spec.model.revision,
            architecture=asked.graph.architecture,
            parameters=asked.shape.parameters,
        ),
        target=_target(asked, chosen),
        engine=chosen.engine.name,
        engine_version=chosen.engine.version,
        buildable=not blocked,
        not_buildable=blocked,
        weights=_weights(chosen),
        kv=kv_part(asked, chosen),
        speculation=_speculation(asked, chosen),
        parallelism=choice(asked, chosen).parallelism,
        limits=LimitsPart(
            max_context=asked.context,
            max_sequences=chosen.sequences,
            max_batch_tokens=chosen.budget,
            overflow=asked.spec.serving.overflow,
            checked_tokens=asked.checked_tokens,
        ),
        predicted=predicted_part(asked, chosen),
        reasons=reasons(asked, chosen, found),
        turns=turns(asked, chosen, best),
        levels=levels(Contest(found, chosen)),
        alternatives=alternatives(asked, chosen, found),
        rejected=rejected(asked, found),
        searched=Searched(candidates=len(found), feasible=len(found.feasible)),
    )


def digest(model: BaseModel) -> str:
    """sha256 of the canonical JSON of ``model``."""
    fields = model.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def spec_digest(spec: Spec) -> str:
    """Of what bears on the plan: the port does not, nor how many answers are checked, nor traces."""
    fields = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude={"serving": {"port": True, "shadow": {"fraction": True}, "traces": True}},
    )
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def graph_digest(graph: Graph) -> str:
    """Of every operation, shape and tensor name."""
    return hashlib.sha256(repr(graph).encode()).hexdigest()


def _target(asked: Deployment, chosen: Candidate) -> TargetPart:
    target = asked.target
    return TargetPart(
        id=target.id,
        name=target.name,
        kind=target.kind,
        isa=target.cpu.isa if target.cpu else None,
        count=asked.count,
        nodes=asked.nodes,
        memory_gb=target.memory_gb,
        bandwidth_gbs=target.bandwidth_gbs,
        matrix_tflops=matrix_tflops(target, chosen.scheme),
        measured=target.measured,
    )


def _weights(chosen: Candidate) -> WeightsPart:
    scheme, total = chosen.scheme, chosen.stored.weight_bytes
    return WeightsPart(
        format=scheme.name,
        group=scheme.group,
        bits_per_weight=scheme.bits.expert if scheme.experts_only else scheme.bits.matrix,
        bytes=total,
        gib=significant(total / GIB),
    )


def kv_part(asked: Deployment, chosen: Candidate) -> KvPart:
    """The cache of a candidate, counted."""
    cache, shape = chosen.cache, asked.shape
    per_token = all_token_bytes(shape, cache)
    elements = shape.totals.cache_elements_per_token
    layers = sum(group.layers for group in shape.totals.attention)
    held = held_for(asked, chosen.sequences, chosen.budget)
    others = (chosen.sequences - 1) * -(-held.typical // cache.page_tokens)
    pages = -(-held.context // cache.page_tokens) + others
    exact, packed = pages, 0
    if chosen.engine.architectures.own:
        limits = pool_limits(shape, cache, held)
        exact, packed = limits.exact_pages, limits.packed_pages
    return KvPart(
        level=chosen.level,
        bits_per_element=8 * per_token / elements if elements else 0.0,
        bytes_per_token=round(per_token),
        page_tokens=cache.page_tokens,
        sink_pages=cache.sink_pages,
        recent_pages=cache.recent_pages,
        pages=pages,
        spare_pages=cache.spare_pages,
        exact_pages=exact,
        packed_pages=packed,
        layers=cache.levels or (chosen.level,) * layers,
        table_bytes=cache.table_bytes,
    )


def _speculation(asked: Deployment, chosen: Candidate) -> Speculation:
    one = chosen.drafting
    if not one.tokens:
        return Speculation()
    return Speculation(
        method=one.method,
        tokens=one.tokens,
        width=one.width,
        columns=one.columns,
        acceptance=significant(one.acceptance),
        sibling_acceptance=significant(one.sibling_acceptance) if one.width > 1 else None,
        draft=one.draft,
        tokens_per_step=significant(one.expected),
        pays_up_to=pays_up_to(asked, chosen),
    )


def predicted_part(asked: Deployment, chosen: Candidate) -> Predicted:
    """What the plan is expected to give."""
    seen, held, loss = chosen.forecast, chosen.memory, chosen.loss
    return Predicted(
        workload=Workload(
            concurrency=chosen.sequences,
            input_tokens=asked.input_tokens,
            output_tokens=asked.output_tokens,
            context_tokens=round(float(seen.load.decode_context)),
        ),
        ttft_ms=_ms(seen.ttft),
        ttft_ms_low=_ms(seen.ttft_low),
        ttft_ms_high=_ms(seen.ttft_high),
        itl_ms=_ms(seen.itl),
        itl_ms_low=_ms(seen.itl_low),
        itl_ms_high=_ms(seen.itl_high),
        e2e_s=significant(float(seen.e2e)),
        e2e_s_low=significant(float(seen.e2e_low)),
        e2e_s_high=significant(float(seen.e2e_high)),
        tokens_per_second=significant(float(seen.tokens_per_second)),
        tokens_per_second_per_user=significant(float(seen.tokens_per_second_per_user)),
        prefill_tokens_per_second=significant(float(seen.prefill_tokens_per_second)),
        bottleneck=seen.bottleneck,
        step_ms=Milliseconds(
            weights=_ms(seen.step.weights),
            cache=_ms(seen.step.cache),
            compute=_ms(seen.step.compute),
            fixed=_ms(seen.step.fixed),
            links=_ms(seen.step.links),
            prefill=_ms(seen.prefill.total),
        ),
        memory_gib=MemoryGib(
            weights=_gib(held.weights),
            kv=_gib(held.kv),
            activations=_gib(held.activations),
            draft=_gib(held.draft),
            overhead=_gib(held.overhead),
            total=_gib(held.total),
            capacity=_gib(held.capacity),
        ),
        quality_loss_percent=Range(low=loss.low, expected=loss.expected, high=loss.high),
        cost=cost(asked, chosen),
        sources=sources(asked, chosen),
    )


def _ms(seconds: object) -> float:
    return significant(float(seconds) * 1e3)  # type: ignore[arg-type]


def _gib(count: object) -> float:
    return significant(float(count) / GIB)  # type: ignore[arg-type]
