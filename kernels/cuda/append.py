"""New keys and values to exact pages: ``ExactPool.write`` of runtime/engines/pools.py."""

import triton
import triton.language as tl

from .bf16 import to_bf16


@triton.jit
def append(
    keys,
    values,
    means,
    slots,
    exact_pool,
    broken,
    row_stride,
    exact_page,
    exact_place,
    D: tl.constexpr,
    LANES: tl.constexpr,
    PAGE: tl.constexpr,
    MEANS: tl.constexpr,
):
    """Grid (rows, kv_heads). ``keys`` and ``values`` [rows, kv_heads, D], ``row_stride`` elements from row to
    row; ``means`` [kv_heads, 2, D] float32 is taken away where ``MEANS``. Row r goes to token ``slots[r] %
    PAGE`` of pool page ``slots[r] // PAGE``, nowhere if that is negative. A number that is not finite sets
    ``broken[0]``."""
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    if slot >= 0:
        columns = tl.arange(0, LANES)
        inside = columns < D
        source = row.to(tl.int64) * row_stride + head * D + columns
        key = tl.load(keys + source, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(values + source, mask=inside, other=0.0).to(tl.float32)
        if MEANS:
            key -= tl.load(means + (2 * head) * D + columns, mask=inside, other=0.0)
            value -= tl.load(means + (2 * head + 1) * D + columns, mask=inside, other=0.0)
        page = (slot // PAGE).to(tl.int64)
        numbers = exact_pool.to(tl.pointer_type(tl.bfloat16)) + 2 * (page * exact_page + exact_place)
        place = head * (2 * PAGE * D) + (slot % PAGE) * D + columns
        store_finite(numbers + place, key, inside, broken)
        store_finite(numbers + place + PAGE * D, value, inside, broken)


@triton.jit
def store_finite(target, numbers, inside, broken):
    """float32 ``numbers`` as bfloat16; one that is not finite sets ``broken[0]``."""
    tl.store(target, to_bf16(numbers), mask=inside)
    finite = tl.abs(numbers) <= 3.3895313892515355e38
    if tl.min(finite.to(tl.int32), axis=0) == 0:
        tl.store(broken, 1)
