"""The quality of every cache level and of others' recipes, measured: ``python benchmarks/kv_quality.py``.

Results are kept in docs/kv-quality.json; a run measures what is missing there. ``--write`` makes
docs/kv-quality.md from it, ``--again tq3,ct3`` measures some caches again. A short look at some:

    python benchmarks/kv_quality.py --tokens 20480 --json look.json --only tq3,vllm-3bit
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer_compile.evaluate.text import cut, default_calibration, default_evaluation, read_text, spread
from infer_compile.quantize.cache.calibrate import CONTEXT, TOKENS, Measured, fit
from infer_compile.quantize.cache.calibrate import measure as measure_moments
from infer_compile.quantize.cache.calibrated import Calibrated
from infer_compile.quantize.cache.fold import folded
from infer_compile.quantize.cache.model import Model, bf16_loader, token_rows
from infer_compile.quantize.cache.simulate import LayerForms, of_layout, visibility_of
from infer_compile.runtime.formats.kv import LEVELS, CacheLayout, LevelName
from infer_compile.runtime.formats.program import Program
from infer_compile.runtime.tokenizer import Tokenizer
from kv_measure import Candidate, Text, attention_on_compressed, generated, measure, plain
from kv_models import QUICKSTART, checkpoint_of, program_of, write_hard
from kv_page import PAGE, page
from kv_recipes import RECIPES, Recipe

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "kv-quality.json"
CALIBRATED = ("ct4", "ct3", "ct2")
FOLDED = "folded"
"""A bf16 cache in the weights that calibrated levels run in: what rounding the folded weights costs."""
RECIPE = {recipe.name: recipe for recipe in RECIPES}
ALL = ("tq3", "ct3", "tq2", "ct2", "tq4", "ct4", "int8", "fp8", "k8v4", FOLDED, *RECIPE)
USES = ("all", "windows")
"""All tokens compressed, or with the plan's windows."""
EVALUATED = 102_400
CONTEXTS = (512, 2048)
PROMPTS, PROMPT_TOKENS, DRAWN_TOKENS = 64, 256, 256
ALL_IN = (4096, 32_768)
MAIN = ("vllm-4bit", "vllm-3bit", "kivi-2-g32", "llama-q4_0", "int4", "turbo-prod-3", "kvarn-k4v2")
"""Of others' recipes: those that are measured on every text."""
TOGETHER = 6
"""Caches that are measured before results are saved."""
LOOKED_AT = 16_384
"""Tokens on which the share of attention is taken."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A cache to measure in a model, and what it takes. ``candidates`` by how it is used: with all tokens
    compressed, or with windows."""

    name: str
    title: str
    source: str
    candidates: Mapping[str, Candidate]
    bits: float
    all_in: tuple[float, float]
    """Bits per number at ``ALL_IN`` tokens with the plan's windows of exact pages."""


