"""What there is to choose from: engines that run the model, formats, levels, layouts and drafts that they
serve."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..catalog.engines import Engine, Part
from ..catalog.speculation import DEPTH
from ..graph.storage import misfits
from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.weights import GROUPS, WeightFormat, weight_format
from ..runtime.formats.weights import NAMES as NATIVE
from . import support
from .block import Block
from .deployment import Deployment
from .parallelism import Sizes, columns, layouts
from .performance.cache import Cache, own_cache
from .performance.latency import speed
from .performance.layout import Ints, Layout
from .performance.shape import Stored, native_stored, stored
from .quality import cache_loss, weights_loss
from .speculation import Drafting

CODES = {
    "engine": ("IC208", "pin.engine"),
    "overflow": ("IC211", "serving.overflow"),
    "shadow": ("IC212", "serving.shadow"),
    "weights": ("IC202", "pin.weights"),
    "kv": ("IC203", "pin.kv"),
    "speculation": ("IC210", "pin.speculation"),
    "parallelism": ("IC205", "pin.parallelism"),
}
"""What an engine lacks to the code of the error and the key of the spec."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an engine has nothing to offer: ``lacks`` is a key of ``CODES``."""

    engine: str
    lacks: str
    reason: str


@dataclass(frozen=True, slots=True)
class Options:
    """What one engine serves of what is asked."""

    engine: Engine
    weights: tuple[tuple[Stored, WeightFormat | None], ...]
    levels: tuple[str, ...]
    layouts: tuple[Sizes, ...]
    draftings: tuple[Drafting, ...]


def blocks(asked: Deployment) -> tuple[Block, ...]:
    """Every combination to consider.

    Raises InferCompileError, exit 3, where there is none: IC202 for a weight format, IC203 a cache level,
    IC205 a split over devices, IC208 an engine, IC210 a method of speculation, each pinned and not served;
    IC209 where no engine runs the model on the device; IC211 where sequences are to outgrow the context and
    no engine lets them; IC212 where answers are to be checked and no engine does.
    """
    every, refusals = offers(asked)
    if not every:
        raise InferCompileError(_refused(asked, refusals), Exit.INFEASIBLE)
    return tuple(block for options in every for block in _blocks(asked, options))


def offers(asked: Deployment) -> tuple[tuple[Options, ...], tuple[Refusal, ...]]:
    """What each engine offers, in the order of the catalog, and why the others offer nothing."""
    pinned = asked.spec.pin.engine
    found: list[Options] = []
    refusals: list[Refusal] = []
    for engine in asked.facts.engines.engines:
        if pinned not in (None, engine.name):
            continue
        answer = _options(asked, engine)
        if isinstance(answer, Refusal):
            refusals.append(answer)
        else:
            found.append(answer)
    return tuple(found), tuple(refusals)


def _options(asked: Deployment, engine: Engine) -> Options | Refusal:
    graph, target, pin = asked.graph, asked.target, asked.spec.pin
    reason = support.refusal(engine, graph, target, asked.nodes) or _unverified(asked, engine)
    if reason:
        return Refusal(engine.name, "engine", reason)
    reason = _ends(asked, engine)
    if reason:
        return Refusal(engine.name, "overflow", reason)
    if asked.checked_tokens and not engine.architectures.own:
        return Refusal(engine.name, "shadow", f"{engine.title} does not check answers")
    if asked.checked_tokens and asked.graph.latent:
        reason = f"{engine.title} does not check answers of latent attention"
        return Refusal(engine.name, "shadow", reason)
    for part, name in (("weights", asked.pinned_weights), ("kv", pin.kv), ("speculation", _method(asked))):
        reason = support.why_not(engine, graph, target, _PARTS[part], name) if name else ""
        if reason:
            return Refusal(engine.name, part, reason)
    weights = tuple(_weights(asked, engine))
    if not weights:
        return Refusal(engine.name, "weights", _misfit(asked))
    sizes = layouts(asked.shape, engine, asked.count, asked.nodes, pin.parallelism)
    if not sizes:
        return Refusal(engine.name, "parallelism", _undivided(asked, engine))
    draftings = _draftings(asked, engine)
    if not draftings:
        return Refusal(engine.name, "speculation", _undrafted(asked, engine))
    levels = (pin.kv,) if pin.kv else support.levels(engine, graph, target)
    return Options(engine, weights, levels, sizes, draftings)


_PARTS: dict[str, Part] = {"weights": "weights", "kv": "kv", "speculation": "speculation"}


def _ends(asked: Deployment, engine: Engine) -> str:
    """Why a sequence that reaches the context has to end, where it is not to."""
    if not asked.evicts:
        return ""
    if engine.architectures.own and asked.graph.latent:
        return f"{engine.title} does not turn back rotary keys of latent attention, so that tokens may go"
    if asked.target.kind not in engine.evicts:
        return f"{engine.title} is not planned to go on beyond the context on a {asked.target.kind}"
    cache = asked.facts.choices.cache
    page, stay = int(cache.page_tokens.value), int(cache.sink_pages.value + cache.recent_pages.value)
    least = (stay + EVICTED_FROM) * page
    return f"the first and the last tokens, which stay, take {least}" if asked.context < least else ""


