"""``eval``: a bundle held against the unquantized model, by every measure that its model allows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..bundle import layout
from ..planner.plan import Plan
from ..runtime.bundle import Bundle, open_bundle
from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.kv import CacheLayout
from ..runtime.formats.latent import LatentLayout
from ..runtime.step import Engine, Int32
from ..runtime.tokenizer import Tokenizer
from ..spec.load import load
from . import source
from .continuation import Continuation, continuation
from .divergence import Divergence
from .forcing import Player
from .machine import host, require_here
from .quality import DEFAULT_CONTEXT, DEFAULT_TOKENS, Advance, compressed_share, quality
from .recall import Recall, recall
from .reference import (
    EXACT,
    exact_program,
    graph_of,
    open_reference,
    require_measurable,
    write_reference,
)
from .text import Text, contexts, default_evaluation, read_text

PROMPTS = 16
"""Texts that are continued."""
WRITTEN = 128
"""Tokens of a continuation, where a quarter of the context is not less."""


class Stages(Protocol):
    """Told what is under way."""

    def phase(self, label: str, unit: str) -> AbstractContextManager[Advance]: ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for; None is the default."""

    data: Path | None = None
    reference: str | None = None
    tokens: int | None = None
    context: int | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Against:
    """The reference: a model, and the forms of its weights and cache."""

    model: str
    weights: str
    kv: str

    @property
    def exact(self) -> bool:
        """Whether a loss against it is the one that budgets are for."""
        return self.weights == self.kv == EXACT


@dataclass(frozen=True, slots=True)
class Evaluation:
    """``context`` is the length that contexts were cut to, ``compressed_share`` the share of keys that were
    read in compressed form. ``budget_percent`` is the spec's, None where it states none."""

    plan: Plan
    fingerprint: str
    cache: CacheLayout | LatentLayout
    reference: Against
    text: Text
    context: int
    compressed_share: float
    divergence: Divergence
    continuation: Continuation
    recall: Recall
    budget_percent: float | None
    seconds: float

    @property
    def held(self) -> bool | None:
        """Whether the bundle keeps its budget; None where there is none, or the reference is another."""
        if self.budget_percent is None or not self.reference.exact:
            return None
        return self.divergence.loss_percent <= self.budget_percent


def evaluate(folder: Path, wanted: Wanted, stages: Stages) -> Evaluation:
    """Measure the bundle in ``folder`` with its own compiled engine.

    Raises InferCompileError: what opening a bundle raises, IC001, IC018 and IC353 for the text, IC354 where
    the model it was made from is not found, IC356 a reference of another vocabulary, IC357 a bundle for
    another processor, IC358 a context that it does not take, IC359 a model that a processor's reference does
    not run, and what compiling the reference raises.
    """
    began = time.perf_counter()
    bundle = open_bundle(folder)
    plan = Plan.from_json((folder / layout.PLAN).read_text(encoding="utf-8"), str(folder / layout.PLAN))
    budget = load(folder / layout.SPEC).spec.quality.max_loss_percent
    _require_here(bundle, folder)
    if _other(wanted) is None:
        require_measurable(bundle.program, str(folder))
    tokenizer = Tokenizer(bundle.model_dir)
    text = read_text(wanted.data or default_evaluation(), _name(wanted.data))
    model = Player(bundle.engine(wanted.threads))
    context = _context(wanted.context, model, folder)
    pieces = contexts(text, tokenizer, context, wanted.tokens or DEFAULT_TOKENS, wanted.tokens or 0)
    with _reference(bundle, context, wanted, stages) as (against, engine):
        reference = Player(engine)
        _context(context, reference, Path(against.model))
        with stages.phase("text", "tokens") as advance:
            measured = quality(reference, model, pieces, advance)
        with stages.phase("continuations", "tokens"):
            prompts, ahead = _prompts(pieces)
            free = continuation(reference, model, prompts, ahead, tokenizer.end_ids)
        with stages.phase("recall", "questions"):
            found = recall(reference, model, tokenizer, text.documents, context)
        reference.engine.close()
    model.engine.close()
    return Evaluation(
        plan=plan,
        fingerprint=bundle.fingerprint,
        cache=bundle.program.cache,
        reference=against,
        text=text,
        context=context,
        compressed_share=compressed_share(bundle.program, [len(tokens) for tokens in pieces]),
        divergence=measured,
        continuation=free,
        recall=found,
        budget_percent=budget,
        seconds=time.perf_counter() - began,
    )


