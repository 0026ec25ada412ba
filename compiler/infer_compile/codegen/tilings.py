"""How work is cut for a GPU: sizes of blocks, warps and shares. None of them was tuned on a device yet."""

from __future__ import annotations

from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.program import Attend, Program
from ..runtime.formats.weights import WeightFormat
from .cuda_constants import LEAST_ROWS, Tiling, chunk_launch, decode_launch, power
from .cuda_latent import latent_launch

BLOCK = 1024
"""Columns of one program of kernels that go along rows: whole groups of every format."""
ROW_BLOCK = 8192
"""Columns at once of a program that goes over a whole row."""
CAPTURED = (1, 2, 4, 8, *range(16, 129, 8), *range(144, 257, 16))
"""Rows of steps that are captured as graphs: a step is filled up to the next, by at most a half up to 8, by
seven rows up to 128."""
DRAFTS = 8
"""Tokens of a tile for sequences with drafts."""
CHUNK = 16
"""Tokens of a tile for chunks of prompts, or as many as make so many rows of query heads."""
CHUNK_ROWS = 64
EXACT_SHARES, PACKED_SHARES = 2, 14
"""Programs that the pages of a sequence are dealt to, where few tokens are new."""
SKINNY = 16
"""Rows of inputs, and of weights of a block, in the narrowest product: what tensor cores take at least."""
WARPS = 2048
"""What a large device runs at once of a skinny product: sixteen on each multiprocessor."""
MOST_WARPS = 8
LEAST_TILES = 2
"""Tiles of weights that a warp of a skinny product has at least."""
WIDE_GROUP = 64
"""Longer groups spill registers in the widest blocks (compiled for compute capability 8.9)."""


def usual_tilings(program: Program) -> tuple[Tiling, ...]:
    """Of attention, by the new tokens of a sequence: one, a few that may be a tree, a chunk of a prompt."""
    if isinstance(program.cache, LatentLayout):
        return _latent_tilings()
    attend = next((op for layer in program.layers for op in layer if isinstance(op, Attend)), None)
    if attend is None:
        return Tiling(1, LEAST_ROWS, 1, 0), Tiling(CHUNK, LEAST_ROWS, 1, 0)
    group = attend.heads // attend.kv_heads

    def few(tokens: int) -> Tiling:
        block = decode_launch(attend.head_dim, tokens * group).block
        return Tiling(tokens, block, EXACT_SHARES, PACKED_SHARES, tree=tokens > 1)

    chunk = max(CHUNK, CHUNK_ROWS // power(group))
    return few(1), few(DRAFTS), Tiling(chunk, chunk_launch().block, 1, 1, tree=True)


def _latent_tilings() -> tuple[Tiling, ...]:
    """Tiles have as many rows whatever their tokens: few tokens have many heads, a chunk's have one."""
    block = latent_launch().block
    one, few = (Tiling(tokens, block, EXACT_SHARES, PACKED_SHARES, tree=tokens > 1) for tokens in (1, DRAFTS))
    return one, few, Tiling(LEAST_ROWS, block, 1, 1, tree=True)


def warps_of(block: int) -> int:
    """Warps of a program that holds ``block`` float32 numbers: 32 for each thread at most."""
    return min(16, max(1, block // 1024))


def expert_tilings(experts: int, choices: int) -> tuple[tuple[int | None, dict[str, int]], ...]:
    """For up to so many input rows, how products with ``experts`` are cut, of which each row has ``choices``:
    in tiles that are half full where choices fall evenly."""
    few = {"TILE": SKINNY, "BLOCK_N": 32, "warps": 4, "stages": 4}
    many = {"TILE": 64, "BLOCK_N": 64, "warps": 4, "stages": 3}
    return (32 * experts // choices, few), (None, many)


def product_tilings(
    rows: int, cols: int, form: WeightFormat
) -> tuple[tuple[int | None, dict[str, int]], ...]:
    """For up to so many input rows, how a product with a matrix of ``rows x cols`` is cut."""
    tiles = -(-cols // (form.group * (8 // form.bits)))
    warps = max(1, min(MOST_WARPS, WARPS // -(-rows // SKINNY), tiles // LEAST_TILES))
    # Whole powers of two, as Triton takes them.
    skinny = {"BLOCK_M": SKINNY, "BLOCK_N": SKINNY, "warps": power(warps + 1) // 2, "stages": 8}
    middle = {"BLOCK_M": 64, "BLOCK_N": 64, "warps": 4, "stages": 4}
    wide = {"BLOCK_M": 128, "BLOCK_N": 128, "warps": 8, "stages": 3}
    if form.group > WIDE_GROUP:
        return (SKINNY, skinny), (None, middle)
    return (SKINNY, skinny), (64, middle), (None, wide)
