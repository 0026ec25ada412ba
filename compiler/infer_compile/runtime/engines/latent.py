"""Latent attention over the paged cache: the slow form, and the kernels' reference.

Keys and values are not unfolded: queries come in the domain of latent vectors, and what is summed are latent
vectors. A pool page holds the layers in order; of each, latent vectors ``[page_tokens, rank]`` and then
rotary keys ``[page_tokens, rope]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..formats.latent import LatentLayout
from ..formats.program import AttendLatent
from ..kv.codec import Bytes, Codec
from ..step import Float32
from .attention import visible
from .pools import ExactDtype, from_bf16, to_bf16
from .rows import Rows


class ExactLatents:
    """Pages as they were computed, in bf16 (or, to compare with others, in float32)."""

    def __init__(self, layout: LatentLayout, pages: int, dtype: ExactDtype = "bf16") -> None:
        self._rounded = dtype == "bf16"
        kind = np.uint16 if self._rounded else np.float32
        tokens = layout.page_tokens
        self._numbers = np.zeros((pages, layout.layers, tokens * (layout.rank + layout.rope)), kind)
        self._split, self._tokens = tokens * layout.rank, tokens
        self.bytes: Bytes = self._numbers.reshape(-1).view(np.uint8)

    def write(self, layer: int, page: int, offset: int, latent: Float32, key: Float32) -> None:
        """``latent`` [rank] and ``key`` [rope]; ``offset`` is the token's place in the page."""
        for part, numbers in zip(self._parts(layer, page), (latent, key), strict=True):
            part[offset] = to_bf16(numbers) if self._rounded else numbers

    def read(self, layer: int, page: int) -> tuple[Float32, Float32]:
        """``[page_tokens, rank]`` and ``[page_tokens, rope]``."""
        latents, keys = (
            from_bf16(part) if self._rounded else part.copy() for part in self._parts(layer, page)
        )
        return latents, keys

    def _parts(self, layer: int, page: int) -> list[NDArray[Any]]:
        both = np.split(self._numbers[page, layer], [self._split])
        return [part.reshape(self._tokens, -1) for part in both]


