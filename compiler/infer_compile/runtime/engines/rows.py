"""The rows of a step: where each new token stands and what it sees; the caller's side of the contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..formats.program import Program
from ..step import SequenceStep


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
    """The rows of ``batch`` in order. Raises ValueError where it breaks the step contract."""
    limits = program.limits
    _need(len(batch) <= limits.max_sequences, f"{len(batch)} sequences in a step of {limits.max_sequences}")
    rows, first = [], 0
    for step in batch:
        _check(program, step)
        positions, sees = _ancestry(step)
        page = program.cache.page_tokens
        sealing = range(step.sealed, (step.start + step.accepted) // page)
        rows.append(Rows(step, first, len(step.tokens), positions, sees, sealing))
        first += len(step.tokens)
    _need(first <= limits.max_batch_tokens, f"{first} tokens in a step of {limits.max_batch_tokens}")
    return rows


def _need(held: bool, message: str) -> None:
    if not held:
        raise ValueError(message)


def _check(program: Program, step: SequenceStep) -> None:
    count, layout, limits = len(step.tokens), program.cache, program.limits
    _need(count > 0, "a sequence without new tokens")
    _need(step.start + count <= limits.max_context, f"more than {limits.max_context} tokens in a sequence")
    _need(0 <= step.outputs <= count, f"{step.outputs} outputs of {count} tokens")
    _need(0 <= step.accepted <= count, f"{step.accepted} of {count} tokens accepted")
    _need(0 <= step.sealed <= step.start // layout.page_tokens, f"{step.sealed} pages sealed at {step.start}")
    _need(
        bool(np.all((step.tokens >= 0) & (step.tokens < program.vocabulary))), "a token not in the vocabulary"
    )
    for name, pages, size in (
        ("exact", step.exact, limits.exact_pages),
        ("packed", step.packed, limits.packed_pages),
    ):
        _need(bool(np.all(pages < size)), f"an {name} page outside the pool of {size}")


def _ancestry(step: SequenceStep) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    count = len(step.tokens)
    if step.parents is None:
        return step.start + np.arange(count), np.tri(count, dtype=np.bool_)
    _need(len(step.parents) == count, f"{len(step.parents)} parents of {count} tokens")
    depth = np.zeros(count, np.int64)
    sees = np.eye(count, dtype=np.bool_)
    for token, parent in enumerate(step.parents.tolist()):
        _need(-1 <= parent < token, f"token {token} has parent {parent}")
        if parent >= 0:
            depth[token] = depth[parent] + 1
            sees[token] |= sees[parent]
    _need(
        np.array_equal(step.parents[: step.accepted], np.arange(step.accepted) - 1),
        "accepted tokens that are not a chain",
    )
    return step.start + depth, sees
