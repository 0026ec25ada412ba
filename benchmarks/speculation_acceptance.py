"""Acceptance figures of catalog/speculation.yaml from measured accept lengths, and how well they predict.

    python benchmarks/speculation_acceptance.py --data ../shared/measurements/speculation.csv [--write]

Read are the measured runs of ``--data`` and the looked-up figures of speculation_published.csv. Runs of one
method, model, drafter and data set are a series. Each series is fitted by two rates, that of the first
drafted token and that of every later one; a series of one length takes its method's median later rate. At
each length 1 to 8 the median over all series of a method and a kind of text is the expected accept length,
the tenth and the ninetieth percentile its low and high end; the rates of the catalog are fitted to these
three curves. In general every kind of text weighs the same. Trees are left out.

Printed are the three curves as a table, and how well series of other models predict one that was left out.
``--write`` puts the figures into the catalog. Speed-ups are in speculation_speedup.py.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from infer_compile.catalog.model import load_card
from infer_compile.catalog.speculation import DEPTH, SpeculationFacts
from infer_compile.catalog.target import load_target
from infer_compile.graph.build import build
from infer_compile.planner.drafter import eagle3
from infer_compile.planner.speculation import expected_tokens

PUBLISHED = Path(__file__).parent / "speculation_published.csv"
CATALOG = Path(__file__).parents[1] / "compiler/infer_compile/catalog/speculation.yaml"
KINDS = ("chat", "code", "reasoning", "documents")
FEWEST = 4
"""Series that a kind of text needs for figures of its own."""

DATASETS = {
    "chat": ("mt-bench", "alpaca", "roleplay", "writing", "humanities", "qa", "prose", "story", "magpie"),
    "code": ("humaneval", "livecodebench", "coding", "code", "instructcoder", "blazedit"),
    "reasoning": ("gsm8k", "math500", "math", "gpqa", "stem", "reasoning", "reasoning problems"),
    "documents": ("financeqa", "summarization", "rag"),
}
METHODS = {"EAGLE-3": "eagle3", "PLD": "ngram", "Lookahead": "lookahead"}
"""Names of the measured runs that are chains of a length that is known."""
SPEC_BENCH = {"ngram": 10, "lookahead": 4}
"""Longest draft: prompt lookup's default of 10 tokens, n-grams of level 5."""
WHOLE = ("mean", "average")
SOURCES = {
    "draft": "Llama-3.3-70B with Llama-3.2-1B, Qwen3-32B with Qwen3-1.7B and 4B on vLLM, greedy "
    "(tomasruizt/vllm-scripts)",
    "eagle3": "chains on SGLang and vLLM, most of them greedy: SpecForge SpecBundle, AngelSlim, vLLM's tests "
    "and blog, tomasruizt/vllm-scripts, nebius",
    "lookahead": "Spec-Bench: Vicuna-7B, 13B and 33B, level 5, window 7, 7 guesses, greedy",
    "medusa": "first choices of the heads of Vicuna-7B, 13B and 33B: low, one story; expected, heads that "
    "err independently; high, a head that is right only where all before it are (FasterDecoding/Medusa)",
    "mtp": "DeepSeek-V3, MiMo-7B, Qwen3.6 and 3.8, Inkling on vLLM and llama.cpp: docs/speculation.md",
    "ngram": "Spec-Bench (prompt lookup of up to 10 tokens, Vicuna), TensorRT-LLM tech blog 7, vLLM pull "
    "request 24344",
}


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement. ``lengths``: accept length, its bonus token included, by drafted tokens."""

    method: str
    target: str
    draft: str
    dataset: str
    lengths: Mapping[int, float]
    tokens: int = 0
    batch: int = 0
    speedup: float = 0.0
    device: str = ""
    devices: int = 1
    engine: str = ""

    @property
    def kind(self) -> str:
        name = self.dataset.split(",")[0].replace("mtbench", "mt-bench")
        return next((kind for kind, names in DATASETS.items() if name in names), "other")


def measured(path: Path) -> list[Run]:
    """The runs of ``path`` that speculate in a chain of known length."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    runs = [run for row in rows if "Spec-Bench" not in row["source"] for run in _run(row)]
    return runs + _spec_bench([row for row in rows if "Spec-Bench" in row["source"]])


