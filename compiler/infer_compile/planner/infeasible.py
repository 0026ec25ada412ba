"""Why nothing fits, and the smallest changes after which something does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..catalog.target import Target
from ..runtime.errors import Problem
from ..spec.spec import DeviceGroup, Pin
from .candidate import Candidate
from .deployment import Deployment, on
from .units import GIB

KEYS = {
    "memory": "workload",
    "ttft_ms": "slo.ttft_ms",
    "itl_ms": "slo.itl_ms",
    "tokens_per_second": "slo.tokens_per_second",
    "requests_per_second": "workload.requests_per_second",
    "quality": "quality.max_loss_percent",
}
"""Limit to the key of the spec that sets it."""

Neighbours = Callable[[], tuple[Target, ...]]
"""Looks up the devices of the catalog; called only where something has to be named."""

Solve = Callable[[Deployment], tuple[Candidate, ...]]
"""All candidates of a deployment."""


def describe(one: Candidate) -> str:
    """The formats of a candidate, for people."""
    group = f" (groups of {one.weights.group})" if one.weights.group else ""
    return f"{one.weights.name}{group} weights, {one.layout.level} cache"


def nearest_feasible(
    asked: Deployment, candidates: tuple[Candidate, ...], neighbours: tuple[Target, ...], solve: Solve
) -> Problem:
    """IC201, with the candidate that misses by least and every single change that makes a plan possible."""
    miss = min(candidates, key=lambda one: one.excess)
    changes = [f"  {change}" for change in _changes(asked, candidates, neighbours, solve)]
    fix = "any one of\n" + "\n".join(changes) if changes else "a smaller model, or more and larger devices"
    devices = f"{asked.tensor} x {asked.target.name}" if asked.tensor > 1 else asked.target.name
    return Problem(
        "IC201",
        f"no plan for {asked.graph.name} on {devices} keeps every limit",
        asked.where(KEYS[miss.violations[0].limit]),
        f"the nearest, {describe(miss)}, needs {_broken(miss)}{_memory(miss)}",
        fix,
    )


def _broken(miss: Candidate) -> str:
    return " and ".join(
        f"{violation.limit} {violation.value} where {violation.allowed} is the limit"
        for violation in miss.violations
    )


def _memory(miss: Candidate) -> str:
    """The parts of the memory, where that is what is short."""
    if miss.memory.free >= 0:
        return ""
    held, limits = miss.memory, miss.limits
    return (
        f" (weights {held.weights / GIB:.2f}, cache {held.kv / GIB:.2f} for {limits.max_sequences} x "
        f"{limits.max_context:,} tokens, activations {held.activations / GIB:.2f}, "
        f"overhead {held.overhead / GIB:.2f})"
    )


def _changes(
    asked: Deployment, candidates: tuple[Candidate, ...], neighbours: tuple[Target, ...], solve: Solve
) -> Iterator[str]:
    """Single changes of the spec that make it feasible, each with what it gives."""

    def solved(changed: Deployment) -> Candidate | None:
        return next((one for one in solve(changed) if one.feasible), None)

    yield from _fewer(asked, solved)
    yield from _shorter(asked, solved)
    yield from _looser(candidates)
    yield from _unpinned(asked, solved)
    yield from _more_devices(asked, solved)
    yield from _larger_device(asked, neighbours, solved)


Solved = Callable[[Deployment], Candidate | None]


def _most(end: int, solve: Callable[[int], Candidate | None]) -> tuple[int, Candidate] | None:
    """The largest n in [1, end) that ``solve`` answers, with its answer; what n can do, less can do too."""
    best: tuple[int, Candidate] | None = None
    low, high = 1, end - 1
    while low <= high:
        middle = (low + high) // 2
        found = solve(middle)
        if found is None:
            high = middle - 1
        else:
            best, low = (middle, found), middle + 1
    return best


def _fewer(asked: Deployment, solved: Solved) -> Iterator[str]:
    rate = asked.rate
    if rate is not None:
        share = _most(100, lambda percent: solved(replace(asked, rate=rate * percent / 100)))
        if share:
            yield f"requests_per_second: {rate * share[0] / 100:.3g} ({describe(share[1])})"
        return
    most = _most(asked.concurrency, lambda n: solved(replace(asked, concurrency=n)))
    if most:
        yield f"concurrency: {most[0]} ({describe(most[1])})"


def _shorter(asked: Deployment, solved: Solved) -> Iterator[str]:
    page = int(asked.facts.coefficients.cache.page_tokens.value)

    def at(pages: int) -> Deployment:
        context = pages * page
        share = min(1.0, context / (asked.input_tokens + asked.output_tokens))
        return replace(
            asked,
            context=context,
            input_tokens=max(1, int(asked.input_tokens * share)),
            output_tokens=max(1, int(asked.output_tokens * share)),
        )

    most = _most(asked.context // page, lambda pages: solved(at(pages)))
    if most:
        changed = at(most[0])
        same = (changed.input_tokens, changed.output_tokens) == (asked.input_tokens, asked.output_tokens)
        lengths = (
            "" if same else f", input_tokens: {changed.input_tokens}, output_tokens: {changed.output_tokens}"
        )
        yield f"context_tokens: {changed.context}{lengths} ({describe(most[1])})"


def _looser(candidates: tuple[Candidate, ...]) -> Iterator[str]:
    """A single limit that, moved to what a candidate gives, is kept."""
    best: dict[str, Candidate] = {}
    for one in candidates:
        if len(one.violations) == 1 and one.violations[0].limit not in ("memory", "requests_per_second"):
            limit = one.violations[0].limit
            if limit not in best or one.excess < best[limit].excess:
                best[limit] = one
    for limit, one in sorted(best.items()):
        value = one.violations[0].value
        key = KEYS[limit].rpartition(".")[2]
        yield f"{key} no tighter than the {value} of {describe(one)}"


def _unpinned(asked: Deployment, solved: Solved) -> Iterator[str]:
    pin = asked.spec.pin
    freed = {
        "pin.weights": pin.model_copy(update={"weights": None}),
        "pin.kv": pin.model_copy(update={"kv": None}),
        "pin.weights and pin.kv": Pin(parallelism=pin.parallelism),
    }
    for key, changed in freed.items():
        if changed == pin or (key.count("pin") == 2 and None in (pin.weights, pin.kv)):
            continue
        one = solved(replace(asked, spec=asked.spec.model_copy(update={"pin": changed})))
        if one is not None:
            yield f"remove {key} ({describe(one)})"


def _more_devices(asked: Deployment, solved: Solved) -> Iterator[str]:
    if asked.target.kind == "cpu":
        return
    for count in (2 * asked.tensor, 4 * asked.tensor, 8 * asked.tensor):
        changed = on(asked, asked.target, DeviceGroup(device=asked.target.id, count=count))
        one = solved(changed) if changed else None
        if one is not None:
            yield f"count: {count} of {asked.target.id} ({describe(one)})"
            return


def _larger_device(asked: Deployment, neighbours: tuple[Target, ...], solved: Solved) -> Iterator[str]:
    """The device with the least memory of those of the same kind that are large and fast enough; of the same
    maker if there is one."""
    others = (one for one in neighbours if one.kind == asked.target.kind and one.id != asked.target.id)
    for target in sorted(others, key=lambda one: (one.vendor != asked.target.vendor, one.memory_gb, one.id)):
        changed = on(asked, target, DeviceGroup(device=target.id, count=asked.tensor))
        one = solved(changed) if changed else None
        if one is not None:
            figures = f"{target.memory_gb:g} GB, {target.bandwidth_gbs:g} GB/s"
            yield f"target: {target.id} ({figures}; {describe(one)})"
            return
