"""Compressing full exact pages of latent vectors: ``Codec.encode`` of runtime/kv/codec.py for float8."""

import triton
import triton.language as tl

from .codes import close_fp8


@triton.jit
def latent_seal(
    exact_pool,
    packed_pool,
    jobs,
    exact_page,
    exact_place,
    packed_page,
    packed_place,
    RANK: tl.constexpr,
    RANK_LANES: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_LANES: tl.constexpr,
    PAGE: tl.constexpr,
    TOKENS: tl.constexpr,
    FP8_MOST: tl.constexpr,
):
    """Grid (jobs, PAGE / TOKENS). Job j encodes exact pool page ``jobs[j, 0]`` into packed pool page
    ``jobs[j, 1]``; none where they are negative."""
    job, first = tl.program_id(0), tl.program_id(1) * TOKENS
    place = tl.load(jobs + 2 * job)
    if place >= 0:
        tokens = (first + tl.arange(0, TOKENS))[:, None]
        source = exact_pool.to(tl.pointer_type(tl.bfloat16))
        source += 2 * (place.to(tl.int64) * exact_page + exact_place)
        target = packed_pool + tl.load(jobs + 2 * job + 1).to(tl.int64) * packed_page + packed_place
        columns = tl.arange(0, RANK_LANES)[None, :]
        places = tokens * RANK + columns
        latents = tl.load(source + places, mask=columns < RANK, other=0.0).to(tl.float32)
        stored = target.to(tl.pointer_type(tl.uint8))
        tl.store(stored + places, close_fp8(latents, FP8_MOST), mask=columns < RANK)
        columns = tl.arange(0, ROPE_LANES)[None, :]
        places = tokens * ROPE + columns
        keys = tl.load(source + PAGE * RANK + places, mask=columns < ROPE, other=0.0)
        # Latent vectors take half of what they do in exact pages.
        kept = target.to(tl.pointer_type(tl.bfloat16)) + PAGE * RANK // 2
        tl.store(kept + places, keys, mask=columns < ROPE)
