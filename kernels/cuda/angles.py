"""Cosines and sines of the rotary embedding, once per step and kind of rotation."""

import triton
import triton.language as tl


@triton.jit
def angles(
    positions, frequencies, cosine, sine, SCALE: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """Grid (rows,). Angles are float64, reduced to half a turn either way before they become float32:
    position 100,000 times a frequency of 1 would keep no more than two digits of it."""
    row = tl.program_id(0)
    pairs = tl.arange(0, BLOCK)
    inside = pairs < HALF
    angle = tl.load(positions + row).to(tl.float64) * tl.load(frequencies + pairs, mask=inside, other=0.0)
    turns = tl.floor(angle * 0.15915494309189535 + 0.5)
    rest = (angle - turns * 6.283185307179586).to(tl.float32)
    tl.store(cosine + row * HALF + pairs, tl.cos(rest) * SCALE, mask=inside)
    tl.store(sine + row * HALF + pairs, tl.sin(rest) * SCALE, mask=inside)