@contextmanager
def _reference(
    bundle: Bundle, context: int, wanted: Wanted, stages: Stages
) -> Iterator[tuple[Against, Engine]]:
    """The engine to hold the bundle against: of another bundle, or compiled for the time that it is used."""
    named = _other(wanted)
    if named is not None:
        other = open_bundle(named)
        theirs = Plan.from_json((named / layout.PLAN).read_text(encoding="utf-8"), str(named / layout.PLAN))
        _require_here(other, named)
        _comparable(other.program.vocabulary, bundle, str(named))
        yield (
            Against(wanted.reference or "", theirs.weights.format, theirs.kv.level),
            other.engine(wanted.threads),
        )
        return
    manifest = bundle.manifest
    found = (
        source.named(wanted.reference) if wanted.reference else source.find(manifest.source, bundle.folder)
    )
    graph = graph_of(found)
    _comparable(graph.vocabulary, bundle, found.source)
    program = exact_program(graph, bundle.program.limits, bundle.program.cache.page_tokens, context)
    architecture, isa = host()
    if architecture is None:
        raise ValueError("a machine that runs a bundle has an architecture that is known")
    with tempfile.TemporaryDirectory(prefix="infer-compile-") as folder:
        with stages.phase("reference", "MiB"):
            write_reference(found, program, architecture, isa, Path(folder))
        yield Against(found.source, EXACT, EXACT), open_reference(Path(folder), wanted.threads)


def _other(wanted: Wanted) -> Path | None:
    """The bundle that is to be the reference; None where it is a model."""
    named = Path(wanted.reference) if wanted.reference else None
    return named if named is not None and layout.is_bundle(named) else None


def _require_here(bundle: Bundle, folder: Path) -> None:
    """Of a processor's engine; that of a GPU says by itself what is missing."""
    engine = bundle.manifest.engine
    if engine.kind == "cpu":
        require_here(engine.isa, where=str(folder))


def _name(data: Path | None) -> str:
    return str(data) if data else "the evaluation text of infer-compile"


def _prompts(pieces: Sequence[Int32]) -> tuple[list[Int32], int]:
    """Beginnings of the longest contexts, half as long, and by how many tokens they are continued."""
    longest = max(len(tokens) for tokens in pieces)
    ahead = min(WRITTEN, longest // 4)
    length = longest // 2
    enough = [tokens[:length] for tokens in pieces if len(tokens) >= length]
    return enough[:: -(-len(enough) // PROMPTS)], ahead


def _context(wanted: int | None, model: Player, folder: Path) -> int:
    if wanted is not None and wanted > model.context:
        raise InferCompileError(
            Problem(
                "IC358",
                f"contexts of {wanted} tokens are longer than it takes",
                str(folder),
                f"it was built for {model.context}",
                f"--context {model.context}, or build with a longer workload.context_tokens",
            ),
            Exit.USAGE,
        )
    return wanted or min(model.context, DEFAULT_CONTEXT)


def _comparable(theirs: int, bundle: Bundle, model: str) -> None:
    ours = bundle.program.vocabulary
    if theirs != ours:
        raise InferCompileError(
            Problem(
                "IC356",
                f"the reference knows {theirs} tokens, the bundle {ours}",
                model,
                "their predictions can only be compared token by token",
                "name the model that the bundle was made from",
            ),
            Exit.USAGE,
        )
