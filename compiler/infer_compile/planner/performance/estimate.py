"""The time model alone: what an engine does with a model on devices under a load, many points at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...catalog.coefficients import Admission
from ...catalog.engines import Engine, EngineKind
from ...catalog.facts import Facts
from ...catalog.formats import CacheScheme
from ...catalog.target import Target
from ...graph.graph import Graph
from ...graph.storage import misfits
from ...runtime.errors import Exit, InferCompileError, Problem
from ...runtime.formats.weights import GROUPS, weight_format
from ...spec.unserved import nearest
from .. import support
from ..units import GIB
from .cache import Cache, Floats, kept_bytes, own_cache
from .forecast import Forecast, Load, forecast
from .latency import Runner, Speed, speed
from .layout import Layout
from .memory import Held, held_weights, memory
from .query import Query
from .shape import Shape, Stored, native_stored, shape, stored

NODE_DEVICES = 8
"""Devices of a machine where nothing is said."""
RESULTS = (
    "ttft_ms",
    "itl_ms",
    "e2e_s",
    "prefill_tps",
    "tokens_per_second_per_user",
    "tokens_per_second",
)
"""Each with its ends ``_low`` and ``_high``; beside them ``memory_gib`` and ``bottleneck``."""
COLUMNS = (
    *(name + end for name in RESULTS for end in ("", "_low", "_high")),
    "memory_gib",
    "bottleneck",
)

Answer = Mapping[str, float | str | None]
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model in given formats, and the engine and device that run it: what many points share."""

    graph: Graph
    shape: Shape
    stored: Stored
    cache: Cache
    target: Target
    kind: EngineKind | None
    """The engine on this kind of device; None: one that only calibrates a class of devices."""
    own: bool
    """Our own engine, whose memory is counted page by page."""
    serial: bool
    """Of several stages, each waits for the one before it."""
    speed: Speed


def subject(graph: Graph, target: Target, asked: Query, facts: Facts) -> Subject:
    """What ``asked`` is about. Raises, exit 2, IC044 for an unknown engine, IC045 for an unknown weight
    format, IC046 for an unknown cache level, IC048 for an engine that does not run on such devices, IC049 for
    a level that it does not serve; and what ``speed`` raises."""
    name = asked.engine or ("vllm" if target.kind == "gpu" else "llama.cpp")
    known = {each.engine for each in facts.coefficients.calibrations} - {"prior"}
    known |= set(facts.coefficients.stand_ins)
    names = (*facts.engines.names, *sorted(known - set(facts.engines.names)))
    if name not in names:
        raise _unknown("IC044", "engine", name, names)
    engine = facts.engines.of(name) if _listed(name, facts) else None
    own = engine is not None and engine.architectures.own
    counted = _stored(graph, target, asked.weights, name, own, facts)
    level = _level(asked.kv, name, graph, target, facts)
    summed = shape(graph)
    return Subject(
        graph=graph,
        shape=summed,
        stored=counted,
        cache=_cache(summed, level, engine, facts),
        target=target,
        kind=_kind(engine, target),
        own=own,
        serial=name == "llama.cpp",
        speed=speed(target, facts.coefficients, name, counted.scheme, level, asked.build, own=own),
    )


@dataclass(frozen=True, slots=True)
class Predicted:
    """What ``points`` of a subject come to; ``admitted`` are the sequences of a copy that are in flight at
    once."""

    runner: Runner
    layouts: Layout
    admitted: Array
    forecast: Forecast


