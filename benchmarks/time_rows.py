"""Measured rows, and what each coefficient of the time model contributes to their predictions.

Every prediction of a time is linear in the coefficients (an efficiency enters as 1 over it), so a row's
features are what the planner itself predicts with one coefficient at 1 and all others free of cost.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from infer_compile.catalog.coefficients import Calibration, Wait, Waiting
from infer_compile.catalog.facts import Facts
from infer_compile.catalog.model import load_card
from infer_compile.catalog.target import Target, load_target
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.planner.performance.estimate import Predicted, Subject, predict, subject
from infer_compile.planner.performance.latency import Speed, link_gbs, matrix_tflops, network_gbs
from infer_compile.planner.performance.query import Query, query

EFFICIENCIES = {
    "weight": ("weight_bandwidth",),
    "cache": ("exact_bandwidth", "packed_bandwidth"),
    "matrix": ("matrix_rate",),
    "expert": ("expert_rate",),
    "attention": ("attention_rate",),
    "decode_matrix": ("decode_matrix_rate",),
    "decode_attention": ("decode_attention_rate",),
    "link": ("link", "network"),
}
COSTS = ("step", "layer", "mixture", "sequence", "prompt", "prompt_layer", "reduce", "node")
NAMES = (*EFFICIENCIES, *COSTS)
WAITS = ("own", "together", "queue", "steps", "queued", "request")


@dataclass(frozen=True, slots=True)
class Row:
    """``seconds`` is what was measured, whatever the metric."""

    asked: Query
    set: str
    metric: str
    value: float
    seconds: float
    generation: str
    source: str

    @property
    def group(self) -> tuple[str, str, str]:
        return self.asked.model, self.asked.target, self.asked.engine


def read_rows(path: Path, facts: Facts) -> list[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return [_row(fields, facts) for fields in csv.DictReader(file)]


def _row(fields: dict[str, str], facts: Facts) -> Row:
    asked, metric, value = query(fields), fields["metric"], float(fields["value"])
    seconds = {
        "itl_ms": value / 1e3,
        "ttft_ms": value / 1e3,
        "ttft": value / 1e3,
        "e2e_s": value,
        "decode_tps": 1 / value,
        "decode_tps_total": asked.batch / value,
        "prefill_tps": asked.input * asked.batch / value,
        "output_tps_per_gpu": asked.batch * asked.output / value / asked.count,
    }[metric]
    generation = facts.coefficients.generation(asked.engine, asked.build) or ""
    return Row(asked, fields["set"], metric, value, seconds, generation, fields["source"])


@cache
def graph(model: str) -> Graph:
    card = load_card(model)
    if card is None:
        raise SystemExit(f"the catalog has no model {model}")
    return build(card.config, model)


@cache
def target(name: str) -> Target:
    return load_target(name, Path())


def groups(rows: Sequence[Row]) -> list[list[int]]:
    """Indices of rows that can be predicted together."""
    found: dict[tuple[object, ...], list[int]] = {}
    for index, row in enumerate(rows):
        asked = row.asked
        key = (asked.model, asked.target, asked.engine, asked.build, asked.weights, asked.kv)
        found.setdefault((*key, asked.load, asked.nodes, row.metric, asked.rate is None), []).append(index)
    return list(found.values())


def predicted_seconds(found: Predicted, metric: str) -> np.ndarray:
    seen = found.forecast
    named = {"itl_ms": seen.itl, "decode_tps": seen.itl, "decode_tps_total": seen.itl}
    named |= {"e2e_s": seen.e2e, "output_tps_per_gpu": seen.e2e}
    named |= {"ttft": seen.ttft, "ttft_ms": seen.ttft, "prefill_tps": seen.ttft}
    return np.asarray(named[metric], dtype=np.float64)


def unit_speed(one: Subject, name: str, routing: float) -> Speed:
    """One coefficient at 1 (an efficiency of 1, or a microsecond), the others free."""
    target, scheme = one.target, one.stored.scheme
    bandwidth = target.bandwidth_gbs * 1e9
    matrices = (matrix_tflops(target, scheme) or 0.0) * 1e12
    plain = (target.rates.bf16_tflops or 0.0) * 1e12
    full = {
        "weight_bandwidth": bandwidth,
        "exact_bandwidth": bandwidth,
        "packed_bandwidth": bandwidth,
        "matrix_rate": matrices,
        "expert_rate": matrices,
        "decode_matrix_rate": matrices,
        "attention_rate": plain,
        "decode_attention_rate": plain,
        "link": (link_gbs(target) or 1.0) * 1e9,
        "network": (network_gbs(target) or 1.0) * 1e9,
    }
    mine = EFFICIENCIES.get(name, ())
    values = {field: value if field in mine else np.inf for field, value in full.items()}
    values |= {cost: 1e-6 if cost == name else 0.0 for cost in COSTS}
    return dataclasses.replace(one.speed, **values, routing=routing)


def idle(calibration: Calibration, waits: dict[str, float]) -> Calibration:
    """``calibration`` with these shares of waiting and no others (none may be 0 in a file, here they may)."""
    own = {name: waits.get(name, 0.0) for name in ("own", "together", "queue", "steps")}
    wait = Wait.model_construct(**own)
    waiting = Waiting.model_construct(
        dense=wait, mixture=wait, queued=waits.get("queued", 0.0), request_us=waits.get("request", 0.0)
    )
    return calibration.model_copy(update={"waiting": waiting})


def features(rows: Sequence[Row], facts: Facts, routing: float) -> np.ndarray:
    """Seconds of each row for each of ``NAMES``; of a first token under load those of its prompt alone."""
    table = np.zeros((len(rows), len(NAMES)))
    for members in groups(rows):
        points, first = [rows[index].asked for index in members], rows[members[0]]
        one = subject(graph(first.asked.model), target(first.asked.target), first.asked, facts)
        for column, name in enumerate(NAMES):
            unit = unit_speed(one, name, routing)
            unit = dataclasses.replace(unit, calibration=idle(unit.calibration, {"own": 1.0}))
            # Rates and shares of nothing are not asked for.
            with np.errstate(divide="ignore", invalid="ignore"):
                found = predict(dataclasses.replace(one, speed=unit), points)
            table[members, column] = predicted_seconds(found, first.metric)
    return table


def seconds(rows: Sequence[Row], facts: Facts) -> np.ndarray:
    """What the planner predicts for each row."""
    table = np.zeros(len(rows))
    for members in groups(rows):
        first = rows[members[0]]
        one = subject(graph(first.asked.model), target(first.asked.target), first.asked, facts)
        table[members] = predicted_seconds(predict(one, [rows[i].asked for i in members]), first.metric)
    return table


def bounds(rows: Sequence[Row], facts: Facts) -> np.ndarray:
    """Seconds of the weights alone over the bandwidth, for a decode step; NaN where they do not fit the
    memory."""
    table = np.zeros(len(rows))
    for members in groups(rows):
        first = rows[members[0]]
        one = subject(graph(first.asked.model), target(first.asked.target), first.asked, facts)
        found = predict(one, [rows[index].asked for index in members])
        batch = np.array([rows[index].asked.batch for index in members]) / found.layouts.data
        bound = found.runner.bound(np.minimum(batch, found.admitted), found.forecast.load.decode_context)
        parts = found.layouts.tensor * found.layouts.pipeline
        dealt = np.where(np.asarray(found.layouts.expert) > 1, found.layouts.data, 1)
        fits = one.stored.weight_bytes / (parts * dealt) < one.target.memory_gb * 1e9
        table[members] = np.where(fits, bound, np.nan)
    return table


def waiting_features(rows: Sequence[Row], facts: Facts) -> np.ndarray:
    """Seconds of each first token for each of ``WAITS`` (of ``own`` what is above 1), and last for its own
    prompt and what memory and budget make it wait."""
    table = np.zeros((len(rows), len(WAITS) + 1))
    for members in groups(rows):
        points, first = [rows[index].asked for index in members], rows[members[0]]
        one = subject(graph(first.asked.model), target(first.asked.target), first.asked, facts)

        def waited(waits: dict[str, float], one: Subject = one, points: list[Query] = points) -> np.ndarray:
            bare = dataclasses.replace(one.speed, calibration=idle(one.speed.calibration, waits))
            with np.errstate(divide="ignore", invalid="ignore"):
                found = predict(dataclasses.replace(one, speed=bare), points)
            return predicted_seconds(found, "ttft_ms")

        least = waited({"own": 1.0})
        table[members, -1] = least
        for column, name in enumerate(WAITS):
            table[members, column] = waited({"own": 1.0} | {name: 2.0 if name == "own" else 1.0}) - least
    return table
