"""A plan as a good engineer's note: what limits it, where time and memory go, what was decided and why.

All of it is read off the plan itself, which may have been written to a file long ago. ``render`` and
``markdown`` make pages of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...catalog.figure import STRENGTH
from ..plan import Choice, Plan, Predicted, significant
from ..units import GIB, size
from . import words
from .words import milliseconds

_STEP = (
    ("weights", "reading weights"),
    ("cache", "reading the cache"),
    ("compute", "arithmetic"),
    ("fixed", "fixed cost"),
    ("links", "interconnect"),
    ("prefill", "prompts of others"),
)
_MEMORY = (
    ("weights", "weights"),
    ("kv", "cache"),
    ("draft", "drafter"),
    ("activations", "activations"),
    ("overhead", "overhead"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """A predicted figure, the interval that it lies in (empty: none is given), and what it is for."""

    name: str
    value: str
    interval: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a whole: ``share`` of it, between 0 and 1."""

    key: str
    name: str
    value: str
    share: float
    note: str = ""


def headline(plan: Plan) -> str:
    """Model, devices and formats in one sentence."""
    target, drafts = plan.target, plan.speculation
    where = f"{devices(plan)} x {target.name}" if devices(plan) > 1 else target.name
    if target.nodes > 1:
        where += f" in {target.nodes} machines"
    drafter = drafts.draft if drafts.method == "draft" else drafts.method
    choices = f" with {drafts.width} choices for each" if drafts.width > 1 else ""
    drafted = f", {drafts.tokens} tokens a step drafted by {drafter}{choices}" if drafts.tokens else ""
    model = f"{plan.model.name or plan.model.source} ({words.count(plan.model.parameters)} parameters)"
    return f"{model} on {where} by {_engine(plan)}: {_weights(plan)} weights, {plan.kv.level} cache{drafted}."


def limited(plan: Plan) -> str:
    """The bottleneck, with its numbers."""
    step, target, total = plan.predicted.step_ms, plan.target, step_ms(plan)

    def of(part: float) -> str:
        return f"{milliseconds(part)} of the {milliseconds(total)} of a step"

    match plan.predicted.bottleneck:
        case "weight bandwidth":
            held = size(plan.predicted.memory_gib.weights * GIB)
            each = " on each device" if devices(plan) > 1 else ""
            return (
                f"Limited by weight bandwidth: {of(step.weights)} read weights, {held}{each}, from memory of "
                f"{target.bandwidth_gbs:,g} GB/s."
            )
        case "cache bandwidth":
            return (
                f"Limited by cache bandwidth: {of(step.cache)} read keys and values from memory of "
                f"{target.bandwidth_gbs:,g} GB/s."
            )
        case "compute":
            rate = f"; products at {target.matrix_tflops:,g} TFLOPS" if target.matrix_tflops else ""
            return f"Limited by compute: {of(step.compute)} are arithmetic{rate}."
        case "fixed cost":
            return (
                f"Limited by sequential latency: {of(step.fixed)} pass whatever is computed, in launches, "
                "layer after layer, and in the scheduler."
            )
        case "interconnect":
            return f"Limited by the interconnect: in {of(step.links)} devices wait for one another."
        case _:
            return f"Limited by prefill: {of(step.prefill)} go to the prompts of other sequences."


def capacity(plan: Plan) -> str:
    """Whether memory limits the number of sequences, as the reason for their number tells; empty if there is
    room for another."""
    told = next((one.why for one in plan.reasons if one.key == "limits.max_sequences"), "")
    *_, one_more, room = ("", *told.split("; "))
    if room != words.FULL:
        return ""
    held = plan.predicted.memory_gib
    free = size(max(held.capacity - held.total, 0) * GIB)
    return f"Capacity limits the number of sequences: {free} are free, and {one_more}."


