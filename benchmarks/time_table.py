"""The table of the cross-validation: errors of predictions by fits that had not seen the group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from infer_compile.catalog.facts import load_facts
from time_rows import Row, graph, target


@dataclass(frozen=True)
class Fold:
    """What was left out: ``errors`` are logarithms of predicted over measured seconds."""

    kind: str
    name: str
    rows: list[Row]
    errors: np.ndarray

    @classmethod
    def of(cls, kind: str, name: str, rows: list[Row], predicted: np.ndarray) -> Fold:
        return cls(kind, name, rows, np.log(predicted / np.array([row.seconds for row in rows])))


def quantiles(folds: Sequence[Fold], kind: str) -> list[float]:
    """Measured over predicted: the ends that hold 80 % of what was left out."""
    errors = np.concatenate([fold.errors for fold in folds if fold.kind == kind])
    low, high = np.exp(-np.quantile(errors, [0.9, 0.1]))
    return [float(f"{min(low, 1.0):.3g}"), float(f"{max(high, 1.0):.3g}")]


@dataclass(frozen=True)
class Line:
    name: str
    errors: np.ndarray
    covered: float

    @property
    def cells(self) -> tuple[str, ...]:
        share = np.abs(np.expm1(self.errors))
        return (
            self.name,
            str(len(share)),
            f"{100 * share.mean():.1f}",
            f"{100 * np.median(share):.1f}",
            f"{100 * np.expm1(np.median(self.errors)):+.1f}",
            f"{100 * self.covered:.0f}",
        )


HEADINGS = ("rows left out", "n", "mean %", "median %", "bias %", "inside %")


def lines(folds: Sequence[Fold]) -> list[Line]:
    found = []
    titles = {
        "single-stream": "single stream, by device",
        "prefill": "prompt alone, by device",
        "static-batch": "static batch, by model",
        "serving": "time between tokens, by model, device and engine",
        "first token": "time to first token, by model, device and engine",
    }
    for kind, title in titles.items():
        mine = [fold for fold in folds if fold.kind == kind]
        if not mine:
            continue
        ends = quantiles(folds, kind)
        found.append(_line(title, mine, ends, lambda row: True))
        if kind == "single-stream":
            found.append(_line("- one stream", mine, ends, lambda row: row.metric == "decode_tps"))
            kin = _kin(mine)
            found.append(_line("- one stream, another device of the class measured", mine, ends, kin))
            for name in ("2024", "metal", "cuda", "vulkan"):
                found.append(_line(f"- one stream, llama.cpp {name}", mine, ends, _of(name)))
        elif kind == "static-batch":
            for name in ("tensorrt-llm", "vllm"):
                found.append(_line(f"- {name}, without the MI300X", mine, ends, _engine_off(name, "mi300x")))
        elif kind in ("serving", "first token"):
            what = "time between tokens" if kind == "serving" else "first token"
            found.append(_line(f"- {what}, dense models", mine, ends, _dense))
            found.append(_line(f"- {what}, models with experts", mine, ends, lambda row: not _dense(row)))
            found += [
                _line(f"- {fold.name}", [fold], ends, lambda row: True) for fold in mine if len(fold.rows) > 4
            ]
    return [line for line in found if len(line.errors)]


def _kin(folds: Sequence[Fold]) -> Callable[[Row], bool]:
    """Rows of one stream on devices that are not the only ones of their class and generation."""
    known = load_facts().coefficients
    rows = [row for fold in folds for row in fold.rows if row.metric == "decode_tps"]

    def place(row: Row) -> tuple[str, str, str]:
        return row.asked.engine, row.generation, known.device_class(target(row.asked.target)).name

    devices: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        devices.setdefault(place(row), set()).add(row.asked.target)
    return lambda row: row.metric == "decode_tps" and len(devices[place(row)]) > 1


def _of(generation: str) -> Callable[[Row], bool]:
    return lambda row: row.generation == generation and row.metric == "decode_tps"


def _engine_off(engine: str, without: str) -> Callable[[Row], bool]:
    return lambda row: row.asked.engine == engine and row.asked.target != without


def _line(name: str, folds: Sequence[Fold], ends: Sequence[float], among: Callable[[Row], bool]) -> Line:
    picked = [
        error for fold in folds for row, error in zip(fold.rows, fold.errors, strict=True) if among(row)
    ]
    errors = np.array(picked)
    ratio = np.exp(-errors)
    inside = float(np.mean((ratio >= ends[0]) & (ratio <= ends[1]))) if len(errors) else 0.0
    return Line(name, errors, inside)


SETS = {
    ("single-stream", "decode_tps"): "single stream",
    ("single-stream", "decode_tps_total"): "streams of one batch",
    ("prefill", "prefill_tps"): "prompt alone",
    ("static-batch", "e2e_s"): "static batch, whole time",
    ("static-batch", "output_tps_per_gpu"): "static batch, tokens per second and device",
    ("static-batch", "ttft"): "static batch, first token",
    ("serving", "itl_ms"): "serving, time between tokens",
    ("serving", "ttft_ms"): "serving, time to first token",
}


def shipped(rows: Sequence[Row], predicted: np.ndarray) -> str:
    """The table of the rows that the coefficients were fitted on."""
    lines = ["| rows | n | mean % | median % | bias % |", "|---|---:|---:|---:|---:|"]
    for (name, metric), title in SETS.items():
        among = [i for i, row in enumerate(rows) if (row.set, row.metric) == (name, metric)]
        if not among:
            continue
        ratio = predicted[among] / np.array([rows[i].seconds for i in among]) - 1
        cells = (100 * np.abs(ratio).mean(), 100 * np.median(np.abs(ratio)))
        bias = f"{100 * np.median(ratio):+.1f}"
        lines.append(f"| {title} | {len(among)} | {cells[0]:.1f} | {cells[1]:.1f} | {bias} |")
    return "\n".join(lines) + "\n"


def between(text: str, name: str, table: str) -> str:
    """``text`` with ``table`` between the marks of ``name``."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    head, rest = text.split(start)
    return head + start + table + end + rest.split(end)[1]


def printed(folds: Sequence[Fold]) -> str:
    cells = [HEADINGS, *(line.cells for line in lines(folds))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells
    )


def markdown(folds: Sequence[Fold]) -> str:
    rows = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    rows += ["| " + " | ".join(line.cells) + " |" for line in lines(folds)]
    return "\n".join(rows) + "\n"


def _dense(row: Row) -> bool:
    """Whether the model has no experts."""
    return not graph(row.asked.model).totals.mixtures
