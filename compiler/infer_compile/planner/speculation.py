"""Speculative decoding: what a drafter is expected to gain in tokens per step, and what it takes.

A step drafts tokens, verifies them all in one step of the model and keeps those up to the first that the
model would not have written, and one of the model's own. Seconds are the time model's; here are counts,
bytes and the arithmetic that joins them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..catalog.figure import Basis, weakest
from ..catalog.formats import WeightScheme
from ..catalog.speculation import DEPTH, Acceptance, Kind, Method, SpeculationFacts
from ..graph.cost import Mixture, expected_experts
from ..graph.graph import Graph
from ..graph.heads import Heads
from . import drafter
from .drafter import DRAFTER_SCHEME, Drafter

Floats = NDArray[np.float64]
LENGTHS = tuple(range(1, DEPTH + 1))
WIDTHS = LENGTHS


def expected_tokens(rates: ArrayLike, tokens: ArrayLike) -> Floats:
    """Tokens that a verify step is expected to yield when ``tokens`` are drafted one after the other.

    ``rates[..., i]`` is the chance that the drafted token at position i is accepted if all before it were. A
    step yields the accepted tokens and one of the model's own: 1 + sum over i < tokens of the product of
    ``rates[..., : i + 1]``. ``tokens`` must not exceed the rates given. Either ``rates`` has one axis and
    ``tokens`` any shape, or ``tokens`` has the shape of the leading axes of ``rates``.
    """
    reached = np.cumprod(np.asarray(rates, np.float64), axis=-1)
    yielded = np.concatenate([np.ones_like(reached[..., :1]), 1 + np.cumsum(reached, axis=-1)], axis=-1)
    count = np.asarray(tokens, np.int64)
    if yielded.ndim == 1:
        return np.asarray(yielded[count])
    return np.take_along_axis(yielded, count[..., None], axis=-1)[..., 0]


def sibling_tokens(rates: ArrayLike, tokens: ArrayLike, share: float) -> Floats:
    """Tokens that a verify step yields besides, with other choices verified beside each of the ``tokens``
    drafted ones: where all before a position were accepted and its own is not, one of them is with the chance
    ``share``, and yields the token behind it. Rates and tokens as in ``expected_tokens``.
    """
    each = np.asarray(rates, np.float64)
    before = np.concatenate([np.ones_like(each[..., :1]), np.cumprod(each, axis=-1)[..., :-1]], axis=-1)
    reached = np.arange(each.shape[-1]) < np.asarray(tokens)[..., None]
    return np.asarray(np.sum(before * (1 - each) * share * reached, axis=-1))


@dataclass(frozen=True, slots=True)
class Drafting:
    """One way to draft. A verify step computes ``rows + 1`` tokens of each sequence, ``tokens`` in a chain
    and ``width`` choices for each of them, and is ``expected`` to yield so many, the model's own token among
    them; four fifths of what was measured lie between ``expected_low`` and ``expected_high``. Where the
    chain's token is not drawn, one of the other choices is with the chance ``sibling_acceptance``; they bring
    ``by_siblings`` of the expected tokens. Some of the rows are a ``window`` of guesses in so many
    ``columns``, which verifies nothing.

    ``draft``: the id of the drafting model in the catalog or of the checkpoint on the hub. A step makes
    ``passes`` passes of the drafter. A pass goes through ``draft_layers`` layers; for one sequence it reads
    ``draft_bytes`` of weights, before they are split over devices (``pass_bytes`` for more sequences, which
    reach more experts of ``mixtures``), and computes ``draft_flops_per_token``. ``host_seconds`` come once a
    step, ``host_seconds_per_sequence`` for each of its sequences. ``resident_bytes`` of weights stay in
    memory, and ``draft_cache_elements_per_token`` numbers per token of a sequence; in our own engine, which
    runs it if it is ``native``, ``draft_token_values`` floats besides for each token of a step, and
    ``draft_output_values`` for each that is drafted.
    """

    method: str
    tokens: int
    expected: float
    expected_low: float
    expected_high: float
    draft: str | None = None
    draft_bytes: float = 0.0
    draft_flops_per_token: float = 0.0
    draft_layers: int = 0
    passes: int = 0
    host_seconds: float = 0.0
    host_seconds_per_sequence: float = 0.0
    resident_bytes: float = 0.0
    draft_cache_elements_per_token: int = 0
    draft_token_values: int = 0
    draft_output_values: int = 0
    native: bool = True
    mixtures: tuple[Mixture, ...] = ()
    expert_bytes: tuple[float, ...] = ()
    width: int = 1
    columns: int = 0
    window: int = 0
    sibling_acceptance: float = 0.0
    by_siblings: float = 0.0
    basis: Basis = "arithmetic"
    source: str = "one token per step"

    @property
    def rows(self) -> int:
        """Tokens that a step computes for it."""
        return self.tokens * self.width + self.window

    @property
    def acceptance(self) -> float:
        """Share of the chain's tokens that is accepted; 0 without any."""
        return (self.expected - self.by_siblings - 1) / self.tokens if self.tokens else 0.0

    def pass_bytes(self, sequences: ArrayLike) -> Floats:
        """Bytes of weights that a pass for ``sequences`` sequences (of any shape) reads."""
        # ``expected_experts`` takes an array as it takes a number.
        count: Any = np.asarray(sequences, np.float64)
        read = np.full(count.shape, self.draft_bytes)
        for group, one in zip(self.mixtures, self.expert_bytes, strict=True):
            hit = expected_experts(group.experts, group.experts_per_token, count)
            read = read + group.layers * one * (hit - group.experts_per_token)
        return read