EVICTED_FROM = 2
"""Pages of the context besides those that stay exact: the one under way, and one to evict."""


def _unverified(asked: Deployment, engine: Engine) -> str:
    """A step that was never run on such a device is planned for only where it is pinned."""
    if asked.spec.pin.engine == engine.name or engine.on(asked.target.kind).verified:
        return ""
    kind = asked.target.kind
    return f"the {engine.name} engine has not been run on a {kind}; it is planned for where it is pinned"


def _method(asked: Deployment) -> str | None:
    pinned = asked.spec.pin.speculation
    return pinned.method if pinned else None


def _weights(asked: Deployment, engine: Engine) -> Iterator[tuple[Stored, WeightFormat | None]]:
    pinned = asked.pinned_weights
    names = (pinned,) if pinned else support.weights(engine, asked.graph, asked.target)
    for name in names:
        if not engine.architectures.own:
            scheme = asked.facts.formats.of_weights(name, asked.graph.architecture, engine.name)
            yield stored(asked.graph, scheme), None
        else:
            form = _native_format(asked, name)
            if form is not None:
                yield native_stored(asked.graph, form), form


def _native_format(asked: Deployment, name: str) -> WeightFormat | None:
    """The format with the largest group that divides every matrix: fewer scales, fewer bytes."""
    groups = GROUPS if asked.pinned_group is None else (asked.pinned_group,)
    sized = [weight_format(name, group) for group in sorted(groups)]
    fitting = [form for form in sized if not misfits(asked.graph, form)]
    return fitting[-1] if fitting else None


def _draftings(asked: Deployment, engine: Engine) -> tuple[Drafting, ...]:
    pinned = asked.spec.pin.speculation
    methods = support.methods(engine, asked.graph, asked.target)
    if asked.narrow and not pinned:
        methods = ("none",)
    found = asked.draftings(methods, engine.vocabulary_slack)
    if engine.architectures.own:
        found = tuple(one for one in found if one.native and one.rows <= DEPTH)
    if asked.target.kind not in engine.trees:
        found = tuple(one for one in found if one.width == 1 and not one.window)
    if pinned is None:
        return found
    return tuple(
        one
        for one in found
        if one.method == pinned.method
        and pinned.tokens in (None, one.tokens)
        and pinned.width in (None, one.width)
    )


def _undrafted(asked: Deployment, engine: Engine) -> str:
    """Why nothing is drafted as it is pinned."""
    pinned = asked.spec.pin.speculation
    if pinned is not None and (pinned.width or 1) > 1 and asked.target.kind not in engine.trees:
        return f"{engine.title} verifies one choice for each drafted token, not {pinned.width}"
    known = asked.draftings(support.methods(engine, asked.graph, asked.target), engine.vocabulary_slack)
    longest = max((one.tokens for one in known if one.method == _method(asked)), default=0)
    if longest and pinned is not None and longest < min(DEPTH, pinned.tokens or 0):
        return f"the {_method(asked)} that is known for {asked.graph.name} drafts at most {longest} tokens"
    if longest:
        return f"a step drafts at most {DEPTH} tokens of a sequence, all choices and windows counted"
    return f"no {_method(asked)} is known for {asked.graph.name}"


def _blocks(asked: Deployment, options: Options) -> Iterator[Block]:
    """One for each format and level: its arrays run over layouts, draftings and token budgets."""
    engine, facts = options.engine, asked.facts
    spread = columns(options.layouts, asked.count)
    budgets = _budgets(asked, engine)
    shape = (len(options.layouts), len(options.draftings), len(budgets))
    layout, drafted, budget = (grid.ravel() for grid in np.indices(shape))
    own, caches = engine.architectures.own, [_cache(asked, engine, name) for name in options.levels]
    for kept, form in options.weights:
        for cache in caches:
            level = cache.scheme
            yield Block(
                engine=engine,
                weights=form,
                stored=kept,
                cache=cache,
                speed=speed(asked.target, facts.coefficients, engine.name, kept.scheme, level, own=own),
                layout=_take(spread, layout),
                draftings=options.draftings,
                drafted=drafted,
                budget=budgets[budget],
                loss_of_weights=weights_loss(asked.graph, kept.scheme.name, facts.quality, engine.name),
                loss_of_cache=cache_loss(asked.graph, level.name, facts.quality),
            )


def _cache(asked: Deployment, engine: Engine, level: str) -> Cache:
    """As ``engine`` keeps it at ``level``."""
    facts, scheme = asked.facts, asked.facts.formats.of_kv(level, engine.name)
    if engine.architectures.own:
        return own_cache(asked.shape, scheme, facts.choices.cache, engine.windows_freed, evicts=asked.evicts)
    return Cache(scheme, int(engine.page_tokens.value), windows_freed=engine.windows_freed)