def predict(one: Subject, points: Sequence[Query]) -> Predicted:
    """The forecast of ``points``, which are all about ``one``, of one kind of load and one size of
    machines."""
    rated = points[0].rate is not None
    layouts = _layouts(one, points)
    inputs, outputs, batch = (_column(points, name) for name in ("input", "output", "batch"))
    # A layer split gives one device after the other the whole batch, as one device with all the memory would.
    timed = Layout(per_node=layouts.per_node) if one.serial and not np.any(layouts.tensor > 1) else layouts
    runner = Runner(one.shape, one.stored, one.cache, timed, one.speed)
    # Where a rate decides how many are in flight, the memory bounds the search.
    wanted = np.full_like(batch, _most(one)) if rated else batch / layouts.data
    admitted = _admitted(one, layouts, wanted, inputs, outputs)
    rate = np.array([each.rate or 0.0 for each in points]) if rated else None
    concurrency = admitted * layouts.data if rated else batch
    load = Load(concurrency, inputs, outputs, rate, points[0].load == "static")
    limit = None if rated else admitted
    seen = forecast(runner, load, one.speed.generation.step_tokens, admitted=limit)
    return Predicted(runner, layouts, admitted, seen)


def estimate(one: Subject, points: Sequence[Query]) -> list[Answer]:
    """The answer to each of ``points``, which are as ``predict`` wants them."""
    found = predict(one, points)
    inputs, outputs = _column(points, "input"), _column(points, "output")
    flying = _flat(found.forecast.concurrency, len(points)) / found.layouts.data
    in_flight = flying if points[0].rate is not None else np.minimum(flying, found.admitted)
    held = _memory(one, found.layouts, in_flight, inputs, outputs)
    answers = _answers(one, found.runner, found.forecast, held, inputs, outputs)
    return [
        {**answer, "bottleneck": "capacity"} if crowded else answer
        for answer, crowded in zip(answers, _crowded(found, points), strict=True)
    ]


def _crowded(found: Predicted, points: Sequence[Query]) -> NDArray[np.bool_]:
    """Where requests arrive faster than they are served; their queue grows as long as that lasts."""
    rate = np.array([each.rate or 0.0 for each in points])
    crowded: NDArray[np.bool_] = _flat(found.forecast.requests_per_second, len(points)) < _KEPT_UP * rate
    return crowded


_KEPT_UP = 0.99
"""Served over arriving; the search for what is in flight ends within a hundredth."""


def _most(one: Subject) -> float:
    """Requests in flight at most in a copy where a rate is given."""
    return one.kind.most_sequences.value if one.kind is not None else _UNKNOWN


_UNKNOWN = 256.0
"""The same for engines whose own limit is not known."""


def _kind(engine: Engine | None, target: Target) -> EngineKind | None:
    if engine is None:
        return None
    try:
        return engine.on(target.kind)
    except KeyError:
        problem = Problem("IC048", f"{engine.name} does not run on a device of kind {target.kind}")
        raise InferCompileError(problem, Exit.USAGE) from None


def _stored(graph: Graph, target: Target, weights: str, engine: str, own: bool, facts: Facts) -> Stored:
    if own:
        native = facts.engines.of(engine)
        reason = support.why_not(native, graph, target, "weights", weights)
        if reason:
            here = support.weights(native, graph, target)
            raise _unknown("IC045", "weight format of the native engine", weights, here, reason)
        sized = [weight_format(weights, group) for group in sorted(GROUPS, reverse=True)]
        fitting = [form for form in sized if not misfits(graph, form)]
        if fitting:
            return native_stored(graph, fitting[0])
        problem = Problem(
            "IC202", f"{weights} does not divide the matrices of {graph.name}", fix="weights: bf16"
        )
        raise InferCompileError(problem, Exit.INFEASIBLE)
    try:
        return stored(graph, facts.formats.of_weights(weights, graph.architecture, engine))
    except KeyError:
        names = sorted({each.name for each in facts.formats.weights})
        raise _unknown("IC045", "weight format", weights, names) from None


def _level(level: str, name: str, graph: Graph, target: Target, facts: Facts) -> CacheScheme:
    """The level as the engine ``name`` stores it; one of which only speed is known stores every level."""
    try:
        found = facts.formats.of_kv(level, name)
    except KeyError:
        known = dict.fromkeys(each.name for each in facts.formats.kv)
        raise _unknown("IC046", "cache level", level, tuple(known)) from None
    reason = (
        support.why_not(facts.engines.of(name), graph, target, "kv", level) if _listed(name, facts) else ""
    )
    if reason:
        served = [each.name for each in facts.engines.engines if _serves(each, graph, target, level)]
        levels = support.levels(facts.engines.of(name), graph, target)
        fixes = [f"--kv {' or '.join(levels)}", *(f"--engine {other}" for other in served)]
        problem = Problem(
            "IC049", f'cache level "{level}" is not served so', because=reason, fix=", or ".join(fixes)
        )
        raise InferCompileError(problem, Exit.USAGE)
    return found


