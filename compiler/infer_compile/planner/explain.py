"""A plan as a good engineer's note: what limits it, where the memory goes, what was decided and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from .plan import Plan
from .units import GIB, duration, size

BAR_CELLS = 48
_PARTS = (
    ("weights", "weights", "█", "cyan"),
    ("kv", "cache", "▓", "magenta"),
    ("activations", "activations", "▒", "yellow"),
    ("overhead", "overhead", "░", "white"),
)
_STEP = (
    ("weights", "reading weights"),
    ("cache", "reading the cache"),
    ("compute", "compute"),
    ("fixed", "fixed cost"),
    ("links", "interconnect"),
    ("prefill", "prompts of others"),
)


def table(plan: Plan) -> RenderableType:
    """For a terminal."""
    return Group(
        Text(headline(plan), style="bold"),
        *([Text(f"cannot be built: {plan.not_buildable}", style="bold red")] if not plan.buildable else []),
        Text(),
        _section("expected", _facts(expected(plan))),
        _section("a decode step", _facts(step_lines(plan))),
        _section(f"memory{_each(plan)}", Group(_bar(plan), _facts(memory_lines(plan)))),
        _section("decisions", _decisions(plan)),
        *(
            [_section("other plans that keep every limit", _facts(other_lines(plan)))]
            if plan.alternatives
            else []
        ),
        *([_section("out of the question", _facts(rejected_lines(plan)))] if plan.rejected else []),
        _section("where the numbers stem from", _facts(source_lines(plan))),
    )


def markdown(plan: Plan) -> str:
    """For a page or a pull request."""
    lines = [f"# {plan.name}", "", headline(plan), ""]
    if not plan.buildable:
        lines += [f"**Cannot be built:** {plan.not_buildable}", ""]
    for title, heads, rows in (
        ("Expected", ("figure", "value"), expected(plan)),
        ("A decode step", ("part", "time"), step_lines(plan)),
        (f"Memory{_each(plan)}", ("part", "size"), memory_lines(plan)),
        ("Decisions", ("key", "value", "why", "source"), decision_rows(plan)),
        ("Other plans that keep every limit", ("plan", "what it gives up"), other_lines(plan)),
        ("Out of the question", ("plan", "limit"), rejected_lines(plan)),
        ("Where the numbers stem from", ("figures", "source"), source_lines(plan)),
    ):
        if rows:
            lines += [f"## {title}", "", *_markdown_table(heads, rows), ""]
    return "\n".join(lines)


def headline(plan: Plan) -> str:
    """Model, device and load in one sentence, and what limits the speed."""
    seen = plan.predicted
    load = seen.workload
    devices = f"{plan.target.devices} x {plan.target.name}" if plan.target.devices > 1 else plan.target.name
    term = _bottleneck(plan)
    return (
        f"{plan.model.name or plan.model.source} ({_count(plan.model.parameters)} parameters) on {devices}, "
        f"{load.concurrency} sequence{'s' * (load.concurrency > 1)} in flight: {duration(seen.itl_ms)} "
        f"between tokens, limited by {seen.bottleneck} ({term})."
    )


def _bottleneck(plan: Plan) -> str:
    """The numbers behind the bottleneck."""
    step, target, total = plan.predicted.step_ms, plan.target, plan.predicted.itl_ms
    match plan.predicted.bottleneck:
        case "weight bandwidth":
            return f"{step.weights:g} of {total:g} ms to read them at {target.bandwidth_gbs:g} GB/s"
        case "cache bandwidth":
            return f"{step.cache:g} of {total:g} ms to read it at {target.bandwidth_gbs:g} GB/s"
        case "compute":
            return f"{step.compute:g} of {total:g} ms of arithmetic at {target.matrix_tflops:g} TFLOPS"
        case "interconnect":
            return f"{step.links:g} of {total:g} ms between the devices"
        case "fixed cost":
            return f"{step.fixed:g} of {total:g} ms of overhead per step and sequence"
        case _:
            return f"{step.prefill:g} of {total:g} ms for prompts computed in between"


def expected(plan: Plan) -> list[tuple[str, str]]:
    seen = plan.predicted
    load, loss = seen.workload, seen.quality_loss_percent
    rows = [
        ("time to first token", f"{duration(seen.ttft_ms)} for a prompt of {load.input_tokens:,} tokens"),
        (
            "time between tokens",
            f"{duration(seen.itl_ms)} at a mean context of {load.context_tokens:,} tokens",
        ),
        (
            "tokens per second",
            f"{seen.tokens_per_second_per_user:g} per user, {seen.tokens_per_second:g} in total",
        ),
        ("prompt", f"{seen.prefill_tokens_per_second:g} tokens per second, alone"),
        ("quality loss", f"{loss.expected:g} % of perplexity ({loss.low:g} to {loss.high:g})"),
    ]
    if seen.cost is not None:
        rows.append(
            (
                "cost",
                f"{seen.cost.usd_per_million_tokens:g} USD per million tokens "
                f"at {seen.cost.usd_per_hour:g} an hour",
            )
        )
    return rows


def step_lines(plan: Plan) -> list[tuple[str, str]]:
    """The parts of a decode step that take time."""
    step, total = plan.predicted.step_ms, plan.predicted.itl_ms
    return [
        (name, f"{duration(value)}  {value / total:4.0%}")
        for key, name in _STEP
        if (value := getattr(step, key)) > 0
    ]


def memory_lines(plan: Plan) -> list[tuple[str, str]]:
    held = plan.predicted.memory_gib
    notes = {
        "weights": f"{plan.weights.format}, {plan.weights.bits_per_weight:g} bits per weight of the layers",
        "kv": f"{plan.limits.max_sequences} x {plan.limits.max_context:,} tokens, {plan.kv.level}, "
        f"{plan.kv.bytes_per_token:,} bytes per token",
        "activations": f"steps of at most {plan.limits.max_batch_tokens:,} tokens",
        "overhead": "",
    }
    rows = [
        (f"{mark} {name}", f"{size(getattr(held, key) * GIB)}  {notes[key]}".rstrip())
        for key, name, mark, _ in _PARTS
    ]
    return [*rows, ("total", f"{size(held.total * GIB)} of {size(held.capacity * GIB)}")]


def decision_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    return [(reason.key, reason.value, reason.why, reason.source) for reason in plan.reasons]


def other_lines(plan: Plan) -> list[tuple[str, str]]:
    return [
        (
            f"{other.target}: {other.weights}, {other.kv} cache",
            f"{duration(other.itl_ms)}, {other.tokens_per_second:g} tokens/s, {other.memory_gib:g} GiB, "
            f"{other.quality_loss_percent:g} % loss; gives up {other.gives_up}",
        )
        for other in plan.alternatives
    ]


def rejected_lines(plan: Plan) -> list[tuple[str, str]]:
    return [
        (
            f"{miss.target}: {miss.weights}, {miss.kv} cache",
            f"{miss.limit}: {miss.value}, limit {miss.allowed}",
        )
        for miss in plan.rejected
    ]


def source_lines(plan: Plan) -> list[tuple[str, str]]:
    """Figures that share a source in one line."""
    shared: dict[str, list[str]] = {}
    for figure, source in plan.predicted.sources.items():
        shared.setdefault(f"{source.basis}: {source.text}", []).append(figure)
    return [(", ".join(figures), text) for text, figures in shared.items()]


def _each(plan: Plan) -> str:
    return f" of each of {plan.target.devices} devices" if plan.target.devices > 1 else ""


def _count(parameters: int) -> str:
    for scale, unit in ((1e9, "billion"), (1e6, "million")):
        if parameters >= scale:
            return f"{parameters / scale:.3g} {unit}"
    return f"{parameters:,}"


def cells(plan: Plan) -> list[int]:
    """Cells of the memory bar for each part; a part that is there takes one at least."""
    held = plan.predicted.memory_gib
    values = [getattr(held, key) for key, *_ in _PARTS]
    counts = [max(1, round(BAR_CELLS * value / held.capacity)) if value else 0 for value in values]
    largest = counts.index(max(counts))
    counts[largest] -= max(0, sum(counts) - BAR_CELLS)
    return counts


def _bar(plan: Plan) -> RenderableType:
    bar = Text("▕")
    counts = cells(plan)
    for (_, _, mark, style), count in zip(_PARTS, counts, strict=True):
        bar.append(mark * count, style)
    bar.append("·" * (BAR_CELLS - sum(counts)), "dim")
    bar.append(f"▏ {size(plan.predicted.memory_gib.capacity * GIB)}")
    return bar


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold"), Padding(body, (0, 0, 1, 2)))


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(max_width=46)
    grid.add_column(ratio=1)
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return grid


def _decisions(plan: Plan) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(ratio=1)
    for key, value, why, source in decision_rows(plan):
        text = Text(why)
        text.append(f"  [{source}]", "dim")
        grid.add_row(Text(key), Text(value), text)
    return grid


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(heads)
    yield _row(["---"] * len(heads))
    for row in rows:
        yield _row(row)


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"
