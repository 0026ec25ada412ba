"""Sequences in a GPU engine's pools: a few pages that its own kernels write and seal, copied to all others.

A page has its place in the pools by an order drawn at random, and memory of its own; what it holds is one of
few contents, so that attention over all of it can be held to attention over the cache as it decodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gpu_engine import Tables
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.engines.pools import PackedPool
from infer_compile.runtime.formats.kv import SIDES, CacheLayout
from infer_compile.runtime.formats.program import Limits
from infer_compile.runtime.step import SequenceStep

COPIED = 17
"""Pages of different contents; the first is a sink of the default windows, and never sealed."""
AT_ONCE = 512 << 20
"""Bytes of pages copied at once."""


def limits_of(layout: CacheLayout, batch: int, context: int, chunk: int = 1, copied: int = COPIED) -> Limits:
    """Room for ``batch`` sequences of ``context`` tokens, and for the pages that are copied."""
    rows = max(batch, copied * layout.page_tokens, chunk)
    return Limits(
        max_context=max(context, copied * layout.page_tokens),
        max_sequences=batch,
        max_batch_tokens=rows,
        exact_pages=max(copied, batch * layout.exact_pages(context, chunk)),
        packed_pages=max(copied, batch * layout.pages(context)) if layout.compressed else 0,
    )


@dataclass(frozen=True)
class Places:
    """Where the pages of ``batch`` sequences of up to ``context`` tokens lie, and of what they are copies."""

    layout: CacheLayout
    limits: Limits
    batch: int
    context: int
    copied: int = COPIED

    @cached_property
    def sources(self) -> np.ndarray:
        """Of each page of each sequence, the page that it is a copy of: ``[batch, pages]``."""
        sinks = self.layout.sink_pages
        page, sequence = np.arange(self.layout.pages(self.context)), np.arange(self.batch)[:, None]
        return sinks + (page + 3 * sequence) % (self.copied - sinks)

    @cached_property
    def orders(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the exact and the packed pool."""
        rng = np.random.default_rng(0)
        return rng.permutation(self.limits.exact_pages), rng.permutation(self.limits.packed_pages)

    def tables(self, sequence: int, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The page tables, exact and packed, of a step of ``count`` tokens after ``start``."""
        layout = self.layout
        pages, own = layout.pages(start + count), start // layout.page_tokens
        page = np.arange(pages)
        held = (page >= own) | np.array([layout.exact(own, each) for each in page], bool)
        exact, packed = (np.full(pages, -1, np.int32) for _ in range(2))
        # The same pages of a sequence for every step near its end: of exact ones the sinks and the last.
        each = self.limits.exact_pages // self.batch
        rank = np.where(page < layout.sink_pages, page, layout.sink_pages + page % (each - layout.sink_pages))
        ranks = rank if layout.compressed else page
        exact[held] = self.orders[0][sequence * each + ranks[held]]
        if layout.compressed:
            sealed = page >= layout.sink_pages
            packed[sealed] = self.orders[1][sequence * (len(self.orders[1]) // self.batch) + page[sealed]]
        return exact, packed

    def steps(self, start: int, count: int = 1, accepted: int = 0, outputs: int = 1) -> list[SequenceStep]:
        """A step of ``count`` new tokens of every sequence behind ``start`` others."""
        own = start // self.layout.page_tokens
        tokens = np.zeros(count, np.int32)
        return [
            SequenceStep(tokens, start, accepted, own, *self.tables(sequence, start, count), outputs)
            for sequence in range(self.batch)
        ]

    def first(self) -> SequenceStep:
        """The step that writes the pages that are copied, and seals them."""
        count = self.copied * self.layout.page_tokens
        pages = np.arange(self.copied, dtype=np.int32)
        packed = pages if self.layout.compressed else np.full(self.copied, -1, np.int32)
        return SequenceStep(np.zeros(count, np.int32), 0, count, 0, pages, packed, 0)

    def copies(self, steps: Sequence[SequenceStep]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Of each pool the pages that ``steps`` read, and what they are copies of."""
        forms = ("exact", "packed") if self.layout.compressed else ("exact",)
        for form in forms:
            table = np.stack([getattr(step, form) for step in steps])
            held = table >= 0
            yield form, table[held], self.sources[:, : table.shape[1]][held]


def spread(engine: CudaEngine, places: Places, steps: Sequence[SequenceStep]) -> None:
    """Copies what ``places.first`` left in the first pages of the pools to all pages that ``steps`` read."""
    sizes = {"exact": places.layout.exact_page_bytes, "packed": places.layout.packed_page_bytes}
    for form, targets, sources in places.copies(steps):
        pool = engine.buffer(f"{form}_pool")
        pages = pool.view(-1, sizes[form] // pool.element_size())
        spread_pages(pages, places.copied, targets, sources)


def spread_pages(pages: torch.Tensor, copied: int, targets: np.ndarray, sources: np.ndarray) -> None:
    """``pages[targets] = pages[sources]`` of pages ``[n, size]``, of which the first are ``copied``."""
    originals = pages[:copied].clone()
    each = max(1, AT_ONCE // (pages.shape[1] * pages.element_size()))
    for first in range(0, len(targets), each):
        own = slice(first, first + each)
        target, source = (torch.from_numpy(np.array(part[own], np.int64)) for part in (targets, sources))
        pages[target.to(pages.device)] = originals[source.to(pages.device)]


@dataclass(frozen=True)
class Contents:
    """Keys and values of the pages that are copied, ``[copied, kv_heads, 2, page_tokens, head_dim]``
    float32, as bf16 holds them; and as they decode."""

    exact: torch.Tensor
    packed: torch.Tensor

    @classmethod
    def drawn(cls, layout: CacheLayout, tables: Tables, device: str, copied: int) -> Contents:
        """Normal numbers, and what the slow form of the codec makes of them."""
        shape = (copied, layout.kv_heads, len(SIDES), layout.page_tokens, layout.head_dim)
        generator = torch.Generator().manual_seed(1)
        exact = torch.randn(shape, generator=generator).to(torch.bfloat16).float()
        packed = exact.clone()
        if layout.compressed:
            for index, side in enumerate(SIDES):
                codec = PackedPool(layout, 1, tables).codecs[0][side]
                vectors = exact[:, :, index].transpose(0, 1).flatten(1, 2).contiguous().numpy()
                decoded = torch.from_numpy(np.ascontiguousarray(codec.decode(codec.encode(vectors))))
                own = decoded.unflatten(1, (copied, layout.page_tokens))
                packed[:, :, index] = own.transpose(0, 1)
        return cls(exact.to(device), packed.to(device))

    def rows(self) -> torch.Tensor:
        """The exact ones token by token: ``[tokens, 2, kv_heads, head_dim]``."""
        return self.exact.permute(0, 3, 2, 1, 4).flatten(0, 1).contiguous()

    def cache(self, places: Places, sequence: int, exact: bool = False) -> torch.Tensor:
        """All that the last token of a sequence sees, in the form in which it does, or all of it ``exact``:
        ``[2, kv_heads, context, head_dim]`` float32."""
        layout, context = places.layout, places.context
        last, device = (context - 1) // layout.page_tokens, self.exact.device
        near = np.array([exact or layout.exact(last, page) for page in range(last + 1)])
        sources = torch.from_numpy(places.sources[sequence]).to(device)
        form = torch.from_numpy(near).to(device)
        pages = torch.where(form[:, None, None, None, None], self.exact[sources], self.packed[sources])
        return pages.permute(2, 1, 0, 3, 4).flatten(2, 3)[:, :, :context]

    def gathered(self, places: Places, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact keys and values ``[batch, kv_heads, context, head_dim]``, contiguous."""
        shape = (places.batch, self.exact.shape[1], places.context, self.exact.shape[-1])
        keys, values = (torch.empty(shape, dtype=kind, device=self.exact.device) for _ in SIDES)
        for sequence in range(places.batch):
            keys[sequence], values[sequence] = self.cache(places, sequence, exact=True)
        return keys, values
