"""Fits the time coefficients of catalog/coefficients.yaml on measured rows, and tests them on what was left
out.

    python benchmarks/time_coefficients.py CALIBRATION.csv [--check | --markdown FILE]

Rewrites the part of the file below its marker; ``--check`` compares with it instead and exits 1 if it
differs. ``--markdown`` writes the tables of docs/accuracy.md, its small one from tests/unit/measured.csv.
One fit is of engines for one machine (single streams and prompts), one of servers (static batches and
serving), one of the waiting for first tokens. No coefficient knows a model's name: effects are those of the
engine, its generation of builds, the family and class of the device, and the weight format.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from infer_compile.catalog import facts as module
from infer_compile.catalog.coefficients import Calibration, Coefficients
from infer_compile.catalog.facts import Facts, load_facts
from time_fit import Effect, Model, fit, group_weights, predict
from time_prior import MEANS, ROUTING, USUAL_ROUTING, WAIT_MEANS, Place, model_of, rate_levels, wait_levels
from time_rows import (
    EFFICIENCIES,
    NAMES,
    WAITS,
    Row,
    bounds,
    features,
    graph,
    read_rows,
    seconds,
    target,
    waiting_features,
)
from time_table import Fold, between, markdown, printed, quantiles, shipped

MEASURED = Path(__file__).parents[1] / "tests" / "unit" / "measured.csv"
FILE = Path(module.__file__).parent / "coefficients.yaml"
MARKER = "  # --- fitted by benchmarks/time_coefficients.py; do not edit below this line ---\n"
LOCAL = ("llama.cpp", "gpt-fast")
SERVERS = ("tensorrt-llm", "vllm", "sglang")

DOUBTED = 0.05
"""Weight of a row that cannot be what it says."""


@dataclass
class Block:
    """Rows that are fitted together. ``left_out`` names what a fold leaves out of them."""

    name: str
    rows: list[Row]
    places: list[Place]
    features: np.ndarray
    offset: np.ndarray
    weights: np.ndarray
    model: Model

    @property
    def seconds(self) -> np.ndarray:
        return np.array([row.seconds for row in self.rows])

    def fit(self, members: Sequence[int], start: dict[Effect, float] | None = None) -> dict[Effect, float]:
        kept = np.asarray(members)
        turns = 8 if start else 40
        return fit(
            self.model, members, self.features[kept], self.offset[kept], self.seconds[kept],
            self.weights[kept], start, turns,
        )  # fmt: skip

    def predict(self, members: Sequence[int], effects: dict[Effect, float]) -> np.ndarray:
        kept = np.asarray(members)
        return predict(self.model, members, self.features[kept], self.offset[kept], effects)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("calibration", type=Path)
    arguments.add_argument("--check", action="store_true", help="compare with the file, change nothing")
    arguments.add_argument("--markdown", type=Path, help="write the tables into this page")
    given = arguments.parse_args()
    facts = load_facts()
    bare = without_fits(facts)
    rows = read_rows(given.calibration, bare)
    doubts = doubted(rows, bare)
    timed = [row for row, doubt in zip(rows, doubts, strict=True) if row.metric != "ttft_ms" and doubt > 0]
    weights = [
        doubt for row, doubt in zip(rows, doubts, strict=True) if row.metric != "ttft_ms" and doubt > 0
    ]
    first = [row for row, doubt in zip(rows, doubts, strict=True) if row.metric == "ttft_ms" and doubt > 0]
    routing, table = route(timed, weights, bare)
    blocks = [rate_block(name, engines, timed, weights, table, bare) for name, engines in
              (("local", LOCAL), ("servers", SERVERS))]  # fmt: skip
    effects = {block.name: block.fit(range(len(block.rows))) for block in blocks}
    folds = [fold for block in blocks for fold in leave_out(block, effects[block.name])]
    rated = with_rates(bare, blocks, effects, routing, None)
    wait = wait_block(first, rated)
    effects["waiting"] = wait.fit(range(len(wait.rows)))
    folds += leave_out_first(wait, effects, blocks, bare, routing)
    calibrations = finished(rated, wait, effects["waiting"], folds)
    text = FILE.read_text(encoding="utf-8")
    head = text[: text.index(MARKER) + len(MARKER)]
    body = yaml.dump(calibrations, sort_keys=False, width=118, default_flow_style=None, allow_unicode=True)
    new = head + "".join(f"  {line}\n" if line else "\n" for line in body.splitlines())
    print(dict(sorted(routing.items())), file=sys.stderr)
    print(printed(folds))
    if given.markdown:
        document(given.markdown, rows, folds, facts, calibrations)
    if given.check:
        sys.exit(0 if new == text else "coefficients.yaml is not what these rows give: run without --check")
    FILE.write_text(new, encoding="utf-8")


def document(
    page: Path,
    rows: Sequence[Row],
    folds: Sequence[Fold],
    facts: Facts,
    calibrations: Sequence[dict[str, object]],
) -> None:
    """The tables of ``page``: what was left out, all rows, and the small table of the tests."""
    known = facts.coefficients
    kept = [each for each in known.calibrations if each.engine in ("native", "prior")]
    kept += [Calibration.model_validate(each) for each in calibrations]
    new = facts.model_copy(update={"coefficients": known.model_copy(update={"calibrations": tuple(kept)})})
    small = read_rows(MEASURED, new)
    text = page.read_text(encoding="utf-8")
    text = between(text, "left out", markdown(folds))
    text = between(text, "all rows", shipped(rows, seconds(rows, new)))
    text = between(text, "cited figures", shipped(small, seconds(small, new)))
    page.write_text(text, encoding="utf-8")


def without_fits(facts: Facts) -> Facts:
    """The file above its marker, with the prior in the place of every fitted engine."""
    known = facts.coefficients
    prior = next(each for each in known.calibrations if each.engine == "prior")
    kept = [each for each in known.calibrations if each.engine in ("native", "prior")]
    generations = [each for each in known.generations if each.engine in (*LOCAL, *SERVERS)]
    kept += [prior.model_copy(update={"engine": g.engine, "generation": g.name}) for g in generations]
    return facts.model_copy(update={"coefficients": known.model_copy(update={"calibrations": tuple(kept)})})


def doubted(rows: Sequence[Row], facts: Facts) -> list[float]:
    """0 where the weights do not fit the memory; little where the row is below the physical bound, or where
    experts are said to be both dealt over all devices and split over all of them; else 1."""
    limits = bounds(rows, facts)
    found = []
    for row, limit in zip(rows, limits, strict=True):
        twice = row.asked.expert > 1 and row.asked.count == row.asked.expert**2
        below = row.metric in ("itl_ms", "decode_tps", "decode_tps_total") and row.seconds < limit
        found.append(0.0 if np.isnan(limit) else DOUBTED if twice or below else 1.0)
    return found


def place_of(row: Row, facts: Facts) -> Place:
    held = facts.coefficients.device_class(target(row.asked.target))
    mixture = bool(graph(row.asked.model).totals.mixtures)
    weights = row.asked.weights
    return Place(
        row.asked.engine,
        row.generation,
        alike(facts, row.asked.engine, row.generation),
        held.family,
        held.name,
        weights,
        mixture,
    )


def alike(facts: Facts, engine: str, generation: str) -> str:
    """The generation whose rates ``generation`` shares: mostly itself."""
    known = facts.coefficients.generations
    return next((g.like or g.name for g in known if (g.engine, g.name) == (engine, generation)), generation)


def rate_block(
    name: str,
    engines: Sequence[str],
    rows: Sequence[Row],
    doubts: Sequence[float],
    table: np.ndarray,
    facts: Facts,
) -> Block:
    members = [index for index, row in enumerate(rows) if row.asked.engine in engines]
    mine = [rows[index] for index in members]
    places = [place_of(row, facts) for row in mine]
    weights = group_weights([row.group for row in mine]) * np.array([doubts[index] for index in members])
    return Block(
        name,
        mine,
        places,
        table[members],
        np.zeros(len(mine)),
        weights,
        model_of(name, places, NAMES, MEANS, rate_levels),
    )


def route(
    rows: Sequence[Row], doubts: Sequence[float], facts: Facts
) -> tuple[dict[tuple[str, str], float], np.ndarray]:
    """For each generation the exponent of ``ROUTING`` with which its rows fit best, and the features with it.

    Rows of models with experts decide, one generation at a time, the others at the usual exponent.
    """
    tables = {value: features(rows, facts, value) for value in ROUTING}
    chosen: dict[tuple[str, str], float] = {}
    merged = tables[USUAL_ROUTING].copy()
    for name, engines in (("local", LOCAL), ("servers", SERVERS)):
        block = rate_block(name, engines, rows, doubts, merged, facts)
        start = block.fit(range(len(block.rows)))
        members = [index for index, row in enumerate(rows) if row.asked.engine in engines]
        for key in sorted({(place.engine, place.like) for place in block.places}):
            mine = [i for i, p in enumerate(block.places) if (p.engine, p.like) == key and p.mixture]
            if not mine:
                continue
            errors = {}
            for value in ROUTING:
                block.features = merged[members].copy()
                block.features[mine] = tables[value][members][mine]
                effects = block.fit(range(len(block.rows)), start)
                errors[value] = float(
                    np.median(np.abs(np.log(block.predict(mine, effects) / block.seconds[mine])))
                )
            chosen[key] = min(errors, key=lambda value: errors[value])
            where = np.array(members)[mine]
            merged[where] = tables[chosen[key]][where]
    return chosen, merged


def leave_out(block: Block, start: dict[Effect, float]) -> list[Fold]:
    """Each row predicted by a fit without its device (single streams, prompts), its model (static batches)
    or its group of model, device and engine (serving)."""
    kinds: dict[str, Callable[[Row], object]] = {
        "single-stream": lambda row: row.asked.target,
        "prefill": lambda row: row.asked.target,
        "static-batch": lambda row: row.asked.model,
        "serving": lambda row: row.group,
    }
    folds = []
    for kind, key in kinds.items():
        for name in sorted({key(row) for row in block.rows if row.set == kind}, key=str):
            left = [i for i, row in enumerate(block.rows) if row.set == kind and key(row) == name]
            rest = [i for i, row in enumerate(block.rows) if key(row) != name]
            effects = block.fit(rest, start)
            folds.append(
                Fold.of(kind, str(name), [block.rows[i] for i in left], block.predict(left, effects))
            )
    return folds


def titled(name: object) -> str:
    return ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)


def with_rates(
    facts: Facts,
    blocks: Sequence[Block],
    effects: dict[str, dict[Effect, float]],
    routing: dict[tuple[str, str], float],
    left: tuple[str, str, str] | None,
) -> Facts:
    """``facts`` with a calibration for each engine and place; those measured without ``left`` are told as
    such."""
    known = facts.coefficients
    prior = next(each for each in known.calibrations if each.engine == "prior")
    found = [each for each in known.calibrations if each.engine in ("native", "prior")]
    for block in blocks:
        rows = [row for row in block.rows if row.group != left]
        for generation in (each for each in known.generations if each.engine in _engines(block.name)):
            mine = [
                row
                for row in rows
                if (row.asked.engine, row.generation) == (generation.engine, generation.name)
            ]
            for family, device_class in _places(generation.engine, rows, known):
                here = [
                    row for row in mine if known.device_class(target(row.asked.target)).name == device_class
                ]
                if device_class and not here:
                    continue
                like = alike(facts, generation.engine, generation.name)
                place = Place(generation.engine, generation.name, like, family, device_class)
                shared = [row for row in rows if row.asked.engine == generation.engine]
                shared = [row for row in shared if alike(facts, generation.engine, row.generation) == like]
                formats = tuple(sorted({row.asked.weights for row in shared}))
                found.append(
                    prior.model_copy(
                        update={
                            "engine": generation.engine,
                            "generation": generation.name,
                            "device_class": device_class or family or None,
                            "devices": tuple(sorted({row.asked.target for row in here})),
                            "formats": tuple(sorted({row.asked.weights for row in here})),
                            "rates": _rates(block.model, place, formats, effects[block.name], routing),
                            "basis": "measurement" if here else "assumption",
                            "source": _source(here, rows, generation.engine),
                        }
                    )
                )
    return facts.model_copy(update={"coefficients": known.model_copy(update={"calibrations": tuple(found)})})


def _engines(block: str) -> tuple[str, ...]:
    return LOCAL if block == "local" else SERVERS


def _places(engine: str, rows: Sequence[Row], known: Coefficients) -> list[tuple[str, str]]:
    """(family, class) of every class that the engine was measured on, then the families, then any device."""
    held = [known.device_class(target(row.asked.target)) for row in rows if row.asked.engine == engine]
    classes = sorted({(each.family, each.name) for each in held})
    return [*classes, *((family, "") for family in sorted({family for family, _ in classes})), ("", "")]


def _source(here: Sequence[Row], rows: Sequence[Row], engine: str) -> str:
    if here:
        return "; ".join(sorted({row.source for row in here}))
    return f"carried over from {engine} on other devices and in other builds"


def _rates(
    model: Model,
    place: Place,
    formats: Sequence[str],
    effects: dict[Effect, float],
    routing: dict[tuple[str, str], float],
) -> object:
    def value(name: str, weights: str = "") -> float:
        at = Place(place.engine, place.generation, place.like, place.family, place.device_class, weights)
        factor = model.coefficient(name, rate_levels(at, name), effects)
        return min(1.0, rounded(1 / factor)) if name in EFFICIENCIES else rounded(factor)

    def shares(name: str) -> dict[str, float]:
        other = value(name)
        own = {weights: value(name, weights) for weights in formats}
        return {"other": other} | {weights: share for weights, share in own.items() if share != other}

    return {
        "weight_efficiency": shares("weight"),
        "cache_efficiency": {"other": value("cache")},
        "matrix_efficiency": shares("matrix"),
        "expert_efficiency": shares("expert"),
        "attention_efficiency": value("attention"),
        "decode_matrix_efficiency": shares("decode_matrix"),
        "decode_attention_efficiency": value("decode_attention"),
        "link_efficiency": value("link"),
        **{f"{name}_us": value(name) for name in NAMES if name not in EFFICIENCIES},
        "routing": routing.get((place.engine, place.like), USUAL_ROUTING),
    }


def rounded(value: float) -> float:
    """Three significant digits."""
    return float(f"{value:.3g}")


def wait_block(rows: Sequence[Row], facts: Facts) -> Block:
    places = [place_of(row, facts) for row in rows]
    table = waiting_features(rows, typed(facts))
    weights = group_weights([row.group for row in rows])
    model = model_of("waiting", places, WAITS, WAIT_MEANS, wait_levels)
    return Block("waiting", list(rows), places, table[:, :-1], table[:, -1], weights, model)


def typed(facts: Facts) -> Facts:
    """``facts`` whose fitted calibrations are validated models."""
    known = facts.coefficients
    models = tuple(Calibration.model_validate(plain(each)) for each in known.calibrations)
    return facts.model_copy(update={"coefficients": known.model_copy(update={"calibrations": models})})


def plain(calibration: Calibration) -> dict[str, object]:
    return {**calibration.model_dump(exclude={"rates"}), "rates": _plain_rates(calibration)}


def _plain_rates(calibration: Calibration) -> object:
    rates: object = calibration.rates
    return rates if isinstance(rates, dict) else calibration.rates.model_dump()


def leave_out_first(
    wait: Block,
    effects: dict[str, dict[Effect, float]],
    blocks: Sequence[Block],
    facts: Facts,
    routing: dict[tuple[str, str], float],
) -> list[Fold]:
    """First tokens of each group by rates and waits that were fitted without it."""
    servers = next(block for block in blocks if block.name == "servers")
    folds = []
    for group in sorted({row.group for row in wait.rows}):
        rest = [i for i, row in enumerate(servers.rows) if row.group != group]
        rates = {**effects, "servers": servers.fit(rest, effects["servers"])}
        block = wait_block(wait.rows, with_rates(facts, blocks, rates, routing, group))
        left = [i for i, row in enumerate(block.rows) if row.group == group]
        other = [i for i, row in enumerate(block.rows) if row.group != group]
        found = block.predict(left, block.fit(other, effects["waiting"]))
        folds.append(Fold.of("first token", titled(group), [block.rows[i] for i in left], found))
    return folds


def finished(
    facts: Facts, wait: Block, effects: dict[Effect, float], folds: Sequence[Fold]
) -> list[dict[str, object]]:
    """The fitted calibrations with their waits and spreads, as the file holds them."""
    known = facts.coefficients
    spreads = {
        "local": {
            "itl": quantiles(folds, "single-stream"),
            "ttft": quantiles(folds, "prefill"),
            "e2e": quantiles(folds, "single-stream"),
        },
        "static": {name: quantiles(folds, "static-batch") for name in ("itl", "ttft", "e2e")},
        "serving": {
            "itl": quantiles(folds, "serving"),
            "ttft": quantiles(folds, "first token"),
            "e2e": quantiles(folds, "serving"),
        },
    }
    result = []
    for each in known.calibrations:
        if each.engine in ("native", "prior"):
            continue
        block = "local" if each.engine in LOCAL else "static" if each.generation == "2024" else "serving"
        fields = plain(each)
        held = next((c for c in known.classes if each.device_class in (c.name,)), None)
        name = held.name if held else ""
        fields["waiting"] = _waiting(wait.model, each, name, effects)
        fields["spread"] = spreads[block]
        order = (
            "engine",
            "generation",
            "device_class",
            "devices",
            "formats",
            "rates",
            "waiting",
            "spread",
            "basis",
        )
        cleaned = {
            key: _listed(fields[key]) for key in (*order, "source") if fields[key] not in (None, (), "")
        }
        result.append(cleaned)
    return result


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _waiting(model: Model, each: Calibration, name: str, effects: dict[Effect, float]) -> dict[str, object]:
    if each.engine in LOCAL:
        one: dict[str, float] = {"own": 1.0, "together": 1.0, "queue": 1.0, "steps": 0.0}
        return {"dense": one, "mixture": dict(one), "queued": 0.0, "request_us": 1000.0}

    def value(wait: str, mixture: bool) -> float:
        place = Place(each.engine, each.generation, "", "", name, mixture=mixture)
        return rounded((wait == "own") + model.coefficient(wait, wait_levels(place, wait), effects))

    names = ("own", "together", "queue", "steps")
    return {
        "dense": {wait: value(wait, False) for wait in names},
        "mixture": {wait: value(wait, True) for wait in names},
        "queued": value("queued", False),
        "request_us": value("request", False),
    }


if __name__ == "__main__":
    main()
