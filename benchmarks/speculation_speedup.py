"""Predicted against measured speed-ups of speculative decoding.

    python benchmarks/speculation_speedup.py --data ../shared/measurements/speculation.csv

First by measured costs: the accept length of other models over the cost of a step with other models. A cost
is accept length over speed-up, the seconds of a speculative step over those of a plain one. Then by the
planner's own times, where device and engine are known: with the accept length of the run, which judges the
times alone, and with the catalog's for that kind of text; and the largest batch at which drafting gains.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from infer_compile.catalog.facts import Facts, load_facts
from infer_compile.catalog.model import load_card
from infer_compile.catalog.speculation import DEPTH, Kind, Method
from infer_compile.catalog.target import load_target
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.planner.draft_time import draft_seconds
from infer_compile.planner.performance.cache import Cache
from infer_compile.planner.performance.latency import Runner, speed
from infer_compile.planner.performance.layout import Layout
from infer_compile.planner.performance.shape import shape, stored
from infer_compile.planner.speculation import Drafting, break_even_batch, choices, expected_tokens, speedup
from speculation_acceptance import Run, Series, measured, published, series, table

MIXTURES = re.compile(r"-A\d+B|Kimi|Ling|Scout|gpt-oss|Next")
CARDS = {
    "Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "Llama-3.3-70B-Instruct": "llama-3.1-70b",
    "Qwen3-32B": "qwen3-32b",
}
ONE_DEVICE = "Llama-3.1-8B-Instruct"
"""SpecForge does not state its devices; this model's plain speed is that of one."""
CONTEXT = 512
"""Tokens before a step of the timed runs: their prompts and answers are a few hundred tokens long."""
LARGEST = 512


def cost(run: Run) -> float:
    return run.lengths[run.tokens] / run.speedup


def by_cost(runs: Sequence[Run], every: Sequence[Series]) -> Iterable[tuple[str, ...]]:
    """By method, batch and kind of model. A cost below one is impossible: the plain speed of such a run was
    that of something else, and it is left out."""
    groups: dict[tuple[str, int, bool], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.speedup and run.tokens in run.lengths and cost(run) >= 1:
            key = (run.method, run.batch, bool(MIXTURES.search(run.target)))
            groups[key][run.tokens].append(run)
    for (method, batch, mixed), lengths in sorted(groups.items()):
        predicted, true, costs = [], [], []
        for tokens, group in sorted(lengths.items()):
            for run in group:
                others = [cost(one) for one in group if (one.target, one.draft) != (run.target, run.draft)]
                if others:
                    depth = min(tokens, DEPTH)
                    alike = _others(run, every)
                    length = np.median([expected_tokens(one.rates, depth) for one in alike])
                    predicted.append(float(length) / float(np.median(others)))
                    true.append(run.speedup)
                    costs.append(cost(run))
        if true:
            error = np.abs(np.array(predicted) / np.array(true) - 1)
            kind = "mixture" if mixed else "dense"
            medians = (f"{np.median(one):.2f}" for one in (costs, predicted, true))
            yield (method, str(batch), kind, str(len(true)), *medians, f"{error.mean():.0%}")


def _others(run: Run, every: Sequence[Series]) -> list[Series]:
    """Series of other models, of the same kind of text where there are any."""
    near = [one for one in every if one.method == run.method and one.target != run.target]
    alike = [one for one in near if one.kind == run.kind]
    return alike or near or [one for one in every if one.method == run.method]


class Timed:
    """A model on so many devices of a kind, as one engine runs it in bf16."""

    def __init__(self, facts: Facts, model: str, device: str, devices: int, engine: str) -> None:
        card = load_card(model)
        assert card is not None
        self.facts, self.model, self.config = facts, model, card.config
        self.graph = build(card.config, model)
        scheme, level = facts.formats.of_weights("bf16"), facts.formats.of_kv("bf16")
        self.layout = Layout(tensor=devices)
        self.speed = speed(load_target(device, Path()), facts.coefficients, engine, scheme, level)
        self.runner = Runner(
            shape(self.graph), stored(self.graph, scheme), Cache(level, 16), self.layout, self.speed
        )

    def drafting(self, run: Run) -> Drafting | None:
        found = choices(
            self.graph,
            self.model,
            self.config,
            self.facts.speculation,
            _graph,
            (cast(Method, run.method),),
            (run.tokens,),
            kind=cast(Kind, "general" if run.kind == "other" else run.kind),
            draft=run.draft.lower() if run.method == "draft" else None,
        )
        return found[1] if len(found) > 1 else None

    def seconds(self, one: Drafting, batches: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        counts = batches.astype(np.float64)
        plain = np.asarray(self.runner.decode(counts, CONTEXT).total)
        verified = np.asarray(self.runner.decode(counts, CONTEXT, tokens=one.tokens + 1).total)
        drafted = np.asarray(draft_seconds(one, self.speed, self.layout, counts, CONTEXT))
        return plain, verified, drafted


def _graph(name: str) -> Graph | None:
    card = load_card(name)
    return None if card is None else build(card.config, name)


def by_times(runs: Sequence[Run], facts: Facts) -> Iterable[tuple[str, ...]]:
    timed: dict[tuple[str, str, int, str], Timed] = {}
    groups: dict[tuple[str, ...], list[tuple[float, float, float]]] = defaultdict(list)
    largest: dict[tuple[str, ...], dict[int, int]] = defaultdict(dict)
    for run in runs:
        if not (run.device and run.speedup and run.tokens in run.lengths and run.target in CARDS):
            continue
        if run.engine == "sglang" and run.target != ONE_DEVICE:
            continue
        place = (CARDS[run.target], run.device, run.devices, run.engine)
        one = timed.setdefault(place, Timed(facts, *place)) if place not in timed else timed[place]
        drafting = one.drafting(run)
        if drafting is None:
            continue
        plain, verified, drafted = one.seconds(drafting, np.array([run.batch]))
        own = float(speedup(plain, verified, drafted, run.lengths[run.tokens])[0])
        given = float(speedup(plain, verified, drafted, drafting.expected)[0])
        name = (run.method, run.target, run.draft if run.method == "draft" else "", str(run.batch))
        groups[name].append((own, given, run.speedup))
        batches = np.arange(1, LARGEST + 1)
        ends = break_even_batch(
            lambda all, d=drafting, o=one: o.seconds(d, all), run.lengths[run.tokens], batches
        )
        largest[name][run.tokens] = ends
    for name, rows in sorted(groups.items(), key=lambda item: (*item[0][:3], int(item[0][3]))):
        own, given, true = np.array(rows).T
        yield (
            *name,
            str(len(rows)),
            f"{np.median(own):.2f}",
            f"{np.median(true):.2f}",
            f"{np.abs(own / true - 1).mean():.0%}",
            f"{np.abs(given / true - 1).mean():.0%}",
            " ".join(f"{tokens}:{ends}" for tokens, ends in sorted(largest[name].items())),
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    given = arguments.parse_args()
    runs = [*measured(given.data), *published()]
    timed = [run for run in runs if run.speedup and run.tokens in run.lengths]
    impossible = sum(cost(run) < 1 for run in timed)
    print(f"{impossible} of {len(timed)} runs left out: speed-up above the accept length\n")
    table(
        ("method", "batch", "model", "runs", "cost", "predicted", "measured", "error"),
        by_cost(runs, series(runs)),
    )
    table(
        (
            "method",
            "model",
            "drafter",
            "batch",
            "runs",
            "predicted",
            "measured",
            "error, own length",
            "error",
            "gains up to batch, by length",
        ),
        by_times(runs, load_facts()),
    )


if __name__ == "__main__":
    main()
