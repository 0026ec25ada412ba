"""The note on a plan for a terminal, made to be read at a hundred columns and more."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..plan import Plan
from ..units import GIB, size
from . import note, words
from .bill import bill
from .note import Figure, Part

BAR_CELLS = 48
STEP_CELLS = 24
SHOWN = 6
"""Other plans and near misses; the other formats have them all."""
_MARKS = {
    "weights": ("█", "cyan"),
    "kv": ("▓", "magenta"),
    "draft": ("▚", "blue"),
    "activations": ("▒", "yellow"),
    "overhead": ("░", "white"),
}
_SHORT = {
    "engine.kernels": "kernels",
    "weights.group": "group",
    "weights.head": "head",
    "kv": "cache",
    "kv.page_tokens": "page",
    "kv.sink_pages": "first pages",
    "kv.recent_pages": "last pages",
    "kv.spare_pages": "spare pages",
    "parallelism": "split",
    "speculation": "drafts",
    "limits.max_context": "context",
    "limits.overflow": "beyond it",
    "limits.checked_tokens": "checked",
    "limits.max_sequences": "sequences",
    "limits.max_batch_tokens": "step tokens",
    "predicted.matrix_rate": "matrix rate",
    "quality.max_loss_percent": "loss budget",
    "cost.usd_per_hour": "USD per hour",
}


def table(plan: Plan) -> RenderableType:
    """The whole note."""
    numbers = _Sources()
    decisions, origins = _decisions(plan, numbers), _origins(plan, numbers)
    return Group(
        Text(note.headline(plan), style="bold"),
        *([Text(f"Planned only: {plan.not_buildable}.", "red")] if not plan.buildable else []),
        Text(" ".join(filter(None, (note.limited(plan), note.capacity(plan))))),
        Text(),
        _section(f"expected with {note.load(plan)}", _figures(note.expected(plan), "four of five within")),
        _section(f"a step: {note.steps_yield(plan)}", _step(plan)),
        _section(f"memory{_each(plan)}", Group(_bar(plan), _memory(plan))),
        _section("cost", _figures(bill(plan))),
        _section("decisions", decisions),
        *_optional("what would change them", _turns(plan), plan.turns),
        *_optional("cache levels, all else as decided", _levels(plan), plan.levels),
        *_optional("other plans that keep every limit", _alternatives(plan), plan.alternatives),
        *_optional("near misses", _misses(plan), plan.rejected),
        _section("what the numbers are worth, the weakest first", origins),
        _section("sources", numbers.table()),
        Text(
            f"{plan.searched.candidates:,} candidates, {plan.searched.feasible:,} of them keep every limit",
            "dim",
        ),
    )


class _Sources:
    """Sources by number, in the order that they are first named."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, source: str) -> int:
        return self._numbers.setdefault(source, len(self._numbers) + 1)

    def table(self) -> Table:
        grid = _grid(("right", None), ("left", None))
        for source, number in self._numbers.items():
            grid.add_row(Text(f"[{number}]", "dim"), Text(source, "dim"))
        return grid


def cells(parts: Sequence[Part], width: int = BAR_CELLS) -> list[int]:
    """Cells of a bar for each part; a part that is there takes one at least."""
    counts = [max(1, round(width * part.share)) for part in parts]
    counts[counts.index(max(counts))] -= max(0, sum(counts) - width)
    return counts


def _bar(plan: Plan) -> RenderableType:
    parts, held = note.memory(plan), plan.predicted.memory_gib
    counts = cells(parts)
    bar = Text("▕")
    for part, count in zip(parts, counts, strict=True):
        mark, style = _MARKS[part.key]
        bar.append(mark * count, style)
    bar.append("·" * (BAR_CELLS - sum(counts)), "dim")
    bar.append(f"▏ {size(held.total * GIB)} of {size(held.capacity * GIB)}")
    return bar


def _memory(plan: Plan) -> Table:
    grid = _grid(("left", None), ("left", None), ("right", None), ("left", 1))
    for part in note.memory(plan):
        mark, style = _MARKS[part.key]
        grid.add_row(Text(mark, style), Text(part.name), Text(part.value), Text(part.note, "dim"))
    return grid