def expected(plan: Plan) -> list[Figure]:
    """What users will see, each with its interval."""
    seen, loss = plan.predicted, plan.predicted.quality_loss_percent
    asked = seen.workload
    return [
        Figure(
            "time to first token",
            milliseconds(seen.ttft_ms),
            words.between(seen.ttft_ms_low, seen.ttft_ms_high),
            f"for a prompt of {asked.input_tokens:,} tokens, waiting included",
        ),
        Figure(
            "time between tokens",
            milliseconds(seen.itl_ms),
            words.between(seen.itl_ms_low, seen.itl_ms_high),
            f"after {asked.context_tokens:,} tokens, the mean",
        ),
        Figure(
            "whole answer",
            f"{words.whole(seen.e2e_s)} s",
            f"{words.whole(seen.e2e_s_low)} to {words.whole(seen.e2e_s_high)} s",
            f"of {asked.output_tokens:,} tokens, from the request on",
        ),
        Figure("tokens per second", words.whole(seen.tokens_per_second), "", "of all sequences together"),
        Figure("for one user", words.whole(seen.tokens_per_second_per_user), "", "tokens per second"),
        Figure("prompt", words.whole(seen.prefill_tokens_per_second), "", "tokens per second, alone"),
        Figure("quality loss", f"{loss.expected:g} %", f"{loss.low:g} to {loss.high:g} %", "of perplexity"),
    ]


def load(plan: Plan) -> str:
    """The load that the figures are for."""
    asked = plan.predicted.workload
    noun = "sequence" if asked.concurrency == 1 else "sequences"
    return (
        f"{asked.concurrency:,} {noun} in flight, prompts of {asked.input_tokens:,} tokens, answers of "
        f"{asked.output_tokens:,}"
    )


def step(plan: Plan) -> list[Part]:
    """Where the time of a step goes."""
    parts, total = plan.predicted.step_ms, step_ms(plan)
    found = [(key, name, float(getattr(parts, key))) for key, name in _STEP]
    if plan.speculation.tokens:
        found.append(("draft", "drafting", significant(max(0.0, total - sum(each for *_, each in found)))))
    return [Part(key, name, milliseconds(value), value / total) for key, name, value in found if value > 0]


def step_ms(plan: Plan) -> float:
    """One step, drafting included: a token for each sequence, or as many as are expected to be kept."""
    return significant(plan.predicted.itl_ms * plan.speculation.tokens_per_step)


def steps_yield(plan: Plan) -> str:
    """What a step takes and gives."""
    drafts = plan.speculation
    yields = f", {drafts.tokens_per_step:g} tokens of each sequence" if drafts.tokens else ""
    return f"{milliseconds(step_ms(plan))}{yields}"


def memory(plan: Plan) -> list[Part]:
    """Where the memory of a device goes."""
    held, limits = plan.predicted.memory_gib, plan.limits
    notes = {
        "weights": f"{_weights(plan)}, {plan.weights.bits_per_weight:g} bits per weight"
        + (f", {plan.weights.gib:.3g} GiB in all" if devices(plan) > 1 else ""),
        "kv": f"{_sequences(limits.max_sequences, limits.max_context)}; {plan.kv.level}, "
        f"{plan.kv.bytes_per_token:,} bytes per token",
        "draft": plan.speculation.draft or plan.speculation.method,
        "activations": f"steps of up to {limits.max_batch_tokens:,} tokens",
        "overhead": "runtime, server, communication",
    }
    parts = [(key, name, float(getattr(held, key))) for key, name in _MEMORY]
    return [
        Part(key, name, size(value * GIB), value / held.capacity, notes[key])
        for key, name, value in parts
        if value > 0
    ]


def _sequences(count: int, context: int) -> str:
    if count == 1:
        return f"one sequence of up to {context:,} tokens"
    return f"{count:,} sequences, one of them up to {context:,} tokens"


def named(one: Choice, plan: Plan) -> str:
    """A choice in as few words as tell it from the plan."""
    parts = [f"{one.engine} {one.weights}"]
    if one.target != plan.target.id:
        parts.insert(0, one.target)
    if one.kv != "bf16" or plan.kv.level != "bf16":
        parts.append(f"{one.kv} cache")
    if one.parallelism != plan.parallelism:
        parts.append(words.split(one.parallelism))
    if one.speculation != "none":
        parts.append(one.speculation)
    return ", ".join(parts)