def _run(row: Mapping[str, str]) -> Iterable[Run]:
    method = METHODS.get(row["method"])
    shape = re.fullmatch(
        r"steps=(\d+) topk=1 .*|K=(\d+)|width x depth 1x(\d+)|(2-3) draft tokens.*", row["k_or_tree"]
    )
    if method != "eagle3" or not shape or row["dataset"] in WHOLE:
        return
    # "2-3 draft tokens": the publisher's README says num_speculative_tokens=2.
    tokens = 2 if shape[4] else int(shape[1] or shape[2] or shape[3])
    lengths = {tokens: float(row["accept_len"])} if row["accept_len"] else {}
    positions = re.search(r"per-position acceptance \([^)]*\): ([\d. ]+)", row["notes"])
    if positions:
        lengths = _lengths([float(share) for share in positions[1].split()][:tokens])
    yield Run(
        method,
        row["target_model"],
        row["draft"].replace("Spec for ge", "Specforge"),
        row["dataset"],
        lengths,
        tokens,
        int(row["batch_or_concurrency"] or 0),
        float(row["speedup"] or 0),
        {"H200": "h200-sxm"}.get(row["gpu"], ""),
        int(row["tp"] or row["num_gpus"] or 1),
        row["engine"].lower(),
    )


def _spec_bench(rows: list[dict[str, str]]) -> list[Run]:
    """Spec-Bench gives an accept length over all tasks and a speed-up for each. A step costs the same in all
    of them, so that a task's accept length is to the whole as its speed-up is to the mean."""
    groups: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        groups[row["method"], row["target_model"], row["gpu"]].append(row)
    runs = []
    for (name, target, _), group in groups.items():
        method = METHODS.get(name, "")
        if method not in SPEC_BENCH:
            continue
        mean = float(np.mean([float(row["speedup"]) for row in group]))
        for row in group:
            speedup = float(row["speedup"])
            # Below one token per step the task was slowed down by something else.
            length = max(1.0, float(row["accept_len"]) * speedup / mean)
            tokens = SPEC_BENCH[method]
            runs.append(Run(method, target, row["gpu"], row["dataset"], {tokens: length}, tokens, 1, speedup))
    return runs


def published(path: Path = PUBLISHED) -> list[Run]:
    """The figures that were looked up; ``positions`` are shares of all steps that accept so far."""
    runs = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["method"] == "medusa":
                continue
            tokens = int(row["tokens"])
            shares = [float(share) for share in row["positions"].split(";") if share]
            lengths = _lengths(shares) if shares else {tokens: float(row["accept_len"])}
            speedup = float(row["with_spec"]) / float(row["baseline"]) if row["baseline"] else 0.0
            runs.append(
                Run(
                    row["method"],
                    row["target"],
                    row["draft"],
                    row["dataset"],
                    lengths,
                    tokens,
                    int(row["batch"] or 0),
                    speedup,
                    row["device"],
                    int(row["devices"] or 1),
                    "vllm" if row["device"] else "",
                )
            )
    return runs


def _lengths(shares: Sequence[float]) -> dict[int, float]:
    return {i + 1: 1 + sum(shares[: i + 1]) for i in range(len(shares))}


def two_rates(first: float, later: float, depth: int = DEPTH) -> tuple[float, ...]:
    return (first, *[later] * (depth - 1))


_LATER = np.linspace(0.0, 1.0, 1001)


def fit(lengths: Mapping[int, float], later: float | None = None) -> tuple[float, float]:
    """The first and the later rate that explain accept lengths best, by least squares of relative errors;
    ``later`` can be given."""
    tokens = np.array(sorted(lengths))
    measured = np.array([lengths[count] for count in tokens])
    grid = _LATER if later is None else np.array([later])
    # The first rate enters linearly: E = 1 + first * (1 + later + later^2 + ...).
    sums = np.cumsum(grid[:, None] ** np.arange(tokens.max()), axis=1)[:, tokens - 1]
    weighted = sums / measured
    first = np.clip((weighted * ((measured - 1) / measured)).sum(1) / (weighted**2).sum(1), 0, 1)
    errors = ((1 + first[:, None] * sums) / measured - 1) ** 2
    best = int(errors.sum(1).argmin())
    return float(first[best]), float(grid[best])


