"""Attention over the paged cache as launches: append, seal, factors of queries, attend, merge."""

from __future__ import annotations

from collections.abc import Iterator

from ..runtime.formats.kv import Side
from ..runtime.formats.launches import Blocks, Buffer, Launch, Line, View
from ..runtime.formats.program import Attend, Program, Rotary
from . import cuda_constants as constants
from .cuda_constants import Tiling
from .cuda_pages import WORD, layer_place
from .tile_cases import TileCases
from .tiles import MEANS, SIGNS, place_of, scales

EVERYTHING = 1 << 30
"""A window that holds every position."""
UNREAD = "attend.sums"
"""Stands where the constants say that a kernel reads nothing; some reckon with the pointer."""
SHIFT = 4
"""Numbers behind each query that was turned back (kernels/cuda/turn_back.py)."""
FP8_MOST = 448.0
"""The largest number of float8 e4m3 (runtime/kv/codec.py)."""


class AttentionLaunches:
    """The lines of every ``Attend`` of ``program``; what they share is added to ``buffers``."""

    def __init__(
        self,
        program: Program,
        tilings: tuple[Tiling, ...],
        rotations: tuple[Rotary, ...],
        buffers: dict[str, Buffer],
    ) -> None:
        self._program = program
        self._rotations = rotations
        self._evicts = program.limits.overflow == "evict"
        self._tiles = TileCases(program, tilings)
        self._layout = program.cache
        self._buffers = buffers
        self._calibrated = {table.name for table in program.cache.tables()}
        self._pages = program.cache.pages(program.limits.max_context)
        own, self.inputs = cache_buffers(program)
        buffers |= own

    def rounds(self, operation: Attend, group: int) -> bool:
        """Whether what it gives may be int8 with a scale for every ``group`` numbers; with 0 it is bf16."""
        pieces = constants.merged_pieces(self._layout, operation.layer)
        return group == 0 or all(width % group == 0 for width, *_ in pieces)

    def lines(self, operation: Attend, output: str, rounded: int) -> Iterator[Line]:
        """Of one layer, into the buffer ``output``: int8 with a scale for every ``rounded`` numbers beside
        it, if that is not 0."""
        self._need(operation)
        yield self._append(operation)
        if self._layout.compressed:
            yield self._seal(operation.layer)
            if self._layout.layers[operation.layer].keys.kind != "bf16":
                yield self._query(operation)
        if self._evicts:
            yield self._turn_back(operation)
        yield self._tiles.cases(
            lambda tiling: (self._attend(operation, tiling), self._merge(operation, output, rounded, tiling))
        )

    def _need(self, operation: Attend) -> None:
        """The buffers that its kernels hand on."""
        width = operation.heads * operation.head_dim
        shares = self._tiles.shares
        segments = max(constants.segments(layer.keys) for layer in self._layout.layers)
        self._buffers["attend.sums"] = Buffer(dtype="f32", width=shares * width)
        self._buffers["attend.logs"] = Buffer(dtype="f32", width=shares * operation.heads)
        if self._evicts:
            turned = operation.heads * (operation.head_dim + SHIFT)
            self._buffers["attend.turned"] = Buffer(dtype="f32", width=turned, per="rows")
        if self._layout.compressed:
            steps = operation.heads * segments
            self._buffers["attend.factors"] = Buffer(dtype="f16", width=width, per="rows")
            self._buffers["attend.steps"] = Buffer(dtype="f32", width=steps, per="rows")

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
            warps=constants.SEAL_WARPS,
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
            warps=constants.query_warps(layout, layer),
        )

    def _turn_back(self, operation: Attend) -> Launch:
        layer, turn = operation.layer, self._program.turns.get(operation.layer)
        group = operation.heads // operation.kv_heads
        own = constants.turn_back_constants(self._layout, layer, group, turn is not None)
        angles = None if turn is None else place_of(turn, self._rotations)
        return Launch(
            kernel="turn_back.turn_back",
            grid=(Blocks(of="rows"), operation.heads),
            tensors={
                "queries": operation.input,
                "cosine": None if angles is None else f"back.cosine.{angles}",
                "sine": None if angles is None else f"back.sine.{angles}",
                "means": MEANS.format(layer) if own["MEANS"] else None,
                "turned": "attend.turned",
            },
            numbers={"query_stride": self._program.buffers[operation.input]},
            constants=own,
            warps=1,
        )

    def _attend(self, operation: Attend, tiling: Tiling) -> Launch:
        layout, layer = self._layout, operation.layer
        packed = layout.compressed
        group = operation.heads // operation.kv_heads
        own = constants.attend_constants(
            layout,
            layer,
            group,
            tiling,
            evicts=self._evicts,
            checked=bool(self._program.limits.checked_tokens),
        )
        options = constants.chunk_launch()
        if self._tiles.few(tiling):
            stored = layout.layers[layer]
            calibrated = stored.keys.calibrated or stored.values.calibrated
            options = constants.decode_launch(layout.head_dim, tiling.tokens * group, calibrated)
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
                "turned": "attend.turned" if self._evicts else UNREAD,
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

    def _merge(self, operation: Attend, output: str, rounded: int, tiling: Tiling) -> Launch:
        layout, layer = self._layout, operation.layer
        own = constants.merge_constants(layout, layer, operation.heads // operation.kv_heads, tiling, rounded)
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
                "scales": scales(output) if rounded else None,
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


def cache_buffers(program: Program) -> tuple[dict[str, Buffer], tuple[str, ...]]:
    """What the kernels of every cache need: pools, where they tell of broken numbers, and what they are told
    of a step; the names of the latter."""
    layout, (exact, packed) = program.cache, program.pool_pages
    buffers = {"broken": Buffer(dtype="int32", width=1)}
    if not layout.layers:
        return buffers, ()
    pages = layout.pages(program.limits.max_context)
    told = {
        "slots": Buffer(dtype="int32", width=1, per="rows"),
        "sees": Buffer(dtype="int32", width=2, per="rows"),
        "tiles": Buffer(dtype="int32", width=2, per="tiles"),
        "sequences": Buffer(dtype="int32", width=4, per="sequences"),
        "exact_table": Buffer(dtype="int32", width=pages, per="sequences"),
    }
    if program.limits.overflow == "evict":
        told["gaps"] = Buffer(dtype="int32", width=1, per="rows")
    if layout.compressed:
        told["packed_table"] = told["exact_table"]
        told["jobs"] = Buffer(dtype="int32", width=2, per="seals")
        buffers["packed_pool"] = _pool(packed * layout.packed_page_bytes)
    return buffers | told | {"exact_pool": _pool(exact * layout.exact_page_bytes)}, tuple(told)


def _pool(size: int) -> Buffer:
    return Buffer(dtype="int32", width=size // WORD)