def _listed(name: str, facts: Facts) -> bool:
    return name in facts.engines.names


def _serves(engine: Engine, graph: Graph, target: Target, level: str) -> bool:
    runs = not support.refusal(engine, graph, target)
    return runs and not support.why_not(engine, graph, target, "kv", level)


def _cache(summed: Shape, level: CacheScheme, engine: Engine | None, facts: Facts) -> Cache:
    pages = facts.choices.cache
    if engine is None:
        return Cache(level, int(pages.page_tokens.value))
    if engine.architectures.own:
        return own_cache(summed, level, pages, engine.windows_freed)
    return Cache(level, int(engine.page_tokens.value), windows_freed=engine.windows_freed)


def _unknown(code: str, kind: str, name: str, names: Sequence[str], because: str = "") -> InferCompileError:
    close = nearest(name, tuple(names))
    fix = f"did you mean {close}?" if close else f"one of {', '.join(names)}"
    problem = Problem(code, f'there is no {kind} "{name}"', because=because, fix=fix)
    return InferCompileError(problem, Exit.USAGE)


def _layouts(one: Subject, points: Sequence[Query]) -> Layout:
    """The devices of each point; those beyond the layout stay idle. ``llama.cpp`` splits by layers."""
    sizes = {
        name: np.array([getattr(each, name) for each in points]) for name in ("pipeline", "data", "expert")
    }
    count = np.array([each.count for each in points])
    left = np.maximum(count // (sizes["pipeline"] * sizes["data"]), 1)
    given = np.array([each.tensor or 0 for each in points])
    tensor = np.where(given > 0, given, 1 if one.serial else left)
    if one.serial:
        sizes["pipeline"] = np.where(tensor == 1, np.maximum(sizes["pipeline"], count), sizes["pipeline"])
    nodes = points[0].nodes
    per_node = NODE_DEVICES if nodes is None else max(1, points[0].count // nodes)
    return Layout(tensor, sizes["pipeline"], sizes["expert"], sizes["data"], per_node)


def _column(points: Sequence[Query], name: str) -> Array:
    return np.array([getattr(each, name) for each in points], dtype=np.float64)


def _flat(values: Floats, count: int) -> Array:
    return np.array(np.broadcast_to(np.asarray(values, dtype=np.float64), (count,)))


def _admitted(one: Subject, layout: Layout, sequences: Array, inputs: Array, outputs: Array) -> Array:
    """Sequences of a copy that are in flight at once; all, where nothing is known of the engine's memory or
    the weights alone do not fit."""
    rule = one.speed.generation.admission
    if one.kind is None or one.own:
        return sequences
    reserved = np.ceil(inputs + rule.answer * outputs).astype(np.int64)
    each = kept_bytes(one.shape, one.cache, reserved, layout.tensor) * kept(rule, one.stored.scheme.name)
    spent = memory(one.shape, one.stored, one.cache, layout, _held(one, 0, 1), one.target, one.kind)
    room = spent.free + spent.kv
    fitting = np.maximum(1.0, np.floor(room * layout.pipeline / each))
    return np.where(room > 0, np.minimum(sequences, fitting), sequences)


def kept(rule: Admission, weights: str) -> float:
    """Share of what the cache level says that a token takes of the cache."""
    return rule.kept.get(weights, rule.kept["other"])


def _held(one: Subject, context: int, sequences: int) -> Held:
    budget = one.speed.generation.step_tokens
    return Held(context=max(context, 1), typical=max(context, 1), sequences=sequences, budget=budget)


def _memory(one: Subject, layout: Layout, sequences: Array, inputs: Array, outputs: Array) -> Array:
    """Bytes of one device: weights, the cache of ``sequences`` sequences at their longest, and what the
    engine takes beside them."""
    longest = np.maximum(1, inputs + outputs).astype(np.int64)
    if one.kind is not None and one.own:
        one_each = [
            memory(
                one.shape,
                one.stored,
                one.cache,
                Layout(),
                _held(one, int(tokens), int(count)),
                one.target,
                one.kind,
            )
            for tokens, count in zip(longest, sequences, strict=True)
        ]
        return np.array([float(each.total) for each in one_each])
    cached = sequences * kept_bytes(one.shape, one.cache, longest, layout.tensor) / layout.pipeline
    if one.kind is None:
        return _flat(held_weights(one.stored, one.shape, layout) + cached, len(longest))
    spent = memory(one.shape, one.stored, one.cache, layout, _held(one, 0, 1), one.target, one.kind)
    room = spent.free + spent.kv
    # What is in flight was admitted: it takes no more than there is, unless the weights alone do.
    cached = np.where(room > 0, np.minimum(cached, room), cached)
    return _flat(spent.total - spent.kv + cached, len(longest))


def _answers(
    one: Subject, runner: Runner, seen: Forecast, held: Array, inputs: Array, outputs: Array
) -> list[Answer]:
    count = len(inputs)
    answered, prompted = outputs > 0, inputs > 0
    times = {
        "ttft_ms": (seen.ttft * 1e3, seen.ttft_low * 1e3, seen.ttft_high * 1e3),
        "itl_ms": (seen.itl * 1e3, seen.itl_low * 1e3, seen.itl_high * 1e3),
        "e2e_s": (seen.e2e, seen.e2e_low, seen.e2e_high),
    }
    ends = {name: (low / middle, high / middle) for name, (middle, low, high) in times.items()}
    rates = {
        "prefill_tps": (seen.prefill_tokens_per_second, "ttft_ms"),
        "tokens_per_second_per_user": (seen.tokens_per_second_per_user, "itl_ms"),
        "tokens_per_second": (seen.tokens_per_second, "e2e_s"),
    }
    columns: dict[str, Array] = {}
    for name, values in times.items():
        for end, value in zip(("", "_low", "_high"), values, strict=True):
            columns[name + end] = _flat(value, count)
    for name, (rate, time) in rates.items():
        low, high = ends[time]
        for end, value in (("", rate), ("_low", rate / high), ("_high", rate / low)):
            columns[name + end] = _flat(value, count)
    generated = ("itl_ms", "tokens_per_second_per_user", "tokens_per_second")
    for name in columns:
        stands = answered if name.startswith(generated) else prompted if name.startswith("prefill") else None
        if stands is not None:
            columns[name] = np.where(stands, columns[name], np.nan)
    columns["memory_gib"] = held / GIB
    named = _bottlenecks(one, runner, seen, inputs, answered)
    rows: list[Answer] = []
    for index in range(count):
        row: dict[str, float | str | None] = {}
        for name, found in columns.items():
            value = float(found[index])
            row[name] = None if np.isnan(value) else value
        row["bottleneck"] = named[index]
        rows.append({name: row[name] for name in COLUMNS})
    return rows


def _bottlenecks(
    one: Subject, runner: Runner, seen: Forecast, inputs: Array, answered: NDArray[np.bool_]
) -> list[str]:
    """The largest term of a decode step, or of the prompt where nothing is generated."""
    count = len(inputs)
    prompt = runner.prefill(inputs, one.speed.generation.step_tokens)
    terms = {name: _flat(value, count) for name, value in seen.terms.items()}
    alone = {
        "weight bandwidth": prompt.weights,
        "cache bandwidth": prompt.cache,
        "compute": prompt.compute,
        "fixed cost": prompt.fixed,
        "interconnect": prompt.links,
    }
    first = {name: _flat(value, count) for name, value in alone.items()}
    names = []
    for index in range(count):
        shown = terms if answered[index] else first
        names.append(max(shown, key=lambda name: float(shown[name][index])))
    return names
