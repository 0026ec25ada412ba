"""Codes of 1 to 8 bits in 32-bit words: how a strip of a page is packed, unpacked and looked up.

A strip is a matrix ``[outer, inner]`` of codes; ``inner`` is what a product sums over: the columns of keys,
the tokens of values. Nibble k of a word belongs to ``inner = 8 w + k``. Rows share words:

    4 bits  word [outer, inner / 8]         a nibble is a code
    3 bits  word [3, outer / 4, inner / 8]  nibble of word j: row 4u + j; its fourth bit: bit j of row 4u + 3
    2 bits  word [outer / 2, inner / 8]     rows 2u, 2u + 1
    1 bit   word [outer / 4, inner / 8]     rows 4u to 4u + 3
    8 bits  byte [outer, inner]

So nothing straddles a word, and every code comes out of masks and shifts of whole words as a nibble with the
bits above it clear, eight to a word: what a byte permute takes for a selector.
"""

import triton
import triton.language as tl

from .bf16 import INTERPRETED

ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and taking it away rounds a small float32 to the nearest integer, ties to even."""

FP8_UNIT = tl.constexpr(256.0)
"""What ``open_fp8`` leaves out."""
OPEN_FP8 = tl.constexpr(
    """{
.reg .b32 low, high, sign, rest;
prmt.b32 low, $2, 0, 0x1404;
prmt.b32 high, $2, 0, 0x3424;
and.b32 sign, low, 0x80008000;
and.b32 rest, low, 0x7f007f00;
shr.u32 rest, rest, 1;
or.b32 $0, sign, rest;
and.b32 sign, high, 0x80008000;
and.b32 rest, high, 0x7f007f00;
shr.u32 rest, rest, 1;
or.b32 $1, sign, rest;
}"""
)
"""Four at once: bytes become the upper ones of halves, and all but their signs go down by a bit."""


@triton.jit
def rint(x):
    return (x + ROUND) - ROUND


@triton.jit
def rows_of_word(BITS: tl.constexpr):
    """Rows of a strip that share a word."""
    if BITS == 1 or BITS == 3:
        return 4
    elif BITS == 2:
        return 2
    else:
        return 1


@triton.jit
def _rows2(a, b):
    """[U, W] twice to [2 U, W], in turn."""
    pairs = tl.permute(tl.join(a, b), (0, 2, 1))
    return tl.reshape(pairs, (2 * a.shape[0], a.shape[1]))


@triton.jit
def _rows4(a, b, c, d):
    return _rows2(_rows2(a, c), _rows2(b, d))


@triton.jit
def _halves(x):
    """[2 U, W] to its even and its odd rows."""
    return tl.split(tl.permute(tl.reshape(x, (x.shape[0] // 2, 2, x.shape[1])), (0, 2, 1)))


@triton.jit
def load_words(pointers, plane, mask, BITS: tl.constexpr):
    """Words of nibbles, [outer, inner / 8], from ``pointers`` [outer / rows_of_word, inner / 8] to the first
    plane; planes are ``plane`` words apart."""
    first = tl.load(pointers, mask=mask, other=0)
    if BITS == 4:
        return first
    elif BITS == 3:
        second = tl.load(pointers + plane, mask=mask, other=0)
        third = tl.load(pointers + 2 * plane, mask=mask, other=0)
        last = ((first >> 3) & 0x11111111) | ((second >> 2) & 0x22222222) | ((third >> 1) & 0x44444444)
        return _rows4(first & 0x77777777, second & 0x77777777, third & 0x77777777, last)
    elif BITS == 2:
        return _rows2(first & 0x33333333, (first >> 2) & 0x33333333)
    else:
        return _rows4(
            first & 0x11111111,
            (first >> 1) & 0x11111111,
            (first >> 2) & 0x11111111,
            (first >> 3) & 0x11111111,
        )


@triton.jit
def store_words(pointers, plane, words, BITS: tl.constexpr):
    """The inverse of ``load_words``."""
    if BITS == 4:
        tl.store(pointers, words)
    elif BITS == 2:
        even, odd = _halves(words)
        tl.store(pointers, even | (odd << 2))
    else:
        even, odd = _halves(words)
        first, third = _halves(even)
        second, last = _halves(odd)
        if BITS == 3:
            tl.store(pointers, first | ((last & 0x11111111) << 3))
            tl.store(pointers + plane, second | (((last >> 1) & 0x11111111) << 3))
            tl.store(pointers + 2 * plane, third | (((last >> 2) & 0x11111111) << 3))
        else:
            tl.store(pointers, first | (second << 1) | (third << 2) | (last << 3))


@triton.jit
def open_nibbles(words):
    """[outer, W] to [outer, 8 W]."""
    shifts = 4 * tl.arange(0, 8)
    codes = (words[:, :, None] >> shifts[None, None, :]) & 15
    return tl.reshape(codes, (words.shape[0], 8 * words.shape[1]))


@triton.jit
def close_nibbles(codes):
    """The inverse of ``open_nibbles``; codes are below 16."""
    shifts = 4 * tl.arange(0, 8)
    parts = tl.reshape(codes, (codes.shape[0], codes.shape[1] // 8, 8)) << shifts[None, None, :]
    return tl.sum(parts, axis=2)


@triton.jit
def points(codes, BITS: tl.constexpr, EXCESS: tl.constexpr):
    """The integers of codes (formats/codebook.py). Of up to 4 bits, the i-th positive one is 2i + 1 and what
    three bits of ``EXCESS`` from bit 3i on say; wider ones are the odd numbers."""
    if BITS > 4:
        return 2 * codes - ((1 << BITS) - 1)
    else:
        half: tl.constexpr = 1 << (BITS - 1)
        negative = codes < half
        index = tl.where(negative, half - 1 - codes, codes - half)
        magnitude = 2 * index + 1 + ((EXCESS >> (3 * index)) & 7)
        return tl.where(negative, -magnitude, magnitude)


@triton.jit
def wide_points(codes, BITS: tl.constexpr):
    """``points`` of int16 codes of more than 4 bits, as float16."""
    # 1024 and a code are the bits of a float16 beside each other.
    counted = (codes | 0x6400).to(tl.float16, bitcast=True) - 1024.0
    return counted * 2.0 - ((1 << BITS) - 1)


@triton.jit
def nearest(x, BITS: tl.constexpr, EXCESS: tl.constexpr):
    """Codes of the nearest integers: how many midpoints lie below ``x``."""
    if BITS > 4:
        most: tl.constexpr = (1 << BITS) - 1
        below = tl.ceil((x + (most - 1)) * 0.5)
        return tl.minimum(tl.maximum(below, 0.0), most).to(tl.int32)
    else:
        codes = tl.zeros(x.shape, tl.int32)
        for i in tl.static_range((1 << BITS) - 1):
            codes += (x > _midpoint(i, BITS, EXCESS)).to(tl.int32)
        return codes


@triton.jit
def _midpoint(i, BITS: tl.constexpr, EXCESS: tl.constexpr):
    """Between the integers of codes i and i + 1."""
    return (_point(i, BITS, EXCESS) + _point(i + 1, BITS, EXCESS)) * 0.5


@triton.jit
def _point(i, BITS: tl.constexpr, EXCESS: tl.constexpr):
    half: tl.constexpr = 1 << (BITS - 1)
    if i < half:
        return -(2 * (half - 1 - i) + 1 + ((EXCESS >> (3 * (half - 1 - i))) & 7))
    else:
        return 2 * (i - half) + 1 + ((EXCESS >> (3 * (i - half))) & 7)


@triton.jit
def open_fp8(stored):
    """float8 e4m3 as bytes to float16, over 256: its bits are those of a float16 whose exponent is 8
    lower."""
    if INTERPRETED:
        wide = stored.to(tl.int16)
        return (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
    else:
        # What has effects the compiler does not do again for each of the forms in which products want it.
        return tl.inline_asm_elementwise(
            OPEN_FP8, "=r,=r,r", (stored,), dtype=tl.float16, is_pure=False, pack=4
        )


@triton.jit
def product_e4m3(a, b):
    """``a @ b`` of float8 e4m3 as bytes on tensor cores, summed in float32 after every instruction."""
    if INTERPRETED:
        sums = tl.dot(open_fp8(a).to(tl.float32), open_fp8(b).to(tl.float32))
        return sums * (FP8_UNIT * FP8_UNIT)
    else:
        left, right = a.to(tl.float8e4nv, bitcast=True), b.to(tl.float8e4nv, bitcast=True)
        return tl.dot(left, right, max_num_imprecise_acc=0)


@triton.jit
def close_fp8(x, MOST: tl.constexpr):
    """float32 to float8 e4m3 as bytes, to the nearest, ties to even, held to ``MOST``."""
    held = tl.minimum(tl.abs(x), MOST)
    bits = held.to(tl.int32, bitcast=True)
    # From 2**-6 on: three bits of the mantissa are kept, the exponent's bias falls from 127 to 7.
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
    # Below, numbers are 2**-9 apart.
    small = rint(held * 512.0).to(tl.int32)
    code = tl.where(held < 0.015625, small, normal)
    return (code | tl.where(x.to(tl.int32, bitcast=True) < 0, 0x80, 0)).to(tl.uint8)