@dataclass(frozen=True, slots=True)
class Series:
    method: str
    target: str
    draft: str
    dataset: str
    kind: str
    rates: tuple[float, ...]


def series(runs: Sequence[Run]) -> list[Series]:
    """One for each method, model, drafter and data set."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if run.lengths:
            groups[run.method, run.target, run.draft, run.dataset].append(run)
    fits: dict[tuple[str, ...], tuple[float, float]] = {}
    single: dict[tuple[str, ...], dict[int, float]] = {}
    for key, group in groups.items():
        pooled: dict[int, list[float]] = defaultdict(list)
        for run in group:
            for tokens, length in run.lengths.items():
                pooled[tokens].append(length)
        lengths = {tokens: float(np.mean(values)) for tokens, values in pooled.items()}
        if len(lengths) > 1:
            fits[key] = fit(lengths)
        else:
            single[key] = lengths
    for method in {key[0] for key in groups}:
        known = [later for key, (_, later) in fits.items() if key[0] == method and key not in single]
        for key, lengths in single.items():
            if key[0] == method:
                fits[key] = fit(lengths, float(np.median(known))) if known else _constant(lengths)
    kinds = {key: groups[key][0].kind for key in groups}
    return [Series(*key[:4], kinds[key], two_rates(*fits[key])) for key in sorted(fits)]


def _constant(lengths: Mapping[int, float]) -> tuple[float, float]:
    ((tokens, length),) = lengths.items()
    curve = expected_tokens(np.repeat(_LATER[:, None], tokens, axis=1), np.full(len(_LATER), tokens))
    rate = float(_LATER[int(np.abs(curve - length).argmin())])
    return rate, rate


@dataclass(frozen=True, slots=True)
class Curves:
    """Accept lengths at 1 to 8 drafted tokens."""

    method: str
    kind: str
    low: tuple[float, ...]
    expected: tuple[float, ...]
    high: tuple[float, ...]
    series: int


def summarise(all_series: Sequence[Series]) -> list[Curves]:
    """Quantiles over series at each length, by method and kind of text."""
    found = []
    for method in sorted({one.method for one in all_series}):
        of_method = [one for one in all_series if one.method == method]
        found.append(_curves(method, "general", of_method, _weights(of_method)))
        for kind in KINDS:
            chosen = [one for one in of_method if one.kind == kind]
            if len(chosen) >= FEWEST:
                found.append(_curves(method, kind, chosen, [1.0] * len(chosen)))
    return found


def _weights(chosen: Sequence[Series]) -> list[float]:
    """Each kind of text weighs the same, if it has enough series; one of no kind weighs as the mean of those
    that have one."""
    count = {kind: sum(one.kind == kind for one in chosen) for kind in KINDS}
    weight = {kind: 1 / max(number, FEWEST) for kind, number in count.items()}
    total = sum(count.values())
    mean = sum(count[kind] * weight[kind] for kind in KINDS) / total if total else 1.0
    return [weight.get(one.kind, mean) for one in chosen]


def _curves(method: str, kind: str, chosen: Sequence[Series], weights: Sequence[float]) -> Curves:
    depth = SPEC_BENCH["lookahead"] if method == "lookahead" else DEPTH
    lengths = np.stack([expected_tokens(one.rates, np.arange(1, depth + 1)) for one in chosen])
    low, expected, high = (
        tuple(round(quantile(lengths[:, i], weights, share), 3) for i in range(depth))
        for share in (0.1, 0.5, 0.9)
    )
    return Curves(method, kind, low, expected, high, len(chosen))


def quantile(values: np.ndarray, weights: Sequence[float], share: float) -> float:
    """Of weighted values: linear between the middles of their weights."""
    order = np.argsort(values, kind="stable")
    heavy = np.asarray(weights, np.float64)[order]
    middles = (np.cumsum(heavy) - heavy / 2) / heavy.sum()
    return float(np.interp(share, middles, values[order]))


def rates(lengths: Sequence[float]) -> list[float]:
    """The catalog's rates for a curve; none beyond its end. Two of them, for a quantile passes from series to
    series, so that its single steps are those of no drafter."""
    found = two_rates(*fit(dict(enumerate(lengths, 1))), len(lengths))
    return [round(rate, 3) for rate in found] + [0.0] * (DEPTH - len(found))


def medusa(path: Path = PUBLISHED) -> dict[str, object]:
    """Rates of heads that each predict one position: known is how often each is right by itself, and the
    accept length of one story. Heads that err independently accept as often as each is right; if a head is
    right only where all before it are, its rate is the quotient of two shares."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "medusa"]
    shares = np.array(
        [[float(one) for one in row["positions"].split(";")] for row in rows if row["positions"]]
    )
    right = np.median(shares, axis=0)
    story = next(row for row in rows if row["accept_len"])
    rate, _ = _constant({int(story["tokens"]): float(story["accept_len"])})
    none = [0.0] * (DEPTH - len(right))
    return {
        "method": "medusa",
        "kind": "general",
        "low": [round(rate, 3)] * len(right) + none,
        "expected": [round(float(one), 3) for one in right] + none,
        "high": [round(float(one), 3) for one in (right / np.array([1.0, *right[:-1]]))] + none,
        "series": len(rows),
        "basis": "published",
        "source": SOURCES["medusa"],
    }


