"""A plan's choices applied to the graph that it was made for."""

from __future__ import annotations

from ..graph.graph import Graph
from ..planner.plan import KvPart, Plan
from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.kv import HEAD_DIMS, LEVELS, CacheLayout, LayerCache, uniform
from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.program import Place, Program
from ..runtime.formats.weights import BF16
from .assemble import assemble
from .signs import signs

STREAM = "x"
"""The residual stream of every Program."""


def lower(graph: Graph, plan: Plan) -> Program:
    """The Program that runs: ``graph`` in the formats, cache and limits of ``plan``.

    Raises InferCompileError: IC280 and IC281 as ``assemble`` and IC283 a
    plan that counted something else than this graph makes.
    """
    program = assemble(graph, plan.weights.descriptor, _cache(graph, plan.kv), plan.program_limits)
    _same(graph, plan, program)
    return program


def _cache(graph: Graph, kv: KvPart) -> CacheLayout | LatentLayout:
    if graph.latent is not None:
        return kv.latent_layout(graph.latent.value_dim, graph.latent.rotary_dim)
    cache = kv.layout(graph.kv_heads, graph.head_dim)
    return cache.model_copy(update={"signs": signs(graph.head_dim)}) if cache.compressed else cache


def lower_draft(graph: Graph, plan: Plan) -> Program:
    """The Program of the model that drafts for ``plan``: unquantized, with a cache in bf16 for the same
    sequences. Raises InferCompileError IC280 as ``assemble``."""
    kv, level = plan.kv, LEVELS["bf16"]
    attending = bool(graph.attention)
    head_dim = graph.head_dim if attending else HEAD_DIMS[0]
    cache = CacheLayout(
        level=level,
        page_tokens=kv.page_tokens,
        sink_pages=kv.sink_pages if plan.limits.overflow == "evict" else 0,
        recent_pages=0,
        kv_heads=graph.kv_heads if attending else 1,
        head_dim=head_dim,
        layers=uniform(level, graph.cache_layers, head_dim),
    )
    context = min(plan.limits.max_context, graph.max_context)
    limits = plan.program_limits.model_copy(
        update={
            "max_context": context,
            "exact_pages": kv.pages if attending else 0,
            "packed_pages": 0,
            "checked_tokens": 0,
        }
    )
    return assemble(graph, BF16, cache, limits)


def telling(program: Program, layers: tuple[int, ...]) -> Program:
    """``program``, whose steps tell of every token what goes into ``layers``, side by side: ascending
    indices, of which the number of layers is what goes to the head. Without ``layers`` it is unchanged."""
    if not layers:
        return program
    width, states = program.buffers[STREAM], "features"
    places = {
        layer: Place(input=STREAM, output=states, first=index * width) for index, layer in enumerate(layers)
    }
    # Behind what comes before: the epilogue runs for those tokens alone whose logits are asked for.
    parts = [
        (*part, places[index]) if index in places else part
        for index, part in enumerate((program.prologue, *program.layers))
    ]
    return program.model_copy(
        update={
            "buffers": program.buffers | {states: len(layers) * width},
            "prologue": parts[0],
            "layers": tuple(parts[1:]),
            "states": states,
        }
    )


def fitted(program: Program, layers: tuple[LayerCache, ...]) -> Program:
    """``program`` with the caches of its layers as calibration found them.

    Raises InferCompileError IC283 where these take other bytes than were planned.
    """
    planned = program.cache
    # Not copied: a copy would keep the bytes that were counted for the planned layers.
    cache = CacheLayout.model_validate(planned.model_dump() | {"layers": layers})
    if cache.token_bytes != planned.token_bytes:
        raise InferCompileError(
            Problem(
                "IC283",
                f"the plan counts {planned.token_bytes} for cache bytes per token, calibration found "
                f"{cache.token_bytes}",
                program.model,
                fix="report this message",
            ),
            Exit.MISMATCH,
        )
    return program.model_copy(update={"cache": cache})


def _same(graph: Graph, plan: Plan, program: Program) -> None:
    """What runs is what was counted: refuse a plan of another model, or of another version."""
    counted = (
        ("architecture", plan.model.architecture, graph.architecture),
        ("parameters", plan.model.parameters, graph.parameters),
        ("layers with a cache", program.cache.cached_layers, graph.cache_layers),
        ("weight bytes", plan.weights.bytes, program.weight_bytes),
        ("cache bytes per token", plan.kv.bytes_per_token, program.cache.token_bytes),
    )
    problems = [
        Problem(
            "IC283",
            f"the plan counts {planned} for {what}, the model has {found}",
            plan.name,
            "the plan was made for another model, by another version, or changed by hand",
            "plan again",
        )
        for what, planned, found in counted
        if planned != found
    ]
    if problems:
        raise InferCompileError(problems, Exit.MISMATCH)
