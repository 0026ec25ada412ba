"""Attention over the paged cache, as the step contract words it: append, seal, then attend. The slow form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..formats.kv import CacheLayout
from ..formats.program import Attend
from ..step import Float32
from .pools import ExactPool, PackedPool
from .rows import Rows


def attend(
    operation: Attend,
    inputs: Float32,
    batch: Sequence[Rows],
    layout: CacheLayout,
    exact: ExactPool,
    packed: PackedPool | None,
) -> Float32:
    """``inputs`` [rows, (heads + 2 kv_heads) * head_dim] to ``[rows, heads * head_dim]``."""
    width = operation.heads * operation.head_dim
    out = np.zeros((inputs.shape[0], width), np.float32)
    heads = inputs.reshape(inputs.shape[0], -1, operation.head_dim)
    queries, keys, values = np.split(heads, [operation.heads, operation.heads + operation.kv_heads], axis=1)
    caches = [_SequenceCache(operation.layer, rows, layout, exact, packed) for rows in batch]
    for cache, rows in zip(caches, batch, strict=True):
        own = slice(rows.first, rows.first + rows.count)
        cache.append(keys[own], values[own])
        cache.seal()
    for cache, rows in zip(caches, batch, strict=True):
        # All queries of one page see the same form of every key.
        query_pages = rows.positions // layout.page_tokens
        for page in np.unique(query_pages):
            chosen = np.flatnonzero(query_pages == page)
            seen, visible = cache.read(int(page)), _visible(operation, rows, chosen)
            result = _softmax_attention(operation, queries[rows.first + chosen], seen, visible)
            out[rows.first + chosen] = result.reshape(len(chosen), -1)
    return out


class _SequenceCache:
    """One layer of one sequence's pages."""

    def __init__(
        self, layer: int, rows: Rows, layout: CacheLayout, exact: ExactPool, packed: PackedPool | None
    ) -> None:
        self._layer = layer
        self._rows = rows
        self._layout = layout
        self._exact = exact
        self._packed = packed

    def append(self, keys: Float32, values: Float32) -> None:
        """The new tokens' keys and values, each ``[tokens, kv_heads, head_dim]``, to their slots."""
        for token in range(self._rows.count):
            page, offset = divmod(self._rows.step.start + token, self._layout.page_tokens)
            place = int(self._rows.step.exact[page])
            self._exact.write(self._layer, place, offset, keys[token], values[token])

    def seal(self) -> None:
        """Compress the pages whose tokens are all accepted now."""
        for page in self._rows.sealing:
            if self._packed is not None and self._layout.packs(page):
                numbers = self._exact.read(self._layer, int(self._rows.step.exact[page]))
                self._packed.write(self._layer, int(self._rows.step.packed[page]), numbers)

    def read(self, query_page: int) -> Float32:
        """What a query in ``query_page`` sees of every token, ``[kv_heads, 2, tokens, head_dim]``."""
        tokens = self._rows.tokens
        pages = [self._form(query_page, page) for page in range(self._layout.pages(tokens))]
        return np.concatenate(pages, axis=2)[:, :, :tokens]

    def _form(self, query_page: int, page: int) -> Float32:
        if self._packed is None or self._layout.exact(query_page, page):
            return self._exact.read(self._layer, int(self._rows.step.exact[page]))
        return self._packed.read(self._layer, int(self._rows.step.packed[page]))


def _visible(operation: Attend, rows: Rows, chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which tokens of the sequence the ``chosen`` queries see, ``[queries, tokens]``."""
    start = rows.step.start
    positions = np.concatenate([np.arange(start), rows.positions])
    seen = np.concatenate([np.ones((len(chosen), start), np.bool_), rows.sees[chosen]], axis=1)
    if operation.window is not None:
        seen &= positions[None] > rows.positions[chosen, None] - operation.window
    return seen


def _softmax_attention(
    operation: Attend, queries: Float32, seen: Float32, visible: NDArray[np.bool_]
) -> Float32:
    """``queries`` [n, heads, head_dim] over ``seen`` [kv_heads, 2, tokens, head_dim]; sums in float64."""
    keys, values = seen.astype(np.float64).swapaxes(0, 1)
    grouped = queries.astype(np.float64).reshape(len(queries), operation.kv_heads, -1, operation.head_dim)
    scores = np.einsum("nkgd,ktd->nkgt", grouped, keys, optimize=True) * operation.scale
    scores = np.where(visible[:, None, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray(np.einsum("nkgt,ktd->nkgd", weights, values, optimize=True), np.float32)
