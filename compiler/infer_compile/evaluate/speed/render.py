"""A bench as a table for people and as plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ...planner.plan import significant
from .bench import Bench, words
from .comparison import NEAR_PERCENT, DecodeStep, Figure, Point
from .machine import Rate

_DIGITS = 5
BUSY = 0.05
"""Share of the cores' time in the hands of others from which a note is due."""
SLOW = 0.9
"""Share of a planned rate below which a note is due."""
NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "ttft_ms": ("time to first token", "ms"),
        "itl_ms": ("time between tokens", "ms"),
        "prefill_tokens_per_second": ("prompt", "tokens/s"),
        "tokens_per_second_per_user": ("for one user", "tokens/s"),
        "tokens_per_second": ("all together", "tokens/s"),
    }
)
"""Figures in words, with their units."""
PLANNED = ("ttft_ms", "itl_ms", "tokens_per_second")
"""Those that the plan states for clients over HTTP."""


def as_json(found: Bench, within: float | None) -> dict[str, Any]:
    """Stable keys; what is not known is null."""
    plan, here = found.plan, found.machine
    fields: dict[str, Any] = {
        "bundle": plan.name,
        "fingerprint": found.fingerprint,
        "model": plan.model.name,
        "weights": plan.weights.format,
        "weights_group": plan.weights.group,
        "kv": plan.kv.level,
        "engine": found.engine,
        "isa": found.isa,
        "device": here.name,
        "threads": found.threads,
        "rounds": found.rounds,
        "start": {**found.start.phases, "total": sum(found.start.phases.values())},
        "machine": {
            "cores": here.cores,
            "bandwidth_gbs": _rate(here.bandwidth),
            "matrix_tflops": _rate(here.matrix),
            "others_share": here.others,
        },
        "memory": asdict(found.memory),
        "plan": {name: getattr(plan.predicted, name) for name in PLANNED},
        "points": [_point(found, each) for each in found.points],
        "slo": [
            {"name": goal.name, "wanted": goal.wanted, "measured": goal.measured, "held": goal.held}
            for goal in found.goals
        ],
        "within_percent": within,
        "notes": notes(found),
    }
    short: dict[str, Any] = _short(fields)
    return short


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return significant(value, _DIGITS)
    if isinstance(value, dict):
        return {str(key): _short(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_short(inner) for inner in value]
    return value


def _rate(rate: Rate) -> dict[str, float | None]:
    return {"planned": rate.planned, "now": rate.now, "ratio": rate.ratio}


def _point(found: Bench, one: Point) -> dict[str, Any]:
    step, load = one.step, one.load
    return {
        "sequences": load.sequences,
        "input_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
        "requests_per_second": load.rate,
        "planned": one.planned,
        "requests": one.requests,
        "seconds": one.seconds,
        "figures": {each.name: _figure(each) for each in one.figures},
        "ttft_ms_percentiles": one.ttft_ms,
        "itl_ms_percentiles": one.itl_ms,
        "decode_step": None
        if step is None
        else {
            "ms": step.seconds * 1e3,
            "predicted_ms": None if step.predicted is None else step.predicted * 1e3,
            "context_tokens": step.context,
            "read_bytes": step.read_bytes,
            "gbs": None if step.bytes_per_second is None else step.bytes_per_second / 1e9,
            "bandwidth_share": _share(found, step),
        },
        "speculation": None if one.speculated is None else asdict(one.speculated),
        "engine_share": one.engine_share,
        "preempted": one.preempted,
    }


def _figure(one: Figure) -> dict[str, Any]:
    return {**asdict(one), "ratio": one.ratio, "inside": one.inside, "off_percent": one.off_percent}


def _peak(found: Bench) -> tuple[float | None, str]:
    """The bandwidth that the machine gives, 1e9 bytes per second, and what is known of it."""
    rate = found.machine.bandwidth
    if rate.now is not None:
        return rate.now, "measured now"
    return rate.planned, "planned" if found.machine.sustained else "at most"


def _share(found: Bench, step: DecodeStep) -> float | None:
    """What the step reads over the machine's bandwidth."""
    rate, peak = step.bytes_per_second, _peak(found)[0]
    return None if rate is None or not peak else rate / (peak * 1e9)


def notes(found: Bench) -> list[str]:
    """What a reader has to know to read the figures."""
    here, told = found.machine, [found.stale] if found.stale else []
    if here.others is not None and here.others > BUSY:
        told.append(
            f"other programs took {here.others:.0%} of the processor time while this was measured: "
            "measure on a machine at rest"
        )
    for rate, what in ((here.bandwidth, "read bandwidth"), (here.matrix, "matrix rate")):
        if here.sustained and rate.ratio is not None and rate.ratio < SLOW:
            told.append(f"the machine gives {rate.ratio:.0%} of the {what} that was planned with")
    for each in found.points:
        if each.preempted:
            told.append(
                f"{words(each.load)}: {each.preempted} times a sequence gave its pages to others; the cache "
                "holds fewer such sequences at once"
            )
        share = None if each.step is None else _share(found, each.step)
        if share is not None and share > 1:
            told.append(f"{words(each.load)}: more than memory gives is read from the processor's caches")
    if found.asked and not any(each.planned for each in found.points):
        told.append("the spec's slo is of the planned load, which was not measured")
    return told


def page(found: Bench, within: float | None) -> Group:
    """Everything for people."""
    parts: list[Text | Table] = [_head(found), _rates(found)]
    for each in found.points:
        parts += [Text(""), Text(_title(found, each), style="bold"), _figures(each, within)]
        parts += [Text(line) for line in _beneath(found, each)]
    if found.goals:
        parts += [Text(""), Text("the spec's slo, of the planned load", style="bold"), _goals(found)]
    return Group(*parts)


def _title(found: Bench, one: Point) -> str:
    planned = ", as planned" if one.planned else ""
    return (
        f"{words(one.load)}{planned}: {one.requests} requests in {one.seconds:.1f} s, {found.rounds} rounds"
    )


def _grid(right: tuple[str, ...], left: tuple[str, ...] = ()) -> Table:
    """A name, its unit, then columns of numbers and of words."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
    for name in ("", "", *right, *left):
        made.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return made


def _head(found: Bench) -> Text:
    plan, here = found.plan, found.machine
    threads = f", {found.threads} threads" if found.threads else ""
    group = f"/{plan.weights.group}" if plan.weights.group else ""
    phases = ", ".join(f"{name.replace('_', ' ')} {took:.2f}" for name, took in found.start.phases.items())
    memory = found.memory
    held = "" if memory.resident_bytes is None else f", held by this process {_gib(memory.resident_bytes)}"
    return Text(
        f"{plan.name} ({found.fingerprint}): {plan.model.name}, {plan.weights.format}{group} weights, "
        f"{plan.kv.level} cache, on {here.name} ({found.isa}{threads})\n"
        f"ready after {sum(found.start.phases.values()):.2f} s: {phases}\n"
        f"a cached token takes {memory.token_bytes:,} bytes, planned {memory.planned_token_bytes:,}; "
        f"memory planned {_gib(memory.planned_bytes)}{held}\n"
    )


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"


def _rates(found: Bench) -> Table:
    here = found.machine
    made = _grid(("planned", "now", "ratio"))
    planned = "" if here.sustained else " (peak)"
    for name, unit, rate in (
        (f"read bandwidth{planned}", "GB/s", here.bandwidth),
        ("matrix rate", "TFLOPS", here.matrix),
    ):
        made.add_row(name, unit, _number(rate.planned), _number(rate.now), _places(rate.ratio))
    if here.others is not None:
        made.add_row("taken by other programs", "%", "", f"{here.others:.0%}", "")
    return made


def _figures(one: Point, within: float | None) -> Table:
    made = _grid(("predicted", "80 % of cases", "now", "measured", "rounds", "p99", "ratio"), (" ",))
    near = NEAR_PERCENT if within is None else within
    percentiles = {"ttft_ms": one.ttft_ms, "itl_ms": one.itl_ms}
    for each in one.figures:
        slowest = percentiles.get(each.name, {}).get(99)
        made.add_row(
            *NAMES[each.name],
            _number(each.predicted),
            _span(each.low, each.high),
            _number(each.predicted_now),
            _number(each.measured),
            _span(each.least, each.most),
            "" if slowest is None else _number(slowest),
            _places(each.ratio),
            _verdict(each, near),
        )
    return made


def _verdict(one: Figure, near: float) -> Text:
    if one.off_percent is None:
        return Text("not predicted")
    if one.off_percent <= near:
        return Text(f"within {near:g} %", style="green")
    return Text("in the interval") if one.inside else Text("outside", style="yellow")


def _beneath(found: Bench, one: Point) -> Iterator[str]:
    """What stands behind the figures: the step, what it reads, and how the time divides."""
    if (step := one.step) is not None:
        said = f"a decode step takes {_number(step.seconds * 1e3)} ms"
        if step.predicted is not None:
            ratio = step.seconds / step.predicted
            said += f", predicted {_number(step.predicted * 1e3)} (ratio {_places(ratio)})"
        rate, share = step.bytes_per_second, _share(found, step)
        if rate is not None and share is not None and step.read_bytes is not None:
            peak, known = _peak(found)
            yield said
            said = (
                f"it reads {step.read_bytes / 1e6:,.3g} MB, weights and cache of {step.context:,} tokens: "
                f"{_number(rate / 1e9)} GB/s, {share:.0%} of {_number(peak)} {known}"
            )
        yield said
    if (drafts := one.speculated) is not None:
        said = f"a step draws {drafts.tokens_per_step:.2f} tokens of a sequence, planned "
        said += f"{drafts.planned_tokens_per_step:.2f}"
        if drafts.acceptance is not None and drafts.planned_acceptance is not None:
            said += f"; of drafted tokens {drafts.acceptance:.0%} were kept, planned "
            said += f"{drafts.planned_acceptance:.0%}"
        yield said
    yield f"{one.engine_share:.0%} of the time is spent in the engine's steps"
    if one.planned:
        said = found.plan.predicted
        yield (
            f"over HTTP the plan expects {_number(said.ttft_ms)} ms to the first token, "
            f"{_number(said.itl_ms)} ms between tokens and {_number(said.tokens_per_second)} tokens/s"
        )


def _goals(found: Bench) -> Table:
    made = _grid(("wanted", "measured"), (" ",))
    for goal in found.goals:
        name, unit = NAMES[goal.name]
        state = Text("held", style="green") if goal.held else Text("missed", style="red")
        made.add_row(name, unit, _number(goal.wanted), _number(goal.measured), state)
    return made


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{_number(low)} to {_number(high)}"


def _number(value: float | None) -> str:
    """Three digits."""
    return "-" if value is None else f"{significant(value, 3):,.{max(0, 2 - _exponent(value))}f}"


def _places(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _exponent(value: float) -> int:
    return int(f"{value:.2e}".partition("e")[2]) if value else 0
