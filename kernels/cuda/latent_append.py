"""New latent vectors and rotary keys to exact pages."""

import triton
import triton.language as tl

from .append import store_finite


@triton.jit
def latent_append(
    latents,
    keys,
    slots,
    exact_pool,
    broken,
    latent_stride,
    key_stride,
    exact_page,
    exact_place,
    RANK: tl.constexpr,
    RANK_LANES: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_LANES: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Grid (rows,). ``latents`` [rows, RANK] and ``keys`` [rows, ROPE], so many elements from row to row. Row
    r goes to token ``slots[r] % PAGE`` of pool page ``slots[r] // PAGE``, nowhere if that is negative. A
    number that is not finite sets ``broken[0]``."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + row)
    if slot >= 0:
        numbers = exact_pool.to(tl.pointer_type(tl.bfloat16))
        numbers += 2 * ((slot // PAGE).to(tl.int64) * exact_page + exact_place)
        offset = slot % PAGE
        _keep(latents + row * latent_stride, numbers + offset * RANK, broken, RANK, RANK_LANES)
        _keep(keys + row * key_stride, numbers + PAGE * RANK + offset * ROPE, broken, ROPE, ROPE_LANES)


@triton.jit
def _keep(source, target, broken, COUNT: tl.constexpr, LANES: tl.constexpr):
    columns = tl.arange(0, LANES)
    inside = columns < COUNT
    numbers = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    store_finite(target + columns, numbers, inside, broken)