def main() -> None:
    arguments = _arguments()
    store = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {"schema": 1}
    if not arguments.page_only:
        with tempfile.TemporaryDirectory() as work:
            folders = {"quickstart": QUICKSTART, "hard": write_hard(Path(work) / "hard")}
            for name, folder in folders.items():
                _measure(store, name, folder, arguments)
    if arguments.write or arguments.page_only:
        PAGE.write_text(page(store))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The quality of every cache level, measured.")
    parser.add_argument("--tokens", type=int, default=EVALUATED, help="of the evaluation text")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--only", type=_names, default=(), help="names of caches, parted by commas")
    parser.add_argument("--again", type=_names, default=(), help="caches whose results are dropped first")
    parser.add_argument("--texts", type=_names, default=(), help="only these: evaluation-512, generated, ...")
    parser.add_argument("--write", action="store_true", help="write docs/kv-quality.md")
    parser.add_argument("--page-only", action="store_true", help="write the page, measure nothing")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _measure(store: dict[str, Any], name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Fill what ``store`` lacks of one model, and save it after every few caches."""
    bench = Bench(folder)
    names = arguments.only or ALL
    for text_name, text in _texts(name, arguments.tokens, arguments.texts):
        where = f"{name}/{text_name}"
        kept = _results(store, where, text)
        for used in USES:
            for dropped in arguments.again:
                kept[used].pop(dropped, None)
        if "attention" not in kept:
            rows = text.rows[: max(1, LOOKED_AT // text.rows.shape[1])]
            kept["attention"] = attention_on_compressed(bench.model, rows, visibility_of(bench.program.cache))
        missing = [(u, n) for n in names for u in _wanted(n, name, text_name) if n not in kept[u]]
        for first in range(0, len(missing), TOGETHER):
            chosen = missing[first : first + TOGETHER]
            caches = {cache: bench.cache(cache) for _, cache in chosen}
            candidates = {f"{used} {cache}": caches[cache].candidates[used] for used, cache in chosen}
            started = time.monotonic()
            found = measure(bench.model, candidates, text, _progress(where, text, len(chosen)))
            for key, result in found.items():
                used, _, cache = key.rpartition(" ")
                kept[used or "reference"][cache] = result
            store.setdefault("caches", {}).update({n: _described(cache) for n, cache in caches.items()})
            print(f"\n{time.monotonic() - started:.0f} s", file=sys.stderr)
            arguments.json.write_text(json.dumps(store, indent=1, sort_keys=True) + "\n")


def _wanted(cache: str, model: str, text: str) -> tuple[str, ...]:
    """How a cache is measured. Ours everywhere; ``MAIN`` of others' too, but at 512 tokens, of which the
    windows keep a third exact, only without; the rest of others' there alone, where a run takes least."""
    short = text == f"evaluation-{min(CONTEXTS)}"
    if cache == FOLDED:
        return ("all",) if text == f"evaluation-{max(CONTEXTS)}" else ()
    if cache in LEVELS or (cache in MAIN and not short and model == "quickstart"):
        return USES
    return ("all",) if cache in MAIN or short else ()


class Bench:
    """One model and the caches that are measured in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._checkpoint = checkpoint_of(folder)
        self.program = program_of(folder)
        self.model = Model(self.program, bf16_loader(self._checkpoint))
        self._visible = {"all": None, "windows": visibility_of(self.program.cache)}
        self._measured: dict[str, Measured] = {}
        self._folded: dict[str, Model] = {}

    def cache(self, name: str) -> Cache:
        """The one of that name in ``ALL``."""
        if name in RECIPE:
            return self._other(RECIPE[name])
        if name == FOLDED:
            return self._named(name, self.program.cache, dict.fromkeys(USES, plain(self.model.layers)))
        layout = program_of(self._folder, LEVELS[name]).cache
        if name in CALIBRATED:
            fitted = {used: self._fitted(LEVELS[name], used) for used in USES}
            forms = {used: of_layout(one.layout(layout), one.tables) for used, one in fitted.items()}
        else:
            forms = dict.fromkeys(USES, of_layout(layout, {}))
        return self._named(name, layout, forms)

    def _named(self, name: str, layout: CacheLayout, forms: Mapping[str, list[LayerForms]]) -> Cache:
        numbers = 2 * layout.kv_heads * layout.head_dim * len(layout.layers)
        all_in = [8 * _pool_bytes(layout, tokens) / numbers / tokens for tokens in ALL_IN]
        folds = name in CALIBRATED or name == FOLDED
        candidates = {
            used: Candidate(self._turned(used) if folds else self.model, forms[used], self._visible[used])
            for used in USES
        }
        title = "bf16 cache, values folded" if name == FOLDED else name
        marginal = 8 * layout.token_bytes / numbers
        return Cache(name, title, "ours", candidates, marginal, (all_in[0], all_in[1]))

    def _moments(self, used: str) -> Measured:
        """Of the calibration text: without the first page where that is kept exact, else of all tokens."""
        if used not in self._measured:
            program = self._program("ct3", used)
            pieces = spread(cut(read_text(default_calibration()), Tokenizer(self._folder), CONTEXT), TOKENS)
            print(f"calibrating on {sum(map(len, pieces))} tokens ({used})", file=sys.stderr)
            self._measured[used] = measure_moments(self._checkpoint, program, pieces)
        return self._measured[used]

    def _program(self, level: LevelName, used: str) -> Program:
        program = program_of(self._folder, level)
        if used == "windows":
            return program
        cache = program.cache.model_copy(update={"sink_pages": 0, "recent_pages": 0})
        return program.model_copy(update={"cache": cache})

    def _fitted(self, level: LevelName, used: str) -> Calibrated:
        return fit(self._moments(used), self._program(level, used))

    def _turned(self, used: str) -> Model:
        """The model in the bases of calibrated values; they depend on the moments alone."""
        if used not in self._folded:
            bases = self._fitted("ct3", used).bases
            self._folded[used] = Model(
                self.program, bf16_loader(folded(self._checkpoint, self.program, bases))
            )
        return self._folded[used]

    def _other(self, recipe: Recipe) -> Cache:
        layers, ends = self.model.layers, recipe.boundary
        compressed = [LayerForms(recipe.keys, recipe.values)] * (layers - 2 * ends)
        forms = [*plain(ends), *compressed, *plain(ends)]
        candidates = {used: Candidate(self.model, forms, self._visible[used]) for used in USES}
        bits = recipe.layer_bits(layers)
        window = self.program.cache
        exact = window.page_tokens * (window.sink_pages + window.recent_pages + 1)
        all_in = [(bits * (tokens - exact) + 16 * exact) / tokens for tokens in ALL_IN]
        return Cache(recipe.name, recipe.title, recipe.source, candidates, bits, (all_in[0], all_in[1]))


def _pool_bytes(layout: CacheLayout, tokens: int) -> int:
    """What a sequence of ``tokens`` tokens holds in both pools."""
    exact, packed = layout.exact_pages(tokens), layout.packed_pages(tokens)
    return exact * layout.exact_page_bytes + packed * layout.packed_page_bytes


def _texts(model: str, count: int, only: tuple[str, ...]) -> Iterator[tuple[str, Text]]:
    """The texts that are taken for a model, or ``only`` some of them: ``count`` tokens at the quickstart
    model's longest context, every second sequence of them elsewhere."""
    tokens = Tokenizer(QUICKSTART).encode(default_evaluation().read_text(encoding="utf-8"), special=False)
    for context in reversed(CONTEXTS):
        name = f"evaluation-{context}"
        if name in (only or (name,)) and (model == "quickstart" or context == max(CONTEXTS)):
            rows = token_rows(tokens[:count], context)
            whole = model == "quickstart" and context == max(CONTEXTS)
            yield name, Text(rows if whole else rows[::2])
    if "generated" in (only or ("generated",)) and model == "quickstart":
        prompts = tokens[EVALUATED : EVALUATED + PROMPTS * PROMPT_TOKENS].reshape(PROMPTS, PROMPT_TOKENS)
        drawn = generated(str(QUICKSTART), prompts, DRAWN_TOKENS)
        yield "generated", Text(drawn, first=PROMPT_TOKENS)


def _results(store: dict[str, Any], key: str, text: Text) -> dict[str, Any]:
    """The results of a model and text; empty ones where those kept are of another text."""
    digest = hashlib.sha256(np.ascontiguousarray(text.rows).tobytes()).hexdigest()[:16]
    texts: dict[str, Any] = store.setdefault("texts", {})
    if texts.get(key, {}).get("digest") != digest:
        texts[key] = {"digest": digest, "counted": text.counted, "context": text.rows.shape[1]}
        texts[key] |= {"reference": {}, "all": {}, "windows": {}}
    found: dict[str, Any] = texts[key]
    return found


def _described(cache: Cache) -> dict[str, Any]:
    return {"title": cache.title, "source": cache.source, "bits": cache.bits, "all_in": list(cache.all_in)}


def _progress(where: str, text: Text, count: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        line = f"{where}: {done} of {len(text.rows)} sequences, {count} caches"
        print(line, end="\r", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    main()