LEVELS = ("", "bits", "bytes", "between", "tokens/s", "GiB", "loss", "")


def levels(plan: Plan) -> Iterator[tuple[str, ...]]:
    """The table of cache levels, its columns named by ``LEVELS``."""
    for one in plan.levels:
        loss = one.quality_loss_percent
        remarks = ["chosen"] if one.level == plan.kv.level else []
        remarks += ["calibrated at build"] if one.calibrated else []
        remarks += [one.breaks] if one.breaks else []
        yield (
            one.level,
            f"{one.bits_per_element:.3g}",
            f"{one.bytes_per_token:,}",
            words.milliseconds(one.itl_ms),
            words.whole(one.tokens_per_second),
            words.whole(one.memory_gib),
            f"{loss.expected:g} % ({loss.low:g} to {loss.high:g})" if loss.high else "0 %",
            "; ".join(remarks),
        )


def misses(plan: Plan) -> dict[str, list[str]]:
    """Near misses, each with the limits that it broke, in the order of the plan."""
    found: dict[str, list[str]] = {}
    for miss in plan.rejected:
        broken = words.broken(miss.limit, miss.value, miss.allowed)
        found.setdefault(named(miss, plan), []).append(broken)
    return found


def origins(plan: Plan) -> list[tuple[str, str, str]]:
    """Basis, figures and source, the weakest first; figures that share a source stand together."""
    shared: dict[tuple[str, str], dict[str, None]] = {}
    for key in sorted(plan.predicted.sources, key=_place):
        source = plan.predicted.sources[key]
        shared.setdefault((source.basis, source.text), {})[_noun(key)] = None
    ranked = sorted(shared.items(), key=lambda entry: -STRENGTH.index(entry[0][0]))
    return [(basis, ", ".join(names), text) for (basis, text), names in ranked]


_NOUNS: Mapping[str, str] = {
    "ttft_ms": "time to first token",
    "itl_ms": "time between tokens",
    "e2e_s": "whole answer",
    "tokens_per_second": "tokens per second",
    "tokens_per_second_per_user": "tokens per second",
    "prefill_tokens_per_second": "prompt",
    "step_ms": "parts of a step",
    "quality_loss_percent": "quality loss",
    "workload": "load",
    "speculation": "drafts accepted",
    "cost.usd_per_hour": "price",
    "cost.usd_per_month": "price",
    "cost.usd_per_million_tokens": "price of a token",
    "cost.usd_per_query": "price of a token",
    "cost.break_even_tokens_per_month": "break-even",
    "cost.break_even_utilization": "break-even",
    "cost.bandwidth_gbs_per_usd_hour": "bandwidth for the money",
    "cost.watts": "power",
    "cost.kwh_per_million_tokens": "electricity",
    "cost.energy_usd_per_month": "price of electricity",
    "memory_gib.kv": "cache",
    "memory_gib.draft": "drafter",
    "memory_gib.total": "memory in all",
    "memory_gib.capacity": "memory there is",
}


def _place(key: str) -> tuple[int, str]:
    """Figures in the order of the plan, whatever the order that they were written in."""
    group, fields = key.partition(".")[0], tuple(Predicted.model_fields)
    return (fields.index(group) if group in fields else len(fields)), key


def _noun(key: str) -> str:
    group, _, name = key.partition(".")
    if group.endswith(("_low", "_high")):
        return "ends of intervals"
    return _NOUNS.get(key) or _NOUNS.get(group) or name or group


def devices(plan: Plan) -> int:
    return plan.target.count * plan.target.nodes


def _engine(plan: Plan) -> str:
    version = f" {plan.engine_version}" if plan.engine_version[:1].isdigit() else ""
    return f"{plan.engine}{version}"


def _weights(plan: Plan) -> str:
    return f"{plan.weights.format}/{plan.weights.group}" if plan.weights.group else plan.weights.format
