"""The rows of a step: where each new token stands and what it sees; the caller's side of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InferCompileError, Problem
from ..formats.program import Program
from ..step import MOST_TREE, Int32, SequenceStep


@dataclass(frozen=True, slots=True)
class Rows:
    """One sequence's rows ``[first, first + count)`` of a step's buffers.

    ``positions`` [count] are those of the tokens, ``sees`` [count, count] is which new tokens each sees,
    itself included; pages ``sealing`` get their compressed form.
    """

    step: SequenceStep
    first: int
    count: int
    positions: NDArray[np.int64]
    sees: NDArray[np.bool_]
    sealing: range

    @property
    def tokens(self) -> int:
        """Tokens of the sequence after the step."""
        return self.step.start + self.count

    @property
    def outputs(self) -> range:
        """The rows whose logits are asked for."""
        return range(self.first + self.count - self.step.outputs, self.first + self.count)


def rows_of(program: Program, batch: Sequence[SequenceStep]) -> list[Rows]:
    """The rows of ``batch`` in order. Raises InferCompileError IC521 where it breaks the step contract."""
    limits, layout = program.limits, program.cache
    need(len(batch) <= limits.max_sequences, f"{len(batch)} sequences in a step of {limits.max_sequences}")
    rows: list[Rows] = []
    for step in batch:
        _check(program, step)
        positions, sees = _ancestry(step)
        certain = (step.start + step.accepted) // layout.page_tokens if step.packed is not None else 0
        sealing = range(step.sealed, certain)
        first = rows[-1].first + rows[-1].count if rows else 0
        rows.append(Rows(step, first, len(step.tokens), positions, sees, sealing))
        _check_pages(program, rows[-1])
    count, outputs = sum(part.count for part in rows), sum(step.outputs for step in batch)
    need(count <= limits.max_batch_tokens, f"{count} tokens in a step of {limits.max_batch_tokens}")
    need(outputs <= limits.max_outputs, f"{outputs} outputs in a step of {limits.max_outputs}")
    return rows


def need(held: bool, because: str) -> None:
    """Raise InferCompileError IC521 unless ``held``."""
    if not held:
        raise InferCompileError(Problem("IC521", "the engine refused a step", because=because))


def _check(program: Program, step: SequenceStep) -> None:
    count, page_tokens, limits = len(step.tokens), program.cache.page_tokens, program.limits
    need(count > 0, "a sequence without new tokens")
    kept = step.start + count - step.evicted
    need(kept <= limits.max_context, f"more than {limits.max_context} tokens in a sequence")
    _check_evicted(program, step)
    need(0 <= step.outputs <= count, f"{step.outputs} outputs of {count} tokens")
    need(0 <= step.accepted <= count, f"{step.accepted} of {count} tokens accepted")
    need(0 <= step.sealed <= step.start // page_tokens, f"{step.sealed} pages sealed at token {step.start}")
    known = (step.tokens >= 0) & (step.tokens < program.vocabulary)
    need(bool(np.all(known)), "a token that is not in the vocabulary")
    check_features(program.features, step)


def check_features(width: int, step: SequenceStep) -> None:
    """Raise IC521 unless each new token has the ``width`` numbers that a program is fed, 0 for none."""
    wanted = (len(step.tokens), width) if width else None
    given = None if step.features is None else step.features.shape
    need(given == wanted, f"features of shape {given}, not {wanted}")


def _check_evicted(program: Program, step: SequenceStep) -> None:
    if not step.evicted:
        return
    layout = program.cache
    need(program.limits.overflow == "evict", "tokens are evicted, and the program ends sequences instead")
    pages, rest = divmod(step.evicted, layout.page_tokens)
    need(pages > 0 and not rest, f"{step.evicted} tokens evicted, which are no whole pages")
    own = step.start // layout.page_tokens
    need(layout.sink_pages + pages <= own, f"{pages} pages evicted of those before page {own}")


def _ancestry(step: SequenceStep) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    count = len(step.tokens)
    if step.parents is None:
        return step.start + np.arange(count), np.tri(count, dtype=np.bool_)
    need(count <= MOST_TREE, f"a tree of {count} tokens, which has at most {MOST_TREE}")
    need(len(step.parents) == count, f"{len(step.parents)} parents of {count} tokens")
    depth = np.zeros(count, np.int64)
    sees = np.eye(count, dtype=np.bool_)
    for token, parent in enumerate(step.parents.tolist()):
        need(-1 <= parent < token, f"token {token} has parent {parent}")
        if parent >= 0:
            depth[token] = depth[parent] + 1
            sees[token] |= sees[parent]
    chain = np.arange(step.accepted) - 1
    need(np.array_equal(step.parents[: step.accepted], chain), "accepted tokens that are not a chain")
    return step.start + depth, sees


def _check_pages(program: Program, rows: Rows) -> None:
    """Every form that the step reads or writes has its place in a pool. Whole spans of pages are looked at: a
    long context has thousands."""
    step, layout = rows.step, program.cache
    if not layout.layers:
        return
    exact_size, packed_size = program.pool_pages
    compressed = layout.compressed and step.packed is not None
    sinks, last = layout.sink_pages, (rows.tokens - 1) // layout.page_tokens
    sealing = range(max(rows.sealing.start, sinks), rows.sealing.stop if compressed else 0)
    exact, packed = [range(step.start // layout.page_tokens, last + 1), sealing], [sealing]
    for query_page in np.unique(rows.positions // layout.page_tokens).tolist():
        first = max(step.start, query_page * layout.page_tokens)
        # Between these a query sees the compressed form.
        near = max(sinks, query_page - layout.recent_pages) if compressed else sinks
        for pages in layout.spans(first, last, step.evicted, layout.window):
            exact += range(pages.start, min(sinks, pages.stop)), range(max(near, pages.start), pages.stop)
            packed.append(range(max(sinks, pages.start), min(near, pages.stop)))
    _check_places("exact", exact, step.exact, exact_size)
    if step.packed is not None:
        _check_places("packed", packed, step.packed, packed_size)
    certain = (step.start + step.accepted) // layout.page_tokens
    late = min((max(certain, span.start) for span in packed if span and span.stop > certain), default=-1)
    need(late < 0, f"page {late} is seen compressed before it is sealed")


def _check_places(form: str, spans: Sequence[range], table: Int32, size: int) -> None:
    wrong = min((page for span in spans if (page := _misplaced(span, table, size)) >= 0), default=-1)
    if wrong >= 0:
        place = int(table[wrong]) if wrong < len(table) else -1
        need(place >= 0, f"the sequence holds no {form} page {wrong}")
        need(place < size, f"{form} page {place} in a pool of {size}")


def _misplaced(span: range, table: Int32, size: int) -> int:
    """The first page of ``span`` that has no place in the pool; -1 if all have."""
    if not span:
        return -1
    held = table[span.start : span.stop]
    wrong = np.flatnonzero((held < 0) | (held >= size))
    if wrong.size:
        return span.start + int(wrong[0])
    return span.start + len(held) if len(held) < len(span) else -1
