"""Attention over the paged cache, as the step contract words it: append, seal, then attend. The slow form.

Pages of plain numbers are multiplied as they are. Of packed pages the codes' integers are: by factors of the
query, and, for values, by softmax weights, which are rounded page by page; both to bytes for codes of up to 4
bits, and to 16 bits for wider ones. These roundings are part of what the engine computes, like the rounding
of activations before a product of integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from ..formats.kv import SIDES, CacheLayout
from ..formats.paging import Paging
from ..formats.program import Attend, Rotary
from ..kv.codec import Bytes, Codec
from ..kv.rounding import MOST_FACTOR, MOST_WEIGHT, MOST_WIDE, rounded
from ..step import Float32
from .pools import ExactPool, PackedPool, means_of
from .rows import Rows

Float64 = NDArray[np.float64]


class Attention:
    """Runs ``Attend`` over the pools of ``layout``; ``tables`` are those of its calibrated planes, ``turns``
    the rotary embedding of each layer that has one."""

    def __init__(
        self,
        layout: CacheLayout,
        tables: Mapping[str, Float32],
        exact: ExactPool,
        packed: PackedPool | None,
        turns: Mapping[int, Rotary] = MappingProxyType({}),
    ) -> None:
        self._layout = layout
        self._exact = exact
        self._packed = packed
        self._offsets = np.arange(layout.page_tokens)
        self._turns = turns
        means = means_of(layout, tables)
        self._key_means, self._value_means = (means[:, :, SIDES.index(side)] for side in SIDES)

    def run(self, operation: Attend, inputs: Float32, batch: Sequence[Rows]) -> Float32:
        """``inputs`` [rows, (heads + 2 kv_heads) * head_dim] to ``[rows, heads * head_dim]``."""
        out = np.zeros((inputs.shape[0], operation.heads * operation.head_dim), np.float32)
        heads = inputs.reshape(inputs.shape[0], -1, operation.head_dim)
        queries, keys, values = np.split(
            heads, [operation.heads, operation.heads + operation.kv_heads], axis=1
        )
        for rows in batch:
            own = slice(rows.first, rows.first + rows.count)
            self._append(operation.layer, rows, keys[own], values[own])
            self._seal(operation.layer, rows)
        for rows in batch:
            # All queries of one page see the same form of every key.
            query_pages = rows.positions // self._layout.page_tokens
            for page in np.unique(query_pages):
                chosen = np.flatnonzero(query_pages == page)
                result = self._attend(operation, queries[rows.first + chosen], rows, int(page), chosen)
                out[rows.first + chosen] = result.reshape(len(chosen), -1)
        return out

    def _append(self, layer: int, rows: Rows, keys: Float32, values: Float32) -> None:
        for token in range(rows.count):
            page, offset = divmod(rows.step.start + token, self._layout.page_tokens)
            self._exact.write(layer, int(rows.step.exact[page]), offset, keys[token], values[token])

    def _seal(self, layer: int, rows: Rows) -> None:
        """Compress the pages whose tokens are all accepted now."""
        for page in rows.sealing:
            packed = rows.step.packed
            if self._packed is not None and packed is not None and self._layout.packs(page):
                numbers = self._exact.read(layer, int(rows.step.exact[page]))
                self._packed.write(layer, int(packed[page]), numbers)

    def _attend(
        self, operation: Attend, queries: Float32, rows: Rows, query_page: int, chosen: NDArray[np.intp]
    ) -> Float32:
        """``queries`` [n, heads, head_dim] of tokens ``chosen`` in ``query_page``; the same shape back."""
        count, _, size = queries.shape
        grouped = queries.reshape(count, operation.kv_heads, -1, size).transpose(1, 0, 2, 3)
        vectors = (grouped * np.float32(operation.scale)).reshape(operation.kv_heads, -1, size)
        pages = self._pages(operation, rows, chosen)
        forms = [self._forms(operation.layer, rows, query_page, page) for page in pages]
        slots = np.concatenate([self._layout.page_tokens * page + self._offsets for page in pages])
        # Behind the last new token the last page holds nothing.
        slots = slots[slots < rows.tokens]
        scores = [
            self._sink_scores(operation.layer, rows, vectors, keys)
            if rows.step.evicted and page < self._layout.sink_pages
            else keys.scores(vectors)
            for page, (keys, _) in zip(pages, forms, strict=True)
        ]
        seen = np.concatenate(scores, axis=-1)[..., : len(slots)]
        sees = visible(self._layout, rows, chosen, slots, operation.window)
        seen = np.where(np.repeat(sees, grouped.shape[2], axis=0), seen, -np.inf)
        weights = np.exp(seen - seen.max(axis=-1, keepdims=True))
        total = weights.sum(axis=-1, keepdims=True)
        out = np.zeros(vectors.shape)
        for index, (_, values) in enumerate(forms):
            first = index * self._layout.page_tokens
            out += values.mix(weights[..., first : first + self._layout.page_tokens])
        out = out / total + self._value_means[operation.layer][:, None]
        back = out.reshape(operation.kv_heads, count, -1, size).transpose(1, 0, 2, 3)
        return np.asarray(back, np.float32)

    def _pages(self, operation: Attend, rows: Rows, chosen: NDArray[np.intp]) -> list[int]:
        """Of which some of the ``chosen`` queries may see a token."""
        first, last = int(rows.positions[chosen].min()), self._layout.pages(rows.tokens) - 1
        return self._layout.seen(first, last, rows.step.evicted, operation.window)

    def _forms(self, layer: int, rows: Rows, query_page: int, page: int) -> tuple[_Form, _Form]:
        """The keys and the values of ``page``, as a query in ``query_page`` sees them."""
        packed = rows.step.packed
        if self._packed is None or packed is None or self._layout.exact(query_page, page):
            keys, values = self._exact.read(layer, int(rows.step.exact[page]))
            return _Plain(keys), _Plain(values)
        place, codecs = int(packed[page]), self._packed.codecs[layer]
        stored = {side: self._packed.read(layer, place, side) for side in SIDES}
        return _form(codecs["keys"], stored["keys"]), _form(codecs["values"], stored["values"])

    def _sink_scores(self, layer: int, rows: Rows, vectors: Float32, keys: _Form) -> Float64:
        """Scores of a sink page as if what was evicted had never been: queries turn back that far.

        Stored keys lack their mean, which takes the same from all scores of a query, but other from those of
        the query that is turned.
        """
        turn = self._turns.get(layer)
        if turn is None:
            return keys.scores(vectors)
        turned = _turned(vectors, turn, -rows.step.evicted)
        means = self._key_means[layer][..., None].astype(np.float64)
        scores: Float64 = keys.scores(turned) + (turned.astype(np.float64) - vectors) @ means
        return scores


def visible(
    layout: Paging, rows: Rows, chosen: NDArray[np.intp], slots: NDArray[np.int64], window: int | None
) -> NDArray[np.bool_]:
    """Which of ``slots`` the ``chosen`` queries see, ``[queries, slots]``."""
    step = rows.step
    positions = slots.copy()
    own = slots >= step.start
    positions[own] = rows.positions[slots[own] - step.start]
    if step.evicted:
        positions[slots < layout.sink_pages * layout.page_tokens] += step.evicted
    seen = np.ones((len(chosen), len(slots)), np.bool_)
    seen[:, own] = rows.sees[chosen][:, slots[own] - step.start]
    if window is not None:
        seen &= positions[None] > rows.positions[chosen, None] - window
    return seen


def _turned(vectors: Float32, turn: Rotary, positions: int) -> Float32:
    """``vectors`` [..., head_dim] moved on by so many positions."""
    angles = np.array(turn.frequencies) * positions
    first, second = np.split(vectors.astype(np.float64), 2, axis=-1)
    cosine, sine = np.cos(angles), np.sin(angles)
    both = [first * cosine - second * sine, second * cosine + first * sine]
    return np.concatenate(both, axis=-1).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _Plain:
    """Keys or values as numbers, ``[kv_heads, tokens, head_dim]``."""

    numbers: Float32

    def scores(self, queries: Float32) -> Float64:
        """``queries`` [kv_heads, n, head_dim] to ``[kv_heads, n, tokens]``."""
        return queries.astype(np.float64) @ self.numbers.astype(np.float64).swapaxes(-1, -2)

    def mix(self, weights: Float64) -> Float64:
        """``weights`` [kv_heads, n, tokens so far] to ``[kv_heads, n, head_dim]``."""
        return weights @ self.numbers[:, : weights.shape[-1]].astype(np.float64)


@dataclass(frozen=True, slots=True)
class _Coded:
    """Keys or values as codes."""

    codec: Codec
    stored: Bytes

    def scores(self, queries: Float32) -> Float64:
        codes, scales = self.codec.unpack(self.stored)
        factors = self.codec.transform.query(queries)
        out = np.zeros((*queries.shape[:-1], self.stored.shape[-2]))
        for segment, own, points in self.codec.points(codes):
            integers, step = rounded(factors[..., own], MOST_WIDE if segment.wide else MOST_FACTOR)
            # Sums of integers below 2**53 are exact in float64.
            out += step * (integers.astype(np.float64) @ points.astype(np.float64).swapaxes(-1, -2))
        return out if scales is None else out * scales[:, None]

    def mix(self, weights: Float64) -> Float64:
        codes, scales = self.codec.unpack(self.stored[:, : weights.shape[-1]])
        scaled = (weights if scales is None else weights * scales[:, None]).astype(np.float32)
        columns = np.zeros((*weights.shape[:-1], self.codec.plane.columns))
        for segment, own, points in self.codec.points(codes):
            integers, step = rounded(scaled, MOST_WIDE if segment.wide else MOST_WEIGHT)
            columns[..., own] = step * (integers.astype(np.float64) @ points)
        return self.codec.transform.restore(columns.astype(np.float32)).astype(np.float64)


def _form(codec: Codec, stored: Bytes) -> _Form:
    return _Coded(codec, stored) if codec.plane.kind == "codes" else _Plain(codec.decode(stored))


_Form = _Plain | _Coded
