"""Why nothing fits, and the smallest changes after which something does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from ..catalog.target import Target
from ..runtime.errors import Problem
from ..spec.spec import DeviceGroup, Pin
from .block import held_for
from .candidate import Candidate
from .choose import nearest
from .deployment import Deployment, on
from .frontier import drafting, label
from .performance.layout import Layout
from .performance.memory import held_weights
from .performance.shape import Stored, stored
from .survey import Survey
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

Neighbours = Callable[[], tuple[Target, ...]] | type[tuple[Target, ...]]
"""Looks up the devices of the catalog; called only where something has to be named."""

Best = Callable[[Deployment], Candidate | None]
"""What would be chosen for a deployment; None where nothing keeps every limit."""


def describe(one: Candidate) -> str:
    """A candidate, for people."""
    layout, ways = one.layout, ("tensor", "pipeline", "expert", "data")
    split = "".join(f", {way} {size}" for way in ways if (size := int(getattr(layout, way))) > 1)
    drafts = f", {drafting(one)}" if one.drafting.tokens else ""
    return f"{one.engine.name}: {label(one)} weights, {one.level} cache{split}{drafts}"


def nearest_feasible(found: Survey, neighbours: tuple[Target, ...], best: Best) -> Problem:
    """IC201, with the candidate that misses by least and every single change that makes a plan possible."""
    asked = found.asked
    miss = found.candidate(nearest(found))
    changes = [f"  {change}" for change in _changes(found, neighbours, best)]
    fix = "any one of\n" + "\n".join(changes) if changes else "a smaller model, or more and larger devices"
    devices = f"{asked.devices} x {asked.target.name}" if asked.devices > 1 else asked.target.name
    return Problem(
        "IC201",
        f"no plan for {asked.graph.name} on {devices} keeps every limit",
        asked.where(KEYS[miss.violations[0].limit]),
        f"the nearest, {describe(miss)}, needs {_broken(miss)}{_memory(miss, asked)}",
        fix,
    )


def _broken(miss: Candidate) -> str:
    return " and ".join(
        f"{violation.limit} {violation.value} where {violation.allowed} is the limit"
        for violation in miss.violations
    )


def _memory(miss: Candidate, asked: Deployment) -> str:
    """The parts of the memory, where that is what is short."""
    held = miss.memory
    if float(held.free) >= 0:
        return ""
    each = " on each device" if asked.devices > 1 else ""
    typical = held_for(asked, miss.sequences, miss.budget).typical
    others = f" and {miss.sequences - 1} of {typical:,}" if miss.sequences > 1 else ""
    return (
        f" (weights {held.weights / GIB:.2f}, cache {held.kv / GIB:.2f} for a sequence of {asked.context:,} "
        f"tokens{others}, activations {held.activations / GIB:.2f}, overhead {held.overhead / GIB:.2f}{each})"
    )


def _changes(found: Survey, neighbours: tuple[Target, ...], best: Best) -> Iterator[str]:
    """Single changes of the spec that make it feasible, each with what it gives."""
    asked = found.asked
    yield from _fewer(asked, best)
    yield from _shorter(asked, best)
    yield from _looser(found)
    yield from _unpinned(asked, best)
    yield from _more_devices(asked, best)
    yield from _larger_device(asked, neighbours, best)


def _most(end: int, solve: Callable[[int], Candidate | None]) -> tuple[int, Candidate] | None:
    """The largest n in [1, end) that ``solve`` answers, with its answer; what n can do, less can do too."""
    found: tuple[int, Candidate] | None = None
    low, high = 1, end - 1
    while low <= high:
        middle = (low + high) // 2
        answer = solve(middle)
        if answer is None:
            high = middle - 1
        else:
            found, low = (middle, answer), middle + 1
    return found


def _fewer(asked: Deployment, best: Best) -> Iterator[str]:
    rate = asked.rate
    if rate is not None:
        share = _most(100, lambda percent: best(replace(asked, rate=rate * percent / 100)))
        if share:
            yield f"requests_per_second: {rate * share[0] / 100:.3g} ({describe(share[1])})"
        return
    most = _most(asked.concurrency, lambda n: best(replace(asked, concurrency=n)))
    if most:
        yield f"concurrency: {most[0]} ({describe(most[1])})"


def _shorter(asked: Deployment, best: Best) -> Iterator[str]:
    page = int(asked.facts.choices.cache.page_tokens.value)

    def at(pages: int) -> Deployment:
        context = pages * page
        share = min(1.0, context / (asked.input_tokens + asked.output_tokens))
        return replace(
            asked,
            context=context,
            input_tokens=max(1, int(asked.input_tokens * share)),
            output_tokens=max(1, int(asked.output_tokens * share)),
        )

    most = _most(asked.context // page, lambda pages: best(at(pages)))
    if most:
        changed = at(most[0])
        same = (changed.input_tokens, changed.output_tokens) == (asked.input_tokens, asked.output_tokens)
        lengths = (
            "" if same else f", input_tokens: {changed.input_tokens}, output_tokens: {changed.output_tokens}"
        )
        yield f"context_tokens: {changed.context}{lengths} ({describe(most[1])})"


def _looser(found: Survey) -> Iterator[str]:
    """A single limit that, moved to what a candidate gives, is kept."""
    names = [limit.name for limit in found.solved[0].limits]
    excess = np.stack(
        [found.column(lambda each, i=i: each.limits[i].excess) for i in range(len(names))]  # type: ignore[misc]
    )
    alone = (excess > 0).sum(axis=0) == 1
    for row, limit in sorted(enumerate(names), key=lambda pair: pair[1]):
        only = np.flatnonzero(alone & (excess[row] > 0))
        if limit in ("memory", "requests_per_second") or not len(only):
            continue
        one = found.candidate(nearest(found, only))
        key = KEYS[limit].rpartition(".")[2]
        yield f"{key} no tighter than the {one.violations[0].value} of {describe(one)}"


def _unpinned(asked: Deployment, best: Best) -> Iterator[str]:
    pin = asked.spec.pin
    freed: dict[str, Pin] = {
        f"pin.{key}": pin.model_copy(update={key: None})
        for key in ("weights", "kv", "engine", "speculation", "parallelism")
        if getattr(pin, key) is not None
    }
    if len(freed) > 1:
        freed["every pin"] = Pin()
    for key, changed in freed.items():
        one = best(replace(asked, spec=asked.spec.model_copy(update={"pin": changed})))
        if one is not None:
            yield f"remove {key} ({describe(one)})"


def _more_devices(asked: Deployment, best: Best) -> Iterator[str]:
    if asked.target.kind == "cpu":
        return
    for count, nodes in _larger_groups(asked.count, asked.nodes):
        changed = on(asked, asked.target, DeviceGroup(device=asked.target.id, count=count, nodes=nodes))
        one = best(changed) if changed else None
        if one is not None:
            machines = f" in each of {nodes} machines" if nodes > 1 else ""
            yield f"count: {count} of {asked.target.id}{machines} ({describe(one)})"
            return


def _larger_groups(count: int, nodes: int) -> Iterator[tuple[int, int]]:
    """More devices, the fewest first: one more, then doubled up to eight in a machine, then more machines."""
    if count < 8:
        yield count + 1, nodes
    for more in (2 * count, 4 * count, 8 * count):
        if count + 1 < more <= 8:
            yield more, nodes
    for machines in (2, 4, 8):
        yield max(count, 8), nodes * machines


def _larger_device(asked: Deployment, neighbours: tuple[Target, ...], best: Best) -> Iterator[str]:
    """The device with the least memory of those of the same kind that are large and fast enough; of the same
    maker if there is one."""
    others = [one for one in neighbours if one.kind == asked.target.kind and one.id != asked.target.id]
    smallest = _smallest(asked)
    for target in sorted(others, key=lambda one: (one.vendor != asked.target.vendor, one.memory_gb, one.id)):
        if target.memory_gb * 1e9 < smallest:
            continue
        group = DeviceGroup(device=target.id, count=asked.count, nodes=asked.nodes)
        changed = on(asked, target, group)
        one = best(changed) if changed else None
        if one is not None:
            figures = f"{target.memory_gb:g} GB, {target.bandwidth_gbs:g} GB/s"
            yield f"target: {target.id} ({figures}; {describe(one)})"
            return


def _smallest(asked: Deployment) -> float:
    """Bytes that each device needs at least for the weights: devices with less are not worth a search."""
    every: list[Stored] = [stored(asked.graph, scheme) for scheme in asked.facts.formats.weights]
    layout = Layout(tensor=asked.devices)
    return min(float(held_weights(each, asked.shape, layout)) for each in every)
