"""Latent attention over the paged cache as launches: rotation, queries folded, append, seal, attend, merge,
and values unfolded."""

from __future__ import annotations

from collections.abc import Iterator

from ..runtime.formats.launches import Blocks, Buffer, Launch, Line, View
from ..runtime.formats.program import AttendLatent, Program, Rotary
from . import cuda_latent as constants
from .attention_launches import FP8_MOST, UNREAD, cache_buffers
from .cuda_constants import LEAST_ROWS, Tiling, power
from .tile_cases import TileCases
from .tiles import place_of

QUERIES, MEAN = "latent.queries", "latent.mean"
FOLD_ROWS, FOLD_COLUMNS, FOLD_INNER = 16, 64, 32
"""The blocks of products with a head's own matrix. None of them was tuned on a device yet."""


class LatentLaunches:
    """The lines of every ``AttendLatent`` of ``program``; what they share is added to ``buffers``."""

    def __init__(
        self,
        program: Program,
        tilings: tuple[Tiling, ...],
        rotations: tuple[Rotary, ...],
        buffers: dict[str, Buffer],
    ) -> None:
        self._program = program
        self._layout = program.cache
        self._tiles = TileCases(program, tilings)
        self._rotations = rotations
        self._buffers = buffers
        own, self.inputs = cache_buffers(program)
        buffers |= own

    def rounds(self, operation: AttendLatent, group: int) -> bool:
        """Whether what it gives may be int8 with a scale for every ``group`` numbers; with 0 it is bf16."""
        return group == 0

    def lines(self, operation: AttendLatent, output: str, rounded: int) -> Iterator[Line]:
        """Of one layer, into the buffer ``output``; ``rounded`` is 0."""
        self._need(operation)
        angles = place_of(operation.turn, self._rotations)
        step = operation.nope + operation.rope
        yield self._turn(operation, operation.query, operation.nope, step, operation.heads, angles)
        yield self._turn(operation, operation.latent, operation.rank, 0, 1, angles)
        yield self._fold_queries(operation)
        yield self._append(operation)
        if self._layout.compressed:
            yield self._seal(operation.layer)
        yield self._tiles.cases(
            lambda tiling: (self._attend(operation, tiling), self._merge(operation, tiling))
        )
        yield self._unfold_values(operation, output)

    def _need(self, operation: AttendLatent) -> None:
        """The buffers that its kernels hand on."""
        heads, shares = operation.heads, self._tiles.shares
        width = heads * operation.rank
        self._buffers["attend.sums"] = Buffer(dtype="f32", width=shares * width)
        self._buffers["attend.logs"] = Buffer(dtype="f32", width=shares * heads)
        self._buffers[QUERIES] = Buffer(dtype="bf16", width=width, per="rows")
        self._buffers[MEAN] = Buffer(dtype="bf16", width=width, per="rows")

    def _turn(
        self, operation: AttendLatent, buffer: str, first: int, step: int, heads: int, angles: int
    ) -> Launch:
        half = operation.rope // 2
        return Launch(
            kernel="turn_part.turn_part",
            grid=(Blocks(of="rows"), heads),
            tensors={
                "buffer": View(name=buffer, first=first),
                "cosine": f"cosine.{angles}",
                "sine": f"sine.{angles}",
            },
            constants={
                "STRIDE": self._program.buffers[buffer],
                "STEP": step,
                "HALF": half,
                "BLOCK": power(half),
                "NEIGHBOURS": operation.neighbours,
            },
            warps=1,
        )

    def _fold_queries(self, operation: AttendLatent) -> Launch:
        """What multiplies keys without a rotary part becomes what multiplies latent vectors."""
        rank = operation.rank
        return self._product(
            operation,
            source=operation.query,
            output=QUERIES,
            weight=operation.unfold,
            input_stride=self._program.buffers[operation.query],
            input_step=operation.nope + operation.rope,
            outer=(rank, 1),
            inner=(operation.nope, rank),
        )

    def _unfold_values(self, operation: AttendLatent, output: str) -> Launch:
        rank = operation.rank
        return self._product(
            operation,
            source=MEAN,
            output=output,
            weight=View(name=operation.unfold, first=operation.nope * rank),
            input_stride=operation.heads * rank,
            input_step=rank,
            outer=(operation.value, rank),
            inner=(rank, 1),
        )

    def _product(
        self,
        operation: AttendLatent,
        *,
        source: str,
        output: str,
        weight: str | View,
        input_stride: int,
        input_step: int,
        outer: tuple[int, int],
        inner: tuple[int, int],
    ) -> Launch:
        """``outer`` and ``inner``: how many numbers, and how far apart they are in the matrix."""
        return Launch(
            kernel="fold.fold",
            grid=(Blocks(of="rows", size=FOLD_ROWS), -(-outer[0] // FOLD_COLUMNS), operation.heads),
            tensors={"input": source, "weight": weight, "output": output},
            counts={"rows": "rows"},
            constants={
                "INPUT_STRIDE": input_stride,
                "INPUT_STEP": input_step,
                "OUTPUT_STRIDE": operation.heads * outer[0],
                "OUTPUT_STEP": outer[0],
                "WEIGHT_STEP": (operation.nope + operation.value) * operation.rank,
                "INNER": inner[0],
                "INNER_STRIDE": inner[1],
                "OUTER": outer[0],
                "OUTER_STRIDE": outer[1],
                "BLOCK_M": FOLD_ROWS,
                "BLOCK_N": FOLD_COLUMNS,
                "BLOCK_K": FOLD_INNER,
            },
            stages=2,
        )

    def _append(self, operation: AttendLatent) -> Launch:
        width = self._program.buffers[operation.latent]
        places = constants.latent_places(self._layout, operation.layer)
        return Launch(
            kernel="latent_append.latent_append",
            grid=(Blocks(of="rows"),),
            tensors={
                "latents": operation.latent,
                "keys": View(name=operation.latent, first=operation.rank),
                "slots": "slots",
                "exact_pool": "exact_pool",
                "broken": "broken",
            },
            numbers={
                "latent_stride": width,
                "key_stride": width,
                "exact_page": places["exact_page"],
                "exact_place": places["exact_place"],
            },
            constants=constants.latent_append_constants(self._layout),
            warps=1,
        )

    def _seal(self, layer: int) -> Launch:
        return Launch(
            kernel="latent_seal.latent_seal",
            grid=(Blocks(of="seals"), self._layout.page_tokens // constants.SEALED_TOKENS),
            tensors={"exact_pool": "exact_pool", "packed_pool": "packed_pool", "jobs": "jobs"},
            numbers={**constants.latent_places(self._layout, layer)},
            constants=constants.latent_seal_constants(self._layout, FP8_MOST),
        )

    def _attend(self, operation: AttendLatent, tiling: Tiling) -> Launch:
        packed, options = self._layout.compressed, constants.latent_launch()
        group = max(1, min(power(operation.heads), LEAST_ROWS // tiling.tokens))
        own = constants.latent_constants(
            self._layout, operation.heads, operation.nope + operation.rope, group, tiling
        )
        return Launch(
            kernel="latent.latent",
            grid=(Blocks(of="tiles"), -(-operation.heads // group), own["SPLITS"]),
            tensors={
                "queries": QUERIES,
                "parts": View(name=operation.query, first=operation.nope),
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
                "query_stride": operation.heads * operation.rank,
                "part_stride": self._program.buffers[operation.query],
                "table_stride": self._layout.pages(self._program.limits.max_context),
                **constants.latent_places(self._layout, operation.layer),
                "scale": operation.scale,
            },
            constants=own,
            warps=options.warps,
            stages=options.stages,
            registers=options.registers,
        )

    def _merge(self, operation: AttendLatent, tiling: Tiling) -> Launch:
        return Launch(
            kernel="merge.merge",
            grid=(Blocks(of="rows"), operation.heads),
            tensors={
                "sums": "attend.sums",
                "logs": "attend.logs",
                "slots": "slots",
                "signs": UNREAD,
                "table": UNREAD,
                "means": UNREAD,
                "out": MEAN,
                "scales": None,
            },
            numbers={"out_stride": operation.heads * operation.rank},
            constants=constants.latent_merge_constants(self._layout, tiling),
            warps=1,
        )