class PackedLatents:
    """Compressed pages."""

    def __init__(self, layout: LatentLayout, pages: int) -> None:
        self._codecs = (Codec(layout.latents, layout.rank, None), Codec(layout.keys, layout.rope, None))
        self._tokens, self._split = layout.page_tokens, layout.page_tokens * self._codecs[0].vector_bytes
        self._pages = np.zeros((pages, layout.layers, layout.packed_page_bytes // layout.layers), np.uint8)
        self.bytes: Bytes = self._pages.reshape(-1)

    def write(self, layer: int, page: int, numbers: tuple[Float32, Float32]) -> None:
        """Compress what ``ExactLatents.read`` gives."""
        parts = [codec.encode(part).reshape(-1) for codec, part in zip(self._codecs, numbers, strict=True)]
        self._pages[page, layer] = np.concatenate(parts)

    def read(self, layer: int, page: int) -> tuple[Float32, Float32]:
        both = np.split(self._pages[page, layer], [self._split])
        latents, keys = (
            codec.decode(part.reshape(self._tokens, -1))
            for codec, part in zip(self._codecs, both, strict=True)
        )
        return latents, keys


class LatentAttention:
    """Attention over the pools of ``layout``."""

    def __init__(self, layout: LatentLayout, exact: ExactLatents, packed: PackedLatents | None) -> None:
        self._layout = layout
        self._exact = exact
        self._packed = packed

    def run(
        self,
        operation: AttendLatent,
        query: Float32,
        latent: Float32,
        unfold: Float32,
        batch: Sequence[Rows],
    ) -> Float32:
        """The operation's buffers and its matrix to its output; sums are float64, rounded once."""
        rows, heads, rank = len(query), operation.heads, operation.rank
        positions = np.concatenate([part.positions for part in batch])
        plain, turned = np.split(query.reshape(rows, heads, -1), [operation.nope], axis=-1)
        latents, keys = np.split(latent, [rank], axis=-1)
        key_parts, value_parts = np.split(
            unfold.reshape(heads, -1, rank).astype(np.float64), [operation.nope], axis=1
        )
        queries = np.einsum("thn,hnr->thr", plain.astype(np.float64), key_parts).astype(np.float32)
        self.append(operation.layer, latents, _turned(keys[:, None], operation, positions)[:, 0], batch)
        mean = self.attend(
            operation.layer, queries, _turned(turned, operation, positions), operation.scale, batch
        )
        values = np.einsum("thr,hvr->thv", mean.astype(np.float64), value_parts)
        return np.asarray(values.reshape(rows, -1), np.float32)

    def append(self, layer: int, latents: Float32, keys: Float32, batch: Sequence[Rows]) -> None:
        """``latents`` [rows, rank] and ``keys`` [rows, rope] to exact pages; what is accepted is sealed."""
        for rows in batch:
            for token in range(rows.count):
                page, offset = divmod(rows.step.start + token, self._layout.page_tokens)
                row, place = rows.first + token, int(rows.step.exact[page])
                self._exact.write(layer, place, offset, latents[row], keys[row])
            packed = rows.step.packed
            for page in rows.sealing:
                if self._packed is not None and packed is not None and self._layout.packs(page):
                    numbers = self._exact.read(layer, int(rows.step.exact[page]))
                    self._packed.write(layer, int(packed[page]), numbers)

    def attend(
        self, layer: int, queries: Float32, turned: Float32, scale: float, batch: Sequence[Rows]
    ) -> Float32:
        """``queries`` [rows, heads, rank] for latent vectors, ``turned`` [rows, heads, rope] for rotary keys;
        ``[rows, heads, rank]``, the latent vectors that each head sees on average, comes back."""
        out = np.zeros(queries.shape, np.float32)
        both = np.concatenate([queries, turned], axis=-1).astype(np.float64) * scale
        for rows in batch:
            # All queries of one page see the same form of every key.
            query_pages = rows.positions // self._layout.page_tokens
            for page in np.unique(query_pages):
                chosen = np.flatnonzero(query_pages == page)
                own = rows.first + chosen
                out[own] = self._mixed(layer, both[own], rows, int(page), chosen)
        return out

    def _mixed(
        self,
        layer: int,
        queries: NDArray[np.float64],
        rows: Rows,
        query_page: int,
        chosen: NDArray[np.intp],
    ) -> NDArray[np.float64]:
        """Of ``queries`` [n, heads, rank + rope] of tokens ``chosen`` in ``query_page``."""
        layout, step = self._layout, rows.step
        pages = range(layout.pages(rows.tokens))
        forms = []
        for page in pages:
            if self._packed is None or step.packed is None or layout.exact(query_page, page):
                forms.append(self._exact.read(layer, int(step.exact[page])))
            else:
                forms.append(self._packed.read(layer, int(step.packed[page])))
        # Behind the last new token the last page holds nothing.
        latents, keys = (
            np.concatenate(side)[: rows.tokens].astype(np.float64) for side in zip(*forms, strict=True)
        )
        scores = queries @ np.concatenate([latents, keys], axis=-1).T
        slots = np.arange(rows.tokens)
        scores = np.where(visible(layout, rows, chosen, slots, None)[:, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return np.asarray(weights @ latents / weights.sum(axis=-1, keepdims=True))


def _turned(vectors: Float32, operation: AttendLatent, positions: NDArray[np.int64]) -> Float32:
    """``vectors`` [rows, heads, rope]; pairs come back as halves."""
    angles = np.outer(positions.astype(np.float64), np.array(operation.frequencies))[:, None]
    cosine, sine = np.cos(angles) * operation.rotary_scale, np.sin(angles) * operation.rotary_scale
    wide = vectors.astype(np.float64)
    if operation.neighbours:
        first, second = wide[..., 0::2], wide[..., 1::2]
    else:
        first, second = np.split(wide, 2, axis=-1)
    both = [first * cosine - second * sine, second * cosine + first * sine]
    return np.concatenate(both, axis=-1).astype(np.float32)