def acceptance(curves: Sequence[Curves]) -> list[dict[str, object]]:
    """The entries of the catalog."""
    fitted: list[dict[str, object]] = [
        {
            "method": one.method,
            "kind": one.kind,
            "low": rates(one.low),
            "expected": rates(one.expected),
            "high": rates(one.high),
            "series": one.series,
            "basis": "published",
            "source": SOURCES[one.method],
        }
        for one in curves
    ]
    return sorted([*fitted, medusa()], key=lambda entry: str(entry["method"]))


OVERHEAD = (
    ("SGLang, Llama-3.1-8B on one H200", "llama-3.1-8b", "h200-sxm"),
    ("vLLM, Qwen3-32B on one H100", "qwen3-32b", "h100-sxm"),
)
"""Measured EAGLE-3 runs of one sequence on one device."""


def overhead(data: Path, facts: SpeculationFacts) -> tuple[float, float, str]:
    """Microseconds per step and per pass beside what the drafter reads: seconds of a step (accept length over
    speed) less those of a plain step and those that the drafter's bytes take at the device's peak, by least
    squares over draft lengths; the mean of both engines."""
    with data.open(encoding="utf-8", newline="") as file:
        bundle = [
            (
                int(row["k_or_tree"][6]),
                float(row["accept_len"]),
                float(row["baseline"]),
                float(row["with_spec"]),
            )
            for row in csv.DictReader(file)
            if row["target_model"] == "Llama-3.1-8B-Instruct" and " topk=1 " in row["k_or_tree"]
        ]
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        logs = [
            (int(row["tokens"]), float(row["accept_len"]), float(row["baseline"]), float(row["with_spec"]))
            for row in csv.DictReader(file)
            if (row["method"], row["target"], row["batch"]) == ("eagle3", "Qwen3-32B", "1")
        ]
    found, told = [], []
    for (name, model, device), rows in zip(OVERHEAD, (bundle, logs), strict=True):
        card = load_card(model)
        assert card is not None
        graph = build(card.config, model)
        checkpoint = next(one for one in facts.eagle3.checkpoints if one.model == model)
        shape = eagle3(facts.eagle3, checkpoint, graph, card.config)
        assert shape is not None
        peak = load_target(device, Path()).bandwidth_gbs * 1e9
        tokens = np.array([row[0] for row in rows], np.float64)
        step = np.array([length / speed - 1 / plain for _, length, plain, speed in rows])
        rest = step - (tokens * shape.pass_bytes + shape.step_bytes) / peak
        fixed, each = np.linalg.lstsq(np.stack([np.ones_like(tokens), tokens], 1), rest, rcond=None)[0] * 1e6
        found.append((float(fixed), float(each)))
        told.append(f"{name}: {fixed:.0f} per step, {each:.0f} per pass")
    fixed, each = np.mean(found, axis=0)
    return round(float(fixed), -1), round(float(each), -1), "; ".join(told)