NONE = Drafting("none", 0, 1.0, 1.0, 1.0)


def speedup(
    decode_seconds: ArrayLike, verify_seconds: ArrayLike, draft_seconds: ArrayLike, expected: ArrayLike
) -> Floats:
    """How much faster a sequence grows than by plain steps of ``decode_seconds``. Arrays broadcast."""
    decode, taken = np.asarray(decode_seconds, np.float64), np.add(verify_seconds, draft_seconds)
    return np.asarray(np.multiply(expected, decode) / taken)


def break_even_batch(
    seconds: Callable[[NDArray[np.int64]], tuple[ArrayLike, ArrayLike, ArrayLike]],
    expected: float,
    batches: Sequence[int] | NDArray[np.int64],
) -> int:
    """The largest of ``batches`` at which drafting still gains; 0 if it gains at none.

    ``seconds`` gives the decode, verify and draft seconds of a step for an array of batches. A small batch
    may lose where a larger one gains: the experts that a verify step wakes are awake in a large batch anyway.
    """
    counts = np.asarray(batches, np.int64)
    gains = speedup(*seconds(counts), expected) > 1
    return int(counts[gains].max(initial=0))


def choices(
    graph: Graph,
    model_id: str,
    config: Mapping[str, Any],
    facts: SpeculationFacts,
    draft_graphs: Callable[[str], Graph | None],
    methods: Sequence[Method],
    lengths: Sequence[int] = LENGTHS,
    *,
    widths: Sequence[int] = (1,),
    kind: Kind = "general",
    draft: str | None = None,
    heads: Heads | None = None,
    vocabulary_slack: int = 0,
    scheme: WeightScheme = DRAFTER_SCHEME,
) -> tuple[Drafting, ...]:
    """Every drafting that the model can use: ``NONE`` first, then by method in the order of ``methods``.

    ``model_id`` is the model's id in the catalog, ``config`` its config.json; ``draft_graphs`` gives the
    graph of a model of the catalog (None: not there). ``lengths`` are within 1 to ``DEPTH``; lookahead has
    the shapes of the catalog, and heads draft no more tokens than there are heads. Of ``widths``
    those above 1 are for methods of whose other choices something is known, and for at most ``DEPTH`` drafted
    tokens in all. ``draft`` names the one drafter that is allowed, a model or a checkpoint; ``heads`` is what
    it is, where it is heads that are here. A smaller model is left out if its vocabulary differs by more than
    ``vocabulary_slack``. ``scheme`` is the format of the drafter's weights.
    """
    found = [NONE]
    for method in methods:
        if method in ("ngram", "lookahead"):
            found += _looked_up(facts, method, kind, lengths) if draft is None else ()
            continue
        ways: Iterable[_Way]
        if heads is not None and draft is not None:
            ways = _given(graph, heads, draft) if method == heads.method else ()
        elif method == "draft":
            ways = _models(graph, model_id, facts, draft_graphs, draft, vocabulary_slack, scheme)
        elif method == "eagle3":
            ways = _eagle3(graph, model_id, config, facts, draft)
        elif method == "medusa":
            ways = _medusa(graph, model_id, facts, draft)
        else:
            ways = _mtp(graph, config, facts, draft, scheme)
        acceptance = facts.of(method, kind)
        for way in ways:
            found += [
                _drafting(facts, acceptance, way, count) for count in lengths if count <= len(way.shapes)
            ]
    return tuple(wider for one in found for wider in _widened(facts, kind, one, widths))


