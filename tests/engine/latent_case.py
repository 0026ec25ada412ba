"""Latent attention with a past, in the slow form and by the CUDA kernels, launched as an engine will."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cuda_case import Past
from levels import cache_alone
from numpy.typing import NDArray

from infer_compile.codegen import cuda_latent as constants
from infer_compile.codegen.cuda_constants import Tiling, splits
from infer_compile.codegen.cuda_sources import kernel
from infer_compile.runtime.engines.inputs import inputs_of
from infer_compile.runtime.engines.latent import ExactLatents, LatentAttention, PackedLatents
from infer_compile.runtime.engines.rows import Rows, rows_of
from infer_compile.runtime.formats.latent import LatentLayout
from infer_compile.runtime.formats.launches import SETTINGS
from infer_compile.runtime.formats.program import Limits
from infer_compile.runtime.kv.codec import FP8_MOST
from infer_compile.runtime.step import SequenceStep

Float32 = NDArray[np.float32]
LIMITS = Limits(
    max_context=1 << 20, max_sequences=64, max_batch_tokens=4096, exact_pages=256, packed_pages=256
)
SENTINEL = 0x41
"""Each byte of pages that nobody wrote: numbers that would be noticed."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Of every new token: ``queries`` [rows, heads, rank], ``turned`` [rows, heads, rope], ``latents`` [rows,
    rank] and ``keys`` [rows, rope]."""

    queries: Float32
    turned: Float32
    latents: Float32
    keys: Float32

    def part(self, first: int, last: int) -> Inputs:
        """Of tokens ``[first, last)``."""
        return Inputs(*(side[first:last] for side in (self.queries, self.turned, self.latents, self.keys)))


class LatentCache:
    """Pools as bytes."""

    def __init__(self, layout: LatentLayout, exact: torch.Tensor, packed: torch.Tensor) -> None:
        self.layout, self.exact, self.packed = layout, exact, packed
        self.broken = torch.zeros(1, dtype=torch.int32)

    def append(self, layer: int, latents: torch.Tensor, keys: torch.Tensor, slots: Sequence[int]) -> None:
        places = constants.latent_places(self.layout, layer)
        kernel("latent_append").latent_append[(len(slots),)](
            latents,
            keys,
            torch.tensor(slots, dtype=torch.int64),
            self.exact.view(torch.int32),
            self.broken,
            latents.stride(0),
            keys.stride(0),
            places["exact_page"],
            places["exact_place"],
            **constants.latent_append_constants(self.layout),
        )

    def seal(self, layer: int, jobs: Sequence[tuple[int, int]]) -> None:
        kernel("latent_seal").latent_seal[(len(jobs), self.layout.page_tokens // constants.SEALED_TOKENS)](
            self.exact.view(torch.int32),
            self.packed.view(torch.int32),
            torch.tensor(jobs, dtype=torch.int32),
            **constants.latent_places(self.layout, layer),
            **constants.latent_seal_constants(self.layout, FP8_MOST),
        )

    def attend(
        self,
        layer: int,
        queries: torch.Tensor,
        turned: torch.Tensor,
        scale: float,
        batch: Sequence[Rows],
        tiling: Tiling,
        group: int,
    ) -> Float32:
        """``group`` heads in a tile; ``turned`` may be a part of a wider tensor."""
        layout, (rows, heads, rank) = self.layout, queries.shape
        shares = splits(layout, tiling)
        program = cache_alone(layout, LIMITS)
        told = inputs_of(program, batch, (tiling.tokens,), np.zeros((0, SETTINGS)))
        arrays = {name: torch.from_numpy(array) for name, array in told.arrays.items()}
        # The last tile is padding.
        arrays["tiles"] = torch.cat([arrays["tiles"], torch.tensor([[-1, 0]], dtype=torch.int32)])
        sums = torch.full((rows, heads, shares, rank), float("nan"))
        logs = torch.full((rows, heads, shares), float("nan"))
        width = max(len(part.step.exact) for part in batch)
        tables = (told.tables["exact_table"], told.tables.get("packed_table", told.tables["exact_table"]))
        exact, packed = (
            torch.from_numpy(
                np.stack([np.pad(own, (0, width - len(own)), constant_values=-1) for own in table])
            )
            for table in tables
        )
        kernel("latent").latent[(len(arrays["tiles"]), -(-heads // group), shares)](
            queries,
            turned,
            self.exact.view(torch.int32),
            self.packed.view(torch.int32),
            exact,
            packed,
            *(arrays[name] for name in ("tiles", "sequences", "positions", "sees")),
            sums,
            logs,
            queries.stride(0),
            turned.stride(0),
            width,
            **constants.latent_places(layout, layer),
            scale=scale,
            **constants.latent_constants(layout, heads, turned.stride(1), group, tiling),
        )
        out = torch.full((rows, heads, rank), float("nan"))
        unread = torch.zeros(1)
        kernel("merge").merge[(rows, heads)](
            sums,
            logs,
            torch.zeros(rows, dtype=torch.int64),
            unread,
            unread,
            unread,
            out,
            None,
            heads * rank,
            **constants.latent_merge_constants(layout, tiling),
        )
        return out.numpy()


class LatentCase:
    """The past of each sequence is written by the slow form, whose pages are those of the kernels."""

    def __init__(
        self, layout: LatentLayout, heads: int, pasts: Sequence[Past], seed: int = 0, scale: float = 0.05
    ) -> None:
        self.layout, self.heads, self.scale = layout, heads, scale
        self.rng = np.random.default_rng(seed)
        each = max(layout.pages(past.start + past.count) for past in pasts)
        self.pages = each * len(pasts)
        self.exact = ExactLatents(layout, self.pages)
        self.packed = PackedLatents(layout, self.pages) if layout.compressed else None
        self.slow = LatentAttention(layout, self.exact, self.packed)
        for pool in (self.exact, *filter(None, [self.packed])):
            pool.bytes[:] = SENTINEL
        tables = [self.rng.permutation(self.pages).astype(np.int32).reshape(-1, each) for _ in range(2)]
        for past, exact, packed in zip(pasts, *tables, strict=True):
            self._fill(past.start, exact, packed)
        self.batch = self.rows([self._step(past, *own) for past, *own in zip(pasts, *tables, strict=True)])
        packed = self.packed.bytes if self.packed is not None else np.zeros(4, np.uint8)
        self.cache = LatentCache(
            layout, *(torch.from_numpy(pool.copy()) for pool in (self.exact.bytes, packed))
        )

    def _fill(self, count: int, exact: NDArray[np.int32], packed: NDArray[np.int32]) -> None:
        """``count`` tokens as one chunk."""
        if count:
            step = SequenceStep(
                tokens=np.zeros(count, np.int32),
                start=0,
                accepted=count,
                sealed=0,
                exact=exact,
                packed=packed,
            )
            for layer in range(self.layout.layers):
                inputs = self.draw(count)
                self.slow.append(layer, inputs.latents, inputs.keys, self.rows([step]))

    def _step(self, past: Past, exact: NDArray[np.int32], packed: NDArray[np.int32]) -> SequenceStep:
        parents = [int(self.rng.integers(-1, i)) if i else -1 for i in range(past.count)]
        return SequenceStep(
            tokens=np.zeros(past.count, np.int32),
            start=past.start,
            accepted=0 if past.tree else past.count,
            sealed=past.start // self.layout.page_tokens,
            exact=exact,
            packed=packed,
            parents=np.array(parents, np.int32) if past.tree else None,
        )

    def rows(self, steps: Sequence[SequenceStep]) -> list[Rows]:
        return rows_of(cache_alone(self.layout, LIMITS), steps)

    def draw(self, rows: int) -> Inputs:
        """As bf16 holds them; queries that find something, rotary keys with a wide channel."""
        layout, heads = self.layout, self.heads
        queries, turned, latents, keys = (
            torch.tensor(self.rng.standard_normal((rows, *shape)), dtype=torch.bfloat16).float().numpy()
            for shape in ((heads, layout.rank), (heads, layout.rope), (layout.rank,), (layout.rope,))
        )
        queries *= 2
        keys[:, 3] *= 8
        return Inputs(queries, turned, latents, keys)

    def append(self, layer: int, inputs: Inputs, batch: Sequence[Rows]) -> None:
        page = self.layout.page_tokens
        slots = [
            int(rows.step.exact[slot // page]) * page + slot % page
            for rows in batch
            for slot in range(rows.step.start, rows.tokens)
        ]
        jobs = [
            (int(rows.step.exact[sealed]), int(rows.step.packed[sealed]))
            for rows in batch
            for sealed in rows.sealing
            if rows.step.packed is not None and self.layout.packs(sealed)
        ]
        self.slow.append(layer, inputs.latents, inputs.keys, batch)
        # The last row and the last job are padding.
        latents, keys = (_bf16(np.vstack([part, part[:1]])) for part in (inputs.latents, inputs.keys))
        self.cache.append(layer, latents, keys, [*slots, -1])
        self.cache.seal(layer, [*jobs, (-1, -1)])

    def run(self, layer: int, tiling: Tiling, group: int) -> tuple[Float32, Float32]:
        """The step's outputs of the kernels, and of the slow form."""
        return self.step(layer, self.draw(sum(part.count for part in self.batch)), self.batch, tiling, group)

    def step(
        self, layer: int, inputs: Inputs, batch: Sequence[Rows], tiling: Tiling, group: int
    ) -> tuple[Float32, Float32]:
        self.append(layer, inputs, batch)
        expected = self.slow.attend(layer, inputs.queries, inputs.turned, self.scale, batch)
        # Rotary parts of queries lie behind other numbers.
        wide = _bf16(np.pad(inputs.turned, ((0, 0), (0, 0), (8, 0)), constant_values=np.nan))
        queries = _bf16(inputs.queries)
        found = self.cache.attend(layer, queries, wide[..., 8:], self.scale, batch, tiling, group)
        return found, expected


def _bf16(numbers: Float32) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(numbers), dtype=torch.bfloat16)
