"""One choice of formats, reckoned through: memory, time, quality, and the limits that it breaks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..runtime.formats.kv import CacheLayout, LevelName
from ..runtime.formats.program import Limits
from ..runtime.formats.weights import WeightFormat
from .deployment import Deployment
from .forecast import Forecast, Load, forecast
from .latency import Runner, machine
from .memory import Memory, memory, pool_limits
from .quality import Expected, cache_loss, weights_loss
from .units import GIB


@dataclass(frozen=True, slots=True)
class Violation:
    """A limit that a candidate breaks; ``excess`` is by how much, as a share of the limit."""

    limit: str
    value: str
    allowed: str
    excess: float


@dataclass(frozen=True, slots=True)
class Candidate:
    weights: WeightFormat
    layout: CacheLayout
    limits: Limits
    memory: Memory
    forecast: Forecast
    loss_of_weights: Expected
    loss_of_cache: Expected
    violations: tuple[Violation, ...]

    @property
    def loss(self) -> Expected:
        return self.loss_of_weights + self.loss_of_cache

    @property
    def feasible(self) -> bool:
        return not self.violations

    @property
    def excess(self) -> float:
        """How far it is from feasible."""
        return sum(violation.excess for violation in self.violations)


def cache_layout(deployment: Deployment, level: LevelName) -> CacheLayout:
    """The pages of the cache at ``level``; with bf16 no page is special."""
    choices, graph = deployment.facts.coefficients.cache, deployment.graph
    compressed = level != "bf16"
    return CacheLayout(
        level=level,
        page_tokens=int(choices.page_tokens.value),
        sink_pages=int(choices.sink_pages.value) if compressed else 0,
        recent_pages=int(choices.recent_pages.value) if compressed else 0,
        kv_heads=graph.kv_heads,
        head_dim=graph.head_dim,
        layers=graph.cache_layers,
    )


def candidate(deployment: Deployment, weights: WeightFormat, level: LevelName) -> Candidate:
    """``weights`` with a cache at ``level`` under the load asked for.

    An arrival rate is carried by the fewest sequences in flight that keep up with it; the objective
    "capacity" takes as many sequences as the limits allow.
    """
    if deployment.rate is not None:
        return _for_rate(deployment, weights, level, deployment.rate)
    asked = at(deployment, weights, level, deployment.concurrency)
    if deployment.spec.objective == "capacity" and asked.feasible:
        return _fullest(deployment, weights, level, asked)
    return asked


def at(deployment: Deployment, weights: WeightFormat, level: LevelName, concurrency: int) -> Candidate:
    """The same with ``concurrency`` sequences in flight."""
    layout = cache_layout(deployment, level)
    speed = machine(deployment.target, weights, level, deployment.engine, deployment.tensor)
    stored = deployment.shape.stored[weights]
    runner = Runner(deployment.shape, stored, layout, speed)
    load = Load(concurrency, deployment.input_tokens, deployment.output_tokens, deployment.rate)
    tokens = batch_tokens(deployment, runner, load)
    limits = pool_limits(layout, deployment.context, concurrency, tokens)
    held = memory(stored, layout, limits, deployment.target, deployment.engine, deployment.tensor)
    seen = forecast(runner, load, tokens, deployment.facts.coefficients.queueing)
    quality = deployment.facts.quality
    of_weights = weights_loss(deployment.parameters, weights, quality)
    of_cache = cache_loss(deployment.parameters, level, quality)
    return Candidate(
        weights=weights,
        layout=layout,
        limits=limits,
        memory=held,
        forecast=seen,
        loss_of_weights=of_weights,
        loss_of_cache=of_cache,
        violations=(
            *_memory_limit(held),
            *_speed_limits(deployment, seen),
            *_quality_limit(deployment, of_weights, of_cache),
        ),
    )


def batch_tokens(deployment: Deployment, runner: Runner, load: Load) -> int:
    """The token budget of a step, a power of two.

    The smallest at which a prompt's step is mostly arithmetic, so that more would only make decodes wait;
    less where a step that carries so much would break the limit on the time between tokens; never more than
    all sequences together can have.
    """
    bounds = deployment.engine.batch_tokens
    wanted = deployment.facts.coefficients.choice.prefill_efficiency.value
    # Every sequence gains a token in every step, and a prompt has to get on beside them.
    floor = max(bounds.smallest, power_of_two(load.concurrency + runner.layout.page_tokens))
    tokens = floor
    while tokens < bounds.largest:
        chunk = runner.chunk(0, tokens)
        if chunk.compute >= wanted * chunk.total:
            break
        tokens *= 2
    if deployment.slo.itl_ms is not None:
        decode = runner.decode(load.concurrency, load.decode_context).total
        prompt = load.input_tokens
        while (
            tokens > floor and decode + runner.interleaved(tokens, prompt).total > deployment.slo.itl_ms / 1e3
        ):
            tokens //= 2
    return min(tokens, power_of_two(max(load.concurrency * deployment.context, runner.layout.page_tokens)))


def power_of_two(least: int) -> int:
    """The smallest power of two that is at least ``least``."""
    return 1 << max(0, least - 1).bit_length()


def _for_rate(deployment: Deployment, weights: WeightFormat, level: LevelName, rate: float) -> Candidate:
    """Few sequences in flight that end ``rate`` requests per second (Little's law): doubled until they do,
    then bisected. Where none do, the candidate that comes nearest, with the limit that it breaks."""
    most = int(deployment.engine.most_sequences.value)
    tried = [at(deployment, weights, level, 1)]
    while tried[-1].forecast.requests_per_second < rate and tried[-1].limits.max_sequences < most:
        tried.append(at(deployment, weights, level, min(most, 2 * tried[-1].limits.max_sequences)))
    best = tried[-1]
    if best.forecast.requests_per_second < rate:
        return _too_slow(max(tried, key=lambda one: one.forecast.requests_per_second), rate)
    low, high = best.limits.max_sequences // 2 + 1, best.limits.max_sequences
    while low < high:
        middle = (low + high) // 2
        found = at(deployment, weights, level, middle)
        if found.forecast.requests_per_second >= rate:
            best, high = found, middle
        else:
            low = middle + 1
    return best


def _too_slow(best: Candidate, rate: float) -> Candidate:
    carried = best.forecast.requests_per_second
    broken = Violation("requests_per_second", f"{carried:.3g} at most", f"{rate:g}", rate / carried - 1)
    return replace(best, violations=(broken, *best.violations))


def _fullest(deployment: Deployment, weights: WeightFormat, level: LevelName, asked: Candidate) -> Candidate:
    """As many sequences as keep every limit, by bisection: a limit that few break, more break too."""
    best, low = asked, asked.limits.max_sequences
    high = max(low, int(deployment.engine.most_sequences.value))
    while low < high:
        middle = (low + high + 1) // 2
        tried = at(deployment, weights, level, middle)
        if tried.feasible:
            best, low = tried, middle
        else:
            high = middle - 1
    return best


def _memory_limit(held: Memory) -> list[Violation]:
    if held.free >= 0:
        return []
    return [
        Violation(
            "memory",
            f"{held.total / GIB:.2f} GiB",
            f"{held.capacity / GIB:.2f} GiB",
            held.total / held.capacity - 1,
        )
    ]


def _speed_limits(deployment: Deployment, seen: Forecast) -> list[Violation]:
    slo = deployment.slo
    found = []
    for limit, value, most in (("ttft_ms", seen.ttft, slo.ttft_ms), ("itl_ms", seen.itl, slo.itl_ms)):
        if most is not None and value * 1e3 > most:
            found.append(Violation(limit, f"{value * 1e3:.3g} ms", f"{most:g} ms", value * 1e3 / most - 1))
    least, speed = slo.tokens_per_second, seen.tokens_per_second
    if least is not None and speed < least:
        found.append(
            Violation("tokens_per_second", f"{speed:.3g} tokens/s", f"{least:g} tokens/s", least / speed - 1)
        )
    return found


def _quality_limit(deployment: Deployment, weights: Expected, cache: Expected) -> list[Violation]:
    """What the planner chose itself has to stay within the budget.

    A pin is the user's own decision: it is charged to a budget that the spec states, not to the default.
    """
    pins = ((weights, deployment.pinned_weights is not None), (cache, deployment.spec.pin.kv is not None))
    chosen = sum(loss.expected for loss, pinned in pins if not pinned)
    spent = sum(loss.expected for loss, pinned in pins if pinned and deployment.budget_stated)
    allowed = max(0.0, deployment.budget_percent - spent)
    if chosen <= allowed:
        return []
    return [
        Violation(
            "quality",
            f"{chosen:.3g} % loss expected",
            f"{allowed:.3g} %",
            chosen / max(allowed, 0.1) - 1,
        )
    ]
