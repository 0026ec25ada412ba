"""The rotary embedding of a part of each head, in place; pairs that are neighbours become halves."""

import triton
import triton.language as tl


@triton.jit
def turn_part(
    buffer,
    cosine,
    sine,
    STRIDE: tl.constexpr,
    STEP: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    NEIGHBOURS: tl.constexpr,
):
    """Grid (rows, heads). ``buffer`` begins with the part of the first head, ``2 HALF`` numbers; heads are
    STEP numbers apart, rows STRIDE."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = tl.arange(0, BLOCK)
    inside = pairs < HALF
    place = buffer + row * STRIDE + head * STEP
    if NEIGHBOURS:
        first = tl.load(place + 2 * pairs, mask=inside, other=0.0)
        second = tl.load(place + 2 * pairs + 1, mask=inside, other=0.0)
        # All is read before anything is written.
        tl.debug_barrier()
    else:
        first = tl.load(place + pairs, mask=inside, other=0.0)
        second = tl.load(place + HALF + pairs, mask=inside, other=0.0)
    cosines = tl.load(cosine + row * HALF + pairs, mask=inside, other=0.0)
    sines = tl.load(sine + row * HALF + pairs, mask=inside, other=0.0)
    tl.store(place + pairs, first * cosines - second * sines, mask=inside)
    tl.store(place + HALF + pairs, second * cosines + first * sines, mask=inside)