def _budgets(asked: Deployment, engine: Engine) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Tokens of a step to consider, powers of two: enough that every sequence gains one and a prompt gets on
    beside them, and not more than all sequences together can have."""
    bounds, page = engine.on(asked.target.kind).batch_tokens, int(engine.page_tokens.value)
    sequences = asked.concurrency if asked.rate is None else 1
    most = power_of_two(max(sequences * asked.context, page))
    least = min(max(bounds.smallest, power_of_two(sequences + page)), most)
    largest = max(least, min(bounds.largest, most))
    return 1 << np.arange(least.bit_length() - 1, largest.bit_length())


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least ``least``."""
    return 1 << max(0, least - 1).bit_length()


def _take(layout: Layout, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Layout:
    def at(column: Ints) -> Ints:
        entries: Ints = np.asarray(column)[index]
        return entries

    return Layout(at(layout.tensor), at(layout.pipeline), at(layout.expert), at(layout.data), layout.per_node)


def _refused(asked: Deployment, refusals: tuple[Refusal, ...]) -> list[Problem]:
    """One problem: of what the engine that got furthest lacks; what others lack is in its cause."""
    order = list(CODES)
    furthest = max(refusals, key=lambda one: order.index(one.lacks))
    code, key = CODES[furthest.lacks]
    because = "; ".join(f"{one.engine}: {one.reason}" for one in refusals)
    if furthest.lacks == "engine" and asked.spec.pin.engine is None:
        return [
            Problem(
                "IC209",
                f"no engine runs {asked.graph.name} on {asked.target.name}",
                asked.where("target"),
                because,
                "another model, or another target: infer-compile targets",
            )
        ]
    message = {
        "engine": f"{asked.spec.pin.engine} cannot serve {asked.graph.name} on {asked.target.name}",
        "weights": f"weights {asked.pinned_weights} cannot be served",
        "kv": f"kv level {asked.spec.pin.kv} cannot be served",
        "speculation": f"speculation {_method(asked)} cannot be served",
        "parallelism": f"{asked.devices} devices cannot share {asked.graph.name} so",
        "overflow": f"sequences cannot go on beyond a context of {asked.context} tokens",
        "shadow": "answers cannot be checked against an exact cache",
    }[furthest.lacks]
    where = asked.where(key)
    if furthest.lacks == "parallelism" and asked.spec.pin.parallelism is None:
        where = asked.where("target.count")
    return [Problem(code, message, where, because, _mend(asked, furthest))]


def _mend(asked: Deployment, refusal: Refusal) -> str:
    if refusal.lacks == "engine":
        return "remove the pin: the planner chooses an engine that runs it"
    if refusal.lacks == "weights" and asked.pinned_group:
        name = asked.pinned_weights or NATIVE[0]
        fitting = [str(g) for g in GROUPS if not misfits(asked.graph, weight_format(name, g))]
        return f"group: {' or '.join(fitting)}" if fitting else "weights: bf16"
    if refusal.lacks == "parallelism":
        counts = [n for n in range(1, asked.count + 1) if _splits(asked, n)]
        return f"count: {max(counts)}" if counts else "nodes: 1, count: 1"
    if refusal.lacks == "kv":
        return f"kv: {_smallest(asked, refusal.engine)}"
    return {
        "weights": "weights: bf16",
        "speculation": "speculation: none",
        "overflow": "overflow: stop, or a longer context",
        "shadow": "remove serving.shadow",
    }[refusal.lacks]


def _smallest(asked: Deployment, name: str) -> str:
    """The level of the fewest bits that the engine of that name serves."""
    engine, formats = asked.facts.engines.of(name), asked.facts.formats
    width = min((heads.width for heads in asked.shape.heads), default=1)
    served = support.levels(engine, asked.graph, asked.target)
    return min(served, key=lambda level: formats.of_kv(level, name).bits(width))


def _splits(asked: Deployment, count: int) -> bool:
    engines = asked.facts.engines.engines
    return any(
        layouts(asked.shape, engine, count, 1)
        for engine in engines
        if asked.spec.pin.engine in (None, engine.name)
        and not support.refusal(engine, asked.graph, asked.target)
    )


def _misfit(asked: Deployment) -> str:
    name, group = asked.pinned_weights or NATIVE[1], asked.pinned_group or min(GROUPS)
    matrix = misfits(asked.graph, weight_format(name, group))[0]
    return f"{matrix.name} has {matrix.cols} inputs, not a multiple of {group}"


def _undivided(asked: Deployment, engine: Engine) -> str:
    shape, ways = asked.shape, ", ".join(engine.parallelism) or "no"
    heads = " and ".join(sorted({str(heads.kv_heads) for heads in shape.heads}))
    return (
        f"it splits by {ways}; {asked.graph.name} has {shape.query_heads} query heads, {heads} key heads and "
        f"{shape.layers} layers" + (f", {shape.experts} experts" if shape.experts else "")
    )
