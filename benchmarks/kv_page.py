"""docs/kv-quality.md, from the results that ``kv_quality.py`` keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[1] / "docs" / "kv-quality.md"
CURVE = ("tq2", "tq3", "tq4", "int8")
"""The levels without data, whose divergence at any size lies on the line through these."""
COUNTS = 2.0
"""Percent that tq2 without windows must lose on a text for the text to tell caches apart."""

Results = Mapping[str, Mapping[str, float]]

HEAD = """\
# What the cache costs in quality

Every level of our cache and the recipes of others, measured on the same tokens of the same models against a
bf16 cache. Made by `python benchmarks/kv_quality.py --write` from `kv-quality.json` beside it, which it fills
first with what is missing; how the levels are built is told in [kv-cache.md](kv-cache.md).

## How to read it

- **bits**: of one more token, per cached number, codes and scales of keys and values over all layers.
- **all tokens compressed**: no exact token at all, a query's own key and value included. Harder than any of
  these caches is in use, and the same for all.
- **with windows**: the plan's default: pages of 32 tokens, the first page exact, and of each query's own page
  and the four before it, every token. For everybody alike: what others keep exact by themselves differs
  (KIVI the newest 32 to 128 tokens, vLLM a prompt's first chunk while it is read).
- **perplexity**: change against the bf16 cache in percent, teacher-forced, and its standard error over
  sequences. Within a few tenths of a percent it tells nothing: a perturbed model may be luckier.
- **KL**: divergence of the next-token distribution from the one over a bf16 cache, mean and 99th percentile
  over tokens, in units of 0.001 nat. It sees every change and decides.
- **x tq**: mean KL over that of the data-free levels `tq2`, `tq3`, `tq4`, `int8` at the same bits, between
  them on a line of the logarithm. Below 1 is better than rotation and codes of equal width.
- **top-1**: how often the likeliest next token is the same, in percent.

Recall is not measured: the quickstart model answers none of the questions of a recall task, with any cache.
"""


def page(store: Mapping[str, Any]) -> str:
    """The whole page."""
    caches = store["caches"]
    texts = store["texts"]
    blocks = [HEAD, *_goals(texts, caches), *_sizes(caches)]
    for key, title in TEXTS.items():
        if key in texts:
            blocks += _text(title, texts[key], caches)
    blocks += _llama(store.get("llama.cpp"))
    return "\n".join(blocks)


TEXTS = {
    "quickstart/evaluation-2048": "The quickstart model, evaluation text, context 2,048",
    "quickstart/evaluation-512": "The quickstart model, evaluation text, context 512",
    "quickstart/generated": "The quickstart model, text that it wrote itself",
    "hard/evaluation-2048": "The same model with hard keys, evaluation text, context 2,048",
}
NOTES = {
    "quickstart/generated": "64 prompts of 256 tokens from the evaluation text, 256 tokens drawn after each "
    "from the model's own distribution over a bf16 cache; only these count.",
    "hard/evaluation-2048": "The quickstart model with keys like those published of Qwen2.5: norms of 120 to "
    "750, most of it a constant vector, and six channels of each head 16 times as large "
    "(`benchmarks/kv_models.py`). It computes what the quickstart model computes: over a bf16 cache their "
    "divergence is 0.00001.",
}


def _sizes(caches: Mapping[str, Any]) -> Iterator[str]:
    yield "## Sizes\n"
    yield (
        "Bits per cached number: of one more token, and of all that a sequence of 4,096 or 32,768 tokens "
        "holds with the windows above. Ours count every page of both pools (a recent page is kept exact and "
        "compressed); for others the exact tokens are counted once.\n"
    )
    rows = [
        (
            f"`{name}`" if cache["source"] == "ours" else cache["title"],
            f"{cache['bits']:.3f}",
            *(f"{bits:.2f}" for bits in cache["all_in"]),
            cache["source"],
        )
        for name, cache in _sorted(caches)
    ]
    yield _table(("cache", "marginal", "at 4,096", "at 32,768", "after"), rows)


def _sorted(caches: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """From large to small, ours before others of the same size."""
    return sorted(caches.items(), key=lambda item: (-item[1]["bits"], item[1]["source"] != "ours", item[0]))


def _text(title: str, text: Mapping[str, Any], caches: Mapping[str, Any]) -> Iterator[str]:
    key = next(key for key, one in TEXTS.items() if one == title)
    base = text["reference"]["bf16"]["perplexity"]
    lost = text["all"]["tq2"]["change_percent"] if "tq2" in text["all"] else math.nan
    share = text["attention"]
    yield f"## {title}\n"
    if key in NOTES:
        yield NOTES[key] + "\n"
    verdict = (
        "so it counts" if lost >= COUNTS else f"less than {COUNTS:g} %: it tells caches apart by KL alone"
    )
    yield (
        f"{text['counted']:,} predictions, perplexity {base:.3f} over a bf16 cache. `tq2` without windows "
        f"loses {lost:.2f} %, {verdict}. With windows {100 * sum(share) / len(share):.0f} % of the attention "
        f"falls on compressed tokens ({100 * min(share):.0f} to {100 * max(share):.0f} % by layer).\n"
    )
    heads = ["cache", "bits"]
    for _ in ("all", "windows"):
        heads += ["perplexity %", "KL", "KL p99", "x tq", "top-1"]
    rows = [
        (
            f"**{name}**" if cache["source"] == "ours" else cache["title"],
            f"{cache['bits']:.2f}",
            *_scores(name, cache, text["all"], caches),
            *_scores(name, cache, text["windows"], caches),
        )
        for name, cache in _sorted(caches)
        if name in text["all"] or name in text["windows"]
    ]
    yield "Five columns with all tokens compressed, then the same five with windows.\n"
    yield _table(heads, rows)


def _scores(name: str, cache: Mapping[str, Any], found: Results, caches: Mapping[str, Any]) -> Iterator[str]:
    if name not in found:
        yield from ("-",) * 5
        return
    one = found[name]
    ratio = against_curve(one["kl"], cache["bits"], found, caches)
    yield f"{one['change_percent']:+.2f} ± {one['change_error']:.2f}"
    yield _small(1000 * one["kl"])
    yield _small(1000 * one["kl_p99"])
    yield "-" if ratio is None else f"{ratio:.2f}"
    yield f"{one['top1_percent']:.1f}"


def against_curve(kl: float, bits: float, found: Results, caches: Mapping[str, Any]) -> float | None:
    """``kl`` over that of the data-free levels that were measured, at ``bits``; None outside their sizes."""
    points = [(caches[name]["bits"], math.log(found[name]["kl"])) for name in CURVE if name in found]
    for (low, first), (high, last) in pairwise(points):
        if low - 1e-9 <= bits <= high + 1e-9:
            return kl / math.exp(first + (last - first) * (bits - low) / (high - low))
    return None


def _small(number: float) -> str:
    """Three digits, never an exponent."""
    if number >= 100:
        return f"{number:.0f}"
    return f"{number:.{max(0, 2 - math.floor(math.log10(number)))}f}" if number >= 1e-3 else f"{number:.5f}"


def _goals(texts: Mapping[str, Any], caches: Mapping[str, Any]) -> Iterator[str]:
    """What was aimed at, and what was found."""
    rows = list(_goal_rows(texts, caches))
    if not rows:
        return
    yield "## Goals\n"
    yield (
        "`ct3` takes at most 3.25 marginal bits, perplexity within 0.3 % and KL under a third of `tq3`'s at "
        "the same size; `ct2` takes at most 2.3 bits and is no worse than `tq3` by KL.\n"
    )
    yield _table(("text", "tokens", "ct3 perplexity", "ct3 KL / tq3 KL", "ct2 KL / tq3 KL", "reached"), rows)


def _goal_rows(texts: Mapping[str, Any], caches: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for key, title in TEXTS.items():
        for windows, words in (("all", "all compressed"), ("windows", "with windows")):
            found = texts.get(key, {}).get(windows, {})
            if not {"ct3", "ct2", "tq3"} <= found.keys():
                continue
            change = found["ct3"]["change_percent"]
            third, second = (found[name]["kl"] / found["tq3"]["kl"] for name in ("ct3", "ct2"))
            held = [
                ("ct3 size", caches["ct3"]["bits"] <= 3.25),
                ("ct3 perplexity", change <= 0.3),
                ("ct3 KL", third < 1 / 3),
                ("ct2 size", caches["ct2"]["bits"] <= 2.3),
                ("ct2 KL", second <= 1),
            ]
            missed = [name for name, reached in held if not reached]
            verdict = "all" if not missed else "not: " + ", ".join(missed)
            error = found["ct3"]["change_error"]
            yield title, words, f"{change:+.2f} ± {error:.2f} %", f"{third:.2f}", f"{second:.2f}", verdict


def _llama(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    yield "## llama.cpp, run\n"
    yield (
        f"llama.cpp {found['version']}: `llama-perplexity` with flash attention on the same text and models, "
        "written as GGUF in float32 by `benchmarks/kv_llama_cpp.py`, each cache type against its own f16 "
        "cache (`--kl-divergence`). It cuts the text, its first "
        f"{found['tokens']:,} tokens, into the same contexts and scores the second half of "
        "each; its attention over a quantized cache also rounds queries to q8_0.\n"
    )
    rows = [
        (
            model,
            f"{context}",
            f"{kind} {'' if rotated else 'not rotated'}".strip(),
            f"{one['change_percent']:+.2f} ± {one['change_error']:.2f}",
            f"{_small(1000 * one['kl'])} ± {_small(1000 * one['kl_error'])}",
            _small(1000 * one["kl_p99"]),
            f"{one['top1_percent']:.1f}",
        )
        for model, contexts in found["results"].items()
        for context, kinds in contexts.items()
        for name, one in kinds.items()
        for kind, rotated in [(name.removesuffix("-plain"), not name.endswith("-plain"))]
    ]
    yield _table(("model", "context", "cache type", "perplexity %", "KL", "KL p99", "top-1"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