def _widened(facts: SpeculationFacts, kind: Kind, one: Drafting, widths: Sequence[int]) -> Iterator[Drafting]:
    """``one``, a chain, and the trees around it."""
    yield one
    method = next((each for each in get_args(Method) if each == one.method), None)
    beside = facts.beside(method) if method else None
    if method is None or beside is None:
        return
    rates = facts.of(method, kind)
    every = np.array([rates.expected, rates.low, rates.high])
    for width in widths:
        if not 1 < width <= len(beside.shares) + 1 or one.tokens * width > DEPTH:
            continue
        share = beside.shares[width - 2]
        more, low, high = (float(each) for each in sibling_tokens(every, np.full(3, one.tokens), share))
        yield replace(
            one,
            expected=one.expected + more,
            expected_low=one.expected_low + low,
            expected_high=one.expected_high + high,
            width=width,
            sibling_acceptance=share,
            by_siblings=more,
            basis=weakest((one.basis, beside.basis)),
            source=f"{one.source}; other choices {beside.source}",
        )


@dataclass(frozen=True, slots=True)
class _Way:
    """A drafter that a method can use. ``shapes``: what a pass is for 1, 2, ... tokens; there is one pass for
    each token or, if ``together``, one for all."""

    draft: str | None
    shapes: tuple[Drafter, ...]
    basis: Basis
    source: str
    together: bool = False


def _models(
    graph: Graph,
    model_id: str,
    facts: SpeculationFacts,
    draft_graphs: Callable[[str], Graph | None],
    draft: str | None,
    vocabulary_slack: int,
    scheme: WeightScheme,
) -> Iterator[_Way]:
    pairs = {pair.draft: pair for pair in facts.pairs if model_id in pair.targets}
    for name in pairs if draft is None else (draft,):
        smaller, pair = draft_graphs(name), pairs.get(name)
        if smaller is None or abs(smaller.vocabulary - graph.vocabulary) > vocabulary_slack:
            continue
        shapes = (drafter.smaller_model(smaller, scheme),) * DEPTH
        if pair is None:
            yield _Way(name, shapes, "assumption", "not a known pair; taken to accept as known pairs do")
        else:
            yield _Way(name, shapes, pair.basis, pair.source)


def _given(graph: Graph, heads: Heads, name: str) -> Iterator[_Way]:
    most = DEPTH if heads.most is None else min(DEPTH, heads.most)
    shapes = tuple(drafter.heads(heads, count, graph) for count in range(1, most + 1))
    source = "taken to accept as published heads of their kind do"
    yield _Way(name, shapes, "assumption", source, together=not heads.passes)


def _eagle3(
    graph: Graph, model_id: str, config: Mapping[str, Any], facts: SpeculationFacts, draft: str | None
) -> Iterator[_Way]:
    for checkpoint in facts.eagle3.checkpoints:
        if checkpoint.model == model_id and draft in (None, checkpoint.id):
            shape = drafter.eagle3(facts.eagle3, checkpoint, graph, config)
            if shape is not None:
                source = f"made for {checkpoint.made_for}: {checkpoint.source}"
                yield _Way(checkpoint.id, (shape,) * DEPTH, shape.basis, source)
                return