def _step(plan: Plan) -> Table:
    grid = _grid(("left", None), ("right", None), ("right", None), ("left", None))
    for part in note.step(plan):
        blocks = "█" * max(1, round(STEP_CELLS * part.share))
        grid.add_row(Text(part.name), Text(part.value), Text(f"{part.share:.0%}"), Text(blocks, "cyan"))
    return grid


def _figures(rows: Iterable[Figure], interval: str = "") -> Table:
    grid = _grid(("left", None), ("left", None), *((("left", None),) if interval else ()), ("left", 1))
    for row in rows:
        within = (Text(row.interval and f"({row.interval})"),) if interval else ()
        grid.add_row(Text(row.name), Text(row.value, "bold"), *within, Text(row.note, "dim"))
    return grid


def _decisions(plan: Plan, sources: _Sources) -> Table:
    grid = _grid(("left", None), ("left", None), ("left", 1))
    grid.columns[1].max_width = 24
    for reason in plan.reasons:
        why = Text(reason.why)
        why.append(f" [{sources.number(reason.source)}]", "dim")
        grid.add_row(Text(_SHORT.get(reason.key, reason.key)), Text(reason.value, "bold"), why)
    return grid


def _turns(plan: Plan) -> Table:
    grid = _grid(("left", None), ("left", None), ("left", 1))
    for turn in plan.turns:
        grid.add_row(Text(turn.key), Text(turn.at), Text(turn.then, "bold"))
    return grid


def _levels(plan: Plan) -> Table:
    grid = _grid(("left", None), *((("right", None),) * 5), ("left", None), ("left", 1))
    grid.add_row(*(Text(head, "dim") for head in note.LEVELS))
    for name, *figures in note.levels(plan):
        grid.add_row(Text(name, "bold" if name == plan.kv.level else ""), *map(Text, figures))
    return grid


def _alternatives(plan: Plan) -> RenderableType:
    grid = _grid(("left", None), *((("right", None),) * 5), ("left", 1))
    grid.columns[0].max_width = 34
    heads = ("", "first token", "between", "tokens/s", "GiB", "loss", "gives up")
    grid.add_row(*(Text(head, "dim") for head in heads))
    for one in plan.alternatives[:SHOWN]:
        grid.add_row(
            Text(note.named(one, plan)),
            Text(words.milliseconds(one.ttft_ms)),
            Text(words.milliseconds(one.itl_ms)),
            Text(words.whole(one.tokens_per_second)),
            Text(words.whole(one.memory_gib)),
            Text(f"{one.quality_loss_percent:g} %"),
            Text(one.gives_up),
        )
    return _rest(grid, len(plan.alternatives))


def _misses(plan: Plan) -> RenderableType:
    grid = _grid(("left", None), ("left", 1))
    grid.columns[0].max_width = 46
    found = note.misses(plan)
    for name, broken in list(found.items())[:SHOWN]:
        grid.add_row(Text(name), Text("; ".join(broken)))
    return _rest(grid, len(found))


def _rest(grid: Table, count: int) -> RenderableType:
    """``grid``, and how many more there are."""
    return Group(grid, Text(f"and {count - SHOWN} more: --format markdown", "dim")) if count > SHOWN else grid


def _origins(plan: Plan, sources: _Sources) -> Table:
    grid = _grid(("left", None), ("left", 1))
    shared: dict[str, dict[str, None]] = {}
    for basis, names, text in note.origins(plan):
        # The weakest are worth a look at their sources; those of the rest are in the other formats.
        number = f" [{sources.number(text)}]" if basis == "assumption" else ""
        shared.setdefault(basis, {})[f"{names}{number}"] = None
    for basis, entries in shared.items():
        grid.add_row(Text(basis, "bold" if basis == "assumption" else ""), Text("; ".join(entries)))
    return grid


def _each(plan: Plan) -> str:
    return f" of each of {note.devices(plan)} devices" if note.devices(plan) > 1 else ""


def _optional(title: str, body: RenderableType, rows: Sequence[object]) -> tuple[RenderableType, ...]:
    return (_section(title, body),) if rows else ()


def _section(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(title, style="bold"), Padding(body, (0, 0, 1, 2)))


def _grid(*columns: tuple[str, int | None]) -> Table:
    """Columns by how they are justified and what share of the width they fill."""
    grid = Table.grid(padding=(0, 2))
    for justify, ratio in columns:
        grid.add_column(justify="right" if justify == "right" else "left", ratio=ratio)
    return grid
