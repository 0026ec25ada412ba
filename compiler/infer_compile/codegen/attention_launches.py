"""Attention over the paged cache as launches: append, seal, factors of queries, attend, merge."""

from __future__ import annotations

from collections.abc import Iterator

from ..runtime.formats.kv import CacheLayout, Side
from ..runtime.formats.launches import Blocks, Buffer, Case, Cases, Launch, Line, View
from ..runtime.formats.program import Attend, Program
from . import cuda_constants as constants
from .cuda_constants import Tiling
from .cuda_pages import WORD, layer_place
from .tiles import MEANS, SIGNS

EVERYTHING = 1 << 30
"""A window that holds every position."""
UNREAD = "attend.sums"
"""Stands where the constants say that a kernel reads nothing; some reckon with the pointer."""
FP8_MOST = 448.0
"""The largest number of float8 e4m3 (runtime/kv/codec.py)."""


class AttentionLaunches:
    """The lines of every ``Attend`` of ``program``; what they share is added to ``buffers``."""

    def __init__(
        self,
        program: Program,
        layout: CacheLayout,
        tilings: tuple[Tiling, ...],
        buffers: dict[str, Buffer],
    ) -> None:
        self._program = program
        self._tilings = tilings
        self._layout = layout
        self._buffers = buffers
        self._calibrated = {table.name for table in program.cache.tables()}
        self._pages = layout.pages(program.limits.max_context)
        buffers |= cache_buffers(program)

    def lines(self, operation: Attend, output: str) -> Iterator[Line]:
        """Of one layer, into the buffer ``output``."""
        self._need(operation)
        yield self._append(operation)
        if self._layout.compressed:
            yield self._seal(operation.layer)
            if self._layout.layers[operation.layer].keys.kind != "bf16":
                yield self._query(operation)
        cases = [
            Case(
                most=None if tiling is self._tilings[-1] else tiling.tokens,
                launches=(self._attend(operation, tiling), self._merge(operation, output, tiling)),
            )
            for tiling in self._tilings
        ]
        yield Cases(of="tile", cases=tuple(cases))

    def _need(self, operation: Attend) -> None:
        """The buffers that its kernels hand on."""
        width = operation.heads * operation.head_dim
        shares = max(self._shares(tiling) for tiling in self._tilings)
        segments = max(constants.segments(layer.keys) for layer in self._layout.layers)
        self._buffers["attend.sums"] = Buffer(dtype="f32", width=shares * width)
        self._buffers["attend.logs"] = Buffer(dtype="f32", width=shares * operation.heads)
        if self._layout.compressed:
            steps = operation.heads * segments
            self._buffers["attend.factors"] = Buffer(dtype="f16", width=width, per="rows")
            self._buffers["attend.steps"] = Buffer(dtype="f32", width=steps, per="rows")

    def _shares(self, tiling: Tiling) -> int:
        """Shares of all rows of a step in tiles of this kind."""
        limits = self._program.limits
        rows = limits.max_batch_tokens
        if tiling is not self._tilings[-1]:
            rows = min(rows, tiling.tokens * limits.max_sequences)
        return constants.splits(self._layout, tiling) * rows

    def _append(self, operation: Attend) -> Launch:
        layout, layer = self._layout, operation.layer
        own = constants.append_constants(layout, layer)
        keys = operation.heads * operation.head_dim
        values = keys + operation.kv_heads * operation.head_dim
        places = self._places(layer)
        return Launch(
            kernel="append.append",
            grid=(Blocks(of="rows"), operation.kv_heads),
            tensors={
                "keys": View(name=operation.input, first=keys),
                "values": View(name=operation.input, first=values),
                "means": MEANS.format(layer) if own["MEANS"] else UNREAD,
                "slots": "slots",
                "exact_pool": "exact_pool",
                "broken": "broken",
            },
            numbers={
                "row_stride": self._program.buffers[operation.input],
                "exact_page": places["exact_page"],
                "exact_place": places["exact_place"],
            },
            constants=own,
            warps=1,
        )

    def _seal(self, layer: int) -> Launch:
        layout = self._layout
        return Launch(
            kernel="seal.seal",
            grid=(Blocks(of="seals"), layout.kv_heads, layout.page_tokens // 8),
            tensors={
                "exact_pool": "exact_pool",
                "packed_pool": "packed_pool",
                "jobs": "jobs",
                "signs": SIGNS,
                "key_table": self._table(layer, "keys", "encode"),
                "value_table": self._table(layer, "values", "encode"),
            },
            numbers=self._places(layer),
            constants=constants.seal_constants(layout, layer, FP8_MOST),
        )

    def _query(self, operation: Attend) -> Launch:
        layout, layer = self._layout, operation.layer
        return Launch(
            kernel="query.query",
            grid=(Blocks(of="rows"), operation.kv_heads),
            tensors={
                "queries": operation.input,
                "signs": SIGNS,
                "table": self._table(layer, "keys", "decode"),
                "factors": "attend.factors",
                "steps": "attend.steps",
            },
            numbers={
                "query_stride": self._program.buffers[operation.input],
                "scale": operation.scale,
            },
            constants=constants.query_constants(layout, layer, operation.heads // operation.kv_heads),
            warps=1,
        )

    def _attend(self, operation: Attend, tiling: Tiling) -> Launch:
        layout, layer = self._layout, operation.layer
        packed = layout.compressed
        group = operation.heads // operation.kv_heads
        own = constants.attend_constants(layout, layer, group, tiling)
        options = constants.chunk_launch()
        if tiling is not self._tilings[-1]:
            options = constants.decode_launch(layout.head_dim, tiling.tokens * group)
        return Launch(
            kernel="attend.attend",
            grid=(Blocks(of="tiles"), operation.kv_heads, own["SPLITS"]),
            tensors={
                "queries": operation.input,
                "factors": "attend.factors" if packed else UNREAD,
                "steps": "attend.steps" if packed else UNREAD,
                "exact_pool": "exact_pool",
                # Without a packed form nothing is read of it.
                "packed_pool": "packed_pool" if packed else "exact_pool",
                "exact_table": "exact_table",
                "packed_table": "packed_table" if packed else "exact_table",
                "tiles": "tiles",
                "sequences": "sequences",
                "positions": "positions",
                "sees": "sees",
                "sums": "attend.sums",
                "logs": "attend.logs",
            },
            numbers={
                "query_stride": self._program.buffers[operation.input],
                "table_stride": self._pages,
                **self._places(layer),
                "scale": operation.scale,
                "window": operation.window or EVERYTHING,
            },
            constants=own,
            warps=options.warps,
            stages=options.stages,
            registers=options.registers,
        )

    def _merge(self, operation: Attend, output: str, tiling: Tiling) -> Launch:
        layout, layer = self._layout, operation.layer
        own = constants.merge_constants(layout, layer, operation.heads // operation.kv_heads, tiling)
        return Launch(
            kernel="merge.merge",
            grid=(Blocks(of="rows"), operation.kv_heads),
            tensors={
                "sums": "attend.sums",
                "logs": "attend.logs",
                "slots": "slots",
                "signs": SIGNS if layout.compressed else UNREAD,
                "table": self._table(layer, "values", "decode"),
                "means": f"layers.{layer}.values.mean" if own["MEANS"] else UNREAD,
                "out": output,
            },
            numbers={"out_stride": operation.heads * operation.head_dim},
            constants=own,
            warps=1,
        )

    def _places(self, layer: int) -> dict[str, int | float]:
        """Sizes of pages, and where the layer begins in them, in words."""
        layout = self._layout
        exact = layout.exact_page_bytes
        return {
            "exact_page": exact // WORD,
            "exact_place": layer * exact // len(layout.layers) // WORD,
            "packed_page": layout.packed_page_bytes // WORD,
            "packed_place": layer_place(layout, layer) // WORD,
        }

    def _table(self, layer: int, side: Side, use: str) -> str:
        """The table of a calibrated side: a dense one has one for each use, a diagonal one serves both."""
        for name in (use, "scale"):
            if f"layers.{layer}.{side}.{name}" in self._calibrated:
                return f"layers.{layer}.{side}.{name}"
        return UNREAD


def cache_buffers(program: Program) -> dict[str, Buffer]:
    """What the kernels of every cache are told, and its pools."""
    limits, layout = program.limits, program.cache
    pages = layout.pages(limits.max_context)
    buffers = {
        "slots": Buffer(dtype="int32", width=1, per="rows"),
        "sees": Buffer(dtype="int32", width=1, per="rows"),
        "tiles": Buffer(dtype="int32", width=2, per="tiles"),
        "sequences": Buffer(dtype="int32", width=3, per="sequences"),
        "broken": Buffer(dtype="int32", width=1),
    }
    for form in ("exact", "packed") if layout.compressed else ("exact",):
        buffers[f"{form}_table"] = Buffer(dtype="int32", width=pages, per="sequences")
    buffers["exact_pool"] = _pool(limits.exact_pages * layout.exact_page_bytes)
    if layout.compressed:
        buffers["packed_pool"] = _pool(limits.packed_pages * layout.packed_page_bytes)
        buffers["jobs"] = Buffer(dtype="int32", width=2, per="seals")
    return buffers


def _pool(size: int) -> Buffer:
    return Buffer(dtype="int32", width=size // WORD)