def write(entries: Sequence[Mapping[str, object]], extra: tuple[float, float, str]) -> None:
    """Puts the figures between ``acceptance:`` and ``pairs:`` of the catalog's text."""
    text = CATALOG.read_text(encoding="utf-8")
    before, rest = text.split("\nacceptance:", 1)
    after = rest[rest.index("\n# Smaller models") :]
    lines = ["\nacceptance:"]
    for entry in entries:
        lines.append(f"  - method: {entry['method']}\n    kind: {entry['kind']}")
        lines += [f"    {name}: {entry[name]}" for name in ("low", "expected", "high", "series", "basis")]
        lines.append(f'    source: "{entry["source"]}"')
    step, each, told = extra
    lines.append("\noverhead:")
    for name, value in (("step_us", step), ("pass_us", each)):
        lines.append(f'  {name}:\n    value: {value:g}\n    basis: published\n    source: "{told}"')
    lines.append("  lookup_us:")
    kept = yaml.safe_load(text)["overhead"]["lookup_us"]
    lines += [f"    value: {kept['value']}\n    basis: {kept['basis']}", f'    source: "{kept["source"]}"']
    CATALOG.write_text(before + "\n".join(lines) + "\n" + after, encoding="utf-8")


def held_out(every: Sequence[Series], lengths: Sequence[int] = (3, 5, 7)) -> Iterable[tuple[str, ...]]:
    """By method and kind of text: mean error of the accept length, in and out of the fit (other models
    alone), and the share of measured lengths between the low and the high end of other models."""
    for method in ("eagle3", "ngram", "lookahead"):
        count = [SPEC_BENCH["lookahead"]] if method == "lookahead" else list(lengths)
        mine = [one for one in every if one.method == method]
        for kind in KINDS:
            chosen = [one for one in mine if one.kind == kind]
            if len({one.target for one in chosen}) < 2:
                continue
            whole = np.median([expected_tokens(one.rates, count) for one in chosen], axis=0)
            inside, own, other = [], [], []
            for one in chosen:
                rest = [expected_tokens(each.rates, count) for each in chosen if each.target != one.target]
                true = expected_tokens(one.rates, count)
                own.append(np.abs(whole / true - 1))
                other.append(np.abs(np.median(rest, axis=0) / true - 1))
                low, high = np.quantile(rest, (0.1, 0.9), axis=0)
                inside.append((low <= true) & (true <= high))
            yield (
                method,
                kind,
                str(len(chosen)),
                " ".join(f"{length:.2f}" for length in whole),
                f"{np.mean(own):.0%}",
                f"{np.mean(other):.0%}",
                f"{np.mean(inside):.0%}",
            )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--write", action="store_true", help="put the figures into the catalog")
    given = arguments.parse_args()
    runs = [*measured(given.data), *published()]
    every = series(runs)
    curves = summarise(every)
    if given.write:
        facts = SpeculationFacts.model_validate(yaml.safe_load(CATALOG.read_text(encoding="utf-8")))
        write(acceptance(curves), overhead(given.data, facts))
    print("method,kind,tokens,low,expected,high,series")
    for one in curves:
        for i, ends in enumerate(zip(one.low, one.expected, one.high, strict=True)):
            print(f"{one.method},{one.kind},{i + 1},{','.join(map(str, ends))},{one.series}")
    print()
    table(
        ("method", "text", "series", "tokens per step at 3, 5, 7", "error", "of other models", "inside"),
        held_out(every),
    )


if __name__ == "__main__":
    main()
