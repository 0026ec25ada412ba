"""A cache with a past, in the slow form and in the pages of the CUDA kernels, and steps drawn for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cuda_cache import AttendLaunch, Cache, interpreted_attend
from levels import cache_alone, draw_layout, draw_tables
from numpy.typing import NDArray

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.runtime.engines.attention import Attention
from infer_compile.runtime.engines.pools import ExactPool, PackedPool
from infer_compile.runtime.engines.rows import Rows, rows_of
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.program import Attend, Limits, Rotary
from infer_compile.runtime.step import SequenceStep

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    levels: tuple[LevelName, ...]
    kv_heads: int = 1
    group: int = 2
    head_dim: int = 64
    page_tokens: int = 16
    sink_pages: int = 1
    recent_pages: int = 1

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group


@dataclass(frozen=True, slots=True)
class Past:
    """One sequence: ``start`` tokens are cached, all but the ``evicted`` behind the sinks, ``count`` are new,
    in a tree if ``tree``; nothing of it is compressed if it is ``whole``."""

    start: int
    count: int
    tree: bool = False
    evicted: int = 0
    whole: bool = False


class Case:
    """The past of each sequence is written to the slow form's pages, and sealed; the CUDA pages get the same
    exact pages, and packed ones from the kernel that seals."""

    def __init__(
        self,
        shape: Shape,
        pasts: Sequence[Past],
        seed: int = 0,
        scale: float = 1.0,
        launch: AttendLaunch = interpreted_attend,
    ) -> None:
        self.scale = scale
        self.shape, self.rng = shape, np.random.default_rng(seed)
        self.layout = draw_layout(
            self.rng,
            list(shape.levels),
            shape.kv_heads,
            shape.head_dim,
            shape.page_tokens,
            shape.sink_pages,
            shape.recent_pages,
        )
        self.tables = draw_tables(self.rng, self.layout)
        each = max(self.layout.pages(past.start + past.count) for past in pasts)
        self.pages = each * len(pasts)
        self.exact = ExactPool(self.layout, self.pages, self.tables)
        self.packed = PackedPool(self.layout, self.pages, self.tables) if self.layout.compressed else None
        orders = [self.rng.permutation(self.pages).astype(np.int32).reshape(-1, each) for _ in range(2)]
        self.steps = [self._step(past, *tables) for past, *tables in zip(pasts, *orders, strict=True)]
        limits = Limits(
            max_context=1 << 20,
            max_sequences=64,
            max_batch_tokens=4096,
            exact_pages=self.pages,
            packed_pages=self.pages,
            overflow="evict" if any(past.evicted for past in pasts) else "stop",
            checked_tokens=int(any(past.whole for past in pasts)),
        )
        program = cache_alone(self.layout, limits)
        self.cache = Cache(program, self.tables, self.pages, self.pages, launch=launch)
        jobs = [job for step in self.steps for job in self._write(step)]
        for step, past in zip(self.steps, pasts, strict=True):
            gap = slice(shape.sink_pages, shape.sink_pages + past.evicted // shape.page_tokens)
            for table in (step.exact, step.packed):
                table[gap] = -1
            step.evicted, step.packed = past.evicted, None if past.whole else step.packed
        self.batch: list[Rows] = rows_of(program, self.steps)
        self.cache.exact.copy_(torch.from_numpy(self.exact.bytes))
        for layer in range(len(shape.levels)):
            self.cache.seal(layer, jobs)

    def _step(self, past: Past, exact: NDArray[np.int32], packed: NDArray[np.int32]) -> SequenceStep:
        parents = [int(self.rng.integers(-1, i)) if i else -1 for i in range(past.count)]
        return SequenceStep(
            tokens=np.zeros(past.count, np.int32),
            start=past.start,
            accepted=0 if past.tree else past.count,
            sealed=past.start // self.shape.page_tokens,
            exact=exact,
            packed=packed,
            parents=np.array(parents, np.int32) if past.tree else None,
        )

    def _write(self, step: SequenceStep) -> list[tuple[int, int]]:
        """The past of a sequence; which of its exact pages went into which packed ones."""
        page_tokens = self.shape.page_tokens
        for layer in range(len(self.shape.levels)):
            keys, values = np.split(self.draw(step.start)[:, self.shape.heads :], 2, axis=1)
            for token in range(step.start):
                place = int(step.exact[token // page_tokens])
                self.exact.write(layer, place, token % page_tokens, keys[token], values[token])
        pages = [page for page in range(step.start // page_tokens) if self.layout.packs(page)]
        for page in pages:
            for layer in range(len(self.shape.levels)):
                numbers = self.exact.read(layer, int(step.exact[page]))
                if self.packed is not None:
                    self.packed.write(layer, int(step.packed[page]), numbers)
        return [(int(step.exact[page]), int(step.packed[page])) for page in pages]

    def draw(self, rows: int) -> Float32:
        """``[rows, heads + 2 kv_heads, head_dim]`` as bf16 holds them: queries that find something, keys with
        a constant part and a wide channel, as models have them."""
        shape = self.shape
        drawn = self.rng.standard_normal((rows, shape.heads + 2 * shape.kv_heads, shape.head_dim))
        drawn[:, : shape.heads] *= 2
        keys = drawn[:, shape.heads : -shape.kv_heads]
        keys[..., 3] += 5
        keys[..., 7] *= 4
        return torch.tensor(drawn, dtype=torch.bfloat16).float().numpy()

    def operation(self, layer: int, window: int | None = None) -> Attend:
        scale = np.float32(self.scale * self.shape.head_dim**-0.5)
        return Attend(
            layer=layer,
            input="",
            output="",
            heads=self.shape.heads,
            kv_heads=self.shape.kv_heads,
            head_dim=self.shape.head_dim,
            scale=float(scale),
            window=window,
        )

    def slots(self) -> list[int]:
        """Where the new tokens go."""
        page = self.shape.page_tokens
        return [
            int(rows.step.exact[slot // page]) * page + slot % page
            for rows in self.batch
            for slot in range(rows.step.start, rows.tokens)
        ]

    def run(
        self, layer: int, tiling: Tiling, window: int | None = None, turn: Rotary | None = None
    ) -> tuple[Float32, Float32]:
        """The step's outputs of the kernels, and of the slow form."""
        shape, rows = self.shape, sum(part.count for part in self.batch)
        inputs = self.draw(rows)
        turns = {} if turn is None else {layer: turn}
        slow = Attention(self.layout, self.tables, self.exact, self.packed, turns)
        expected = slow.run(self.operation(layer, window), inputs.reshape(rows, -1), self.batch)
        drawn = torch.tensor(inputs, dtype=torch.bfloat16)
        self.cache.append(
            layer, drawn[:, shape.heads : -shape.kv_heads], drawn[:, -shape.kv_heads :], self.slots()
        )
        jobs = [
            (int(rows.step.exact[page]), int(rows.step.packed[page]))
            for rows in self.batch
            for page in rows.sealing
            if rows.step.packed is not None and self.layout.packs(page)
        ]
        self.cache.seal(layer, jobs)
        found = self.cache.attend(
            self.operation(layer, window), drawn[:, : shape.heads].contiguous(), self.batch, tiling, turn
        )
        return found.numpy(), expected.reshape(found.shape)