def _medusa(graph: Graph, model_id: str, facts: SpeculationFacts, draft: str | None) -> Iterator[_Way]:
    for checkpoint in facts.medusa.checkpoints:
        if checkpoint.model == model_id and draft in (None, checkpoint.id):
            heads = checkpoint.heads
            shapes = tuple(drafter.medusa(graph, count, heads) for count in range(1, heads + 1))
            source = f"made for {checkpoint.made_for}: {checkpoint.source}"
            yield _Way(checkpoint.id, shapes, "published", source, together=True)
            return


def _mtp(
    graph: Graph, config: Mapping[str, Any], facts: SpeculationFacts, draft: str | None, scheme: WeightScheme
) -> Iterator[_Way]:
    # One layer drafts several tokens by being passed several times.
    if draft is None and drafter.mtp_layers(facts.mtp, graph, config):
        shapes = (drafter.mtp(facts.mtp, graph, scheme),) * DEPTH
        yield _Way(None, shapes, facts.mtp.basis, facts.mtp.source)


def _drafting(facts: SpeculationFacts, acceptance: Acceptance, way: _Way, tokens: int) -> Drafting:
    one, passes, overhead = way.shapes[tokens - 1], 1 if way.together else tokens, facts.overhead
    experts = sum(
        group.layers * group.experts_per_token * size
        for group, size in zip(one.mixtures, one.expert_bytes, strict=True)
    )
    expected, low, high = _yields(acceptance, tokens)
    return Drafting(
        method=acceptance.method,
        tokens=tokens,
        expected=expected,
        expected_low=low,
        expected_high=high,
        draft=way.draft,
        # What comes once a step is spread over its passes.
        draft_bytes=one.pass_bytes + experts + one.step_bytes / passes,
        draft_flops_per_token=one.pass_flops + one.step_flops / passes,
        draft_layers=one.layers,
        passes=passes,
        host_seconds=(overhead.step_us.value + passes * overhead.pass_us.value) * 1e-6,
        resident_bytes=one.resident_bytes,
        draft_cache_elements_per_token=one.cache_elements_per_token,
        draft_token_values=one.token_values,
        draft_output_values=one.output_values,
        native=one.native,
        mixtures=one.mixtures,
        expert_bytes=one.expert_bytes,
        basis=weakest((acceptance.basis, way.basis, overhead.step_us.basis, overhead.pass_us.basis)),
        source=f"{acceptance.source}; {way.source}",
    )


def _looked_up(
    facts: SpeculationFacts, method: Method, kind: Kind, lengths: Sequence[int]
) -> Iterator[Drafting]:
    """Text that was there before: nothing is computed, something is looked up for each sequence."""
    acceptance, overhead = facts.of(method, kind), facts.overhead
    chains = tuple(
        Drafting(
            method=method,
            tokens=tokens,
            expected=expected,
            expected_low=low,
            expected_high=high,
            host_seconds=overhead.step_us.value * 1e-6,
            host_seconds_per_sequence=overhead.lookup_us.value * 1e-6,
            basis=weakest((acceptance.basis, overhead.step_us.basis, overhead.lookup_us.basis)),
            source=acceptance.source,
        )
        for tokens in LENGTHS
        for expected, low, high in (_yields(acceptance, tokens),)
    )
    if method != "lookahead":
        yield from (chains[tokens - 1] for tokens in lengths)
        return
    for shape in facts.lookahead:
        yield replace(
            chains[shape.depth - 1],
            width=shape.guesses,
            columns=shape.columns,
            window=shape.window,
            basis=weakest((chains[0].basis, shape.basis)),
            source=f"{acceptance.source}; {shape.source}",
        )


def _yields(acceptance: Acceptance, depth: int) -> tuple[float, float, float]:
    """Tokens of a step: expected, low, high."""
    every = np.array([acceptance.expected, acceptance.low, acceptance.high])
    expected, low, high = expected_tokens(every, np.full(3, depth))
    return float(expected), float(low), float(high)
