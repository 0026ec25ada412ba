"""A chosen candidate, written down as a plan."""

from __future__ import annotations

import hashlib
import json

from pydantic import BaseModel

from ..graph.graph import Graph
from ..spec.spec import Spec
from .candidate import Candidate
from .cost import cost
from .deployment import Deployment
from .frontier import alternatives, rejected
from .latency import matrix_tflops
from .plan import (
    Inputs,
    KvPart,
    LimitsPart,
    MemoryGib,
    Milliseconds,
    ModelPart,
    Parallelism,
    Plan,
    Predicted,
    Range,
    Speculation,
    TargetPart,
    WeightsPart,
    Workload,
    significant,
)
from .provenance import sources
from .reasons import not_buildable, reasons
from .units import GIB


def compose(asked: Deployment, chosen: Candidate, candidates: tuple[Candidate, ...]) -> Plan:
    """The plan that ``chosen``, one of ``candidates``, stands for."""
    blocked = not_buildable(asked)
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
            parameters=asked.parameters,
        ),
        target=_target(asked, chosen),
        engine="native",
        buildable=not blocked,
        not_buildable=blocked,
        weights=_weights(asked, chosen),
        kv=_kv(asked, chosen),
        speculation=Speculation(),
        parallelism=Parallelism(tensor=asked.tensor),
        limits=LimitsPart(
            max_context=chosen.limits.max_context,
            max_sequences=chosen.limits.max_sequences,
            max_batch_tokens=chosen.limits.max_batch_tokens,
        ),
        predicted=_predicted(asked, chosen),
        reasons=reasons(asked, chosen, candidates),
        alternatives=alternatives(asked, chosen, candidates),
        rejected=rejected(asked, candidates),
    )


def digest(model: BaseModel) -> str:
    """sha256 of the canonical JSON of ``model``."""
    fields = model.model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def spec_digest(spec: Spec) -> str:
    """Of what bears on the plan: how it is served does not."""
    fields = spec.model_dump(mode="json", by_alias=True, exclude={"serving"})
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
        devices=asked.tensor,
        memory_gb=target.memory_gb,
        bandwidth_gbs=target.bandwidth_gbs,
        matrix_tflops=matrix_tflops(target, chosen.weights),
        measured=target.measured,
    )


def _weights(asked: Deployment, chosen: Candidate) -> WeightsPart:
    total = asked.shape.stored[chosen.weights].weight_bytes
    return WeightsPart(
        format=chosen.weights.name,
        group=chosen.weights.group,
        bits_per_weight=chosen.weights.bits_per_weight,
        bytes=total,
        gib=significant(total / GIB),
    )


def _kv(asked: Deployment, chosen: Candidate) -> KvPart:
    layout, limits = chosen.layout, chosen.limits
    numbers = 2 * layout.kv_heads * layout.head_dim * layout.layers
    return KvPart(
        level=layout.level,
        bits_per_element=8 * layout.token_bytes / numbers,
        bytes_per_token=layout.token_bytes,
        page_tokens=layout.page_tokens,
        sink_pages=layout.sink_pages,
        recent_pages=layout.recent_pages,
        pages=limits.max_sequences * layout.pages(limits.max_context),
        exact_pages=limits.exact_pages,
        packed_pages=limits.packed_pages,
        layers=(layout.level,) * layout.layers,
    )


def _predicted(asked: Deployment, chosen: Candidate) -> Predicted:
    seen, held, loss = chosen.forecast, chosen.memory, chosen.loss
    step = seen.step
    return Predicted(
        workload=Workload(
            concurrency=seen.load.concurrency,
            input_tokens=seen.load.input_tokens,
            output_tokens=seen.load.output_tokens,
            context_tokens=seen.load.decode_context,
        ),
        ttft_ms=significant(seen.ttft * 1e3),
        itl_ms=significant(seen.itl * 1e3),
        tokens_per_second=significant(seen.tokens_per_second),
        tokens_per_second_per_user=significant(seen.tokens_per_second_per_user),
        prefill_tokens_per_second=significant(seen.prefill_tokens_per_second),
        bottleneck=seen.bottleneck,
        step_ms=Milliseconds(
            weights=significant(step.weights * 1e3),
            cache=significant(step.cache * 1e3),
            compute=significant(step.compute * 1e3),
            fixed=significant(step.fixed * 1e3),
            links=significant(step.links * 1e3),
            prefill=significant(seen.prefill.total * 1e3),
        ),
        memory_gib=MemoryGib(
            weights=significant(held.weights / GIB),
            kv=significant(held.kv / GIB),
            activations=significant(held.activations / GIB),
            draft=0.0,
            overhead=significant(held.overhead / GIB),
            total=significant(held.total / GIB),
            capacity=significant(held.capacity / GIB),
        ),
        quality_loss_percent=Range(low=loss.low, expected=loss.expected, high=loss.high),
        cost=cost(asked.spec, seen.tokens_per_second),
        sources=sources(asked, chosen),
    )
