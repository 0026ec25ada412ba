"""What instructions make of numbers, each its own formula on arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .numbers import FLOAT64, Array, fused, unsigned

Formula = Callable[..., Array]


def _divided(first: Array, second: Array) -> Array:
    if first.dtype.kind == "f":
        return np.asarray(first / second)
    # C rounds to zero; what division by zero yields is not defined.
    divisor = np.where(second == 0, 1, second).astype(object)
    quotient = abs(first.astype(object)) // abs(divisor)
    return wrapped(np.where((first < 0) != (second < 0), -quotient, quotient), first.dtype)


def _rest(first: Array, second: Array) -> Array:
    return np.asarray(first - _divided(first, second) * second)


def wrapped(values: Array, dtype: np.dtype[Any]) -> Array:
    """Integers of any size, their lower bits."""
    mask = (1 << 8 * dtype.itemsize) - 1
    return np.asarray(np.asarray(values) & mask).astype(unsigned(dtype.itemsize)).view(dtype)


def wide(first: Array, second: Array) -> Array:
    """Products of twice as many bits."""
    target = np.dtype(f"{first.dtype.kind}{2 * first.dtype.itemsize}")
    return np.asarray(first.astype(target) * second.astype(target))


def high(first: Array, second: Array) -> Array:
    """The upper half of ``wide``."""
    bits = 8 * first.dtype.itemsize
    if bits == 64:
        return wrapped((first.astype(object) * second.astype(object)) >> 64, first.dtype)
    return (wide(first, second) >> bits).astype(first.dtype)


def shifted_left(values: Array, count: Array) -> Array:
    bits = 8 * values.dtype.itemsize
    inside = np.minimum(count, bits - 1).astype(values.dtype)
    return np.asarray(np.where(count < bits, values << inside, values.dtype.type(0)))


def shifted_right(values: Array, count: Array) -> Array:
    bits = 8 * values.dtype.itemsize
    found = values >> np.minimum(count, bits - 1).astype(values.dtype)
    zero = values.dtype.type(0)
    return np.asarray(found if values.dtype.kind == "i" else np.where(count < bits, found, zero))


def funnel(right: bool, wraps: bool) -> Formula:
    """``shf``: 64 bits shifted, of which the upper word if to the left."""

    def shifted(low: Array, up: Array, count: Array) -> Array:
        by = (count & 31 if wraps else np.minimum(count, 32)).astype(np.uint64)
        both = up.astype(np.uint64) << np.uint64(32) | low.astype(np.uint64)
        return ((both >> by) if right else (both << by) >> np.uint64(32)).astype(np.uint32)

    return shifted


def permuted(first: Array, second: Array, selectors: Array) -> Array:
    """``prmt``: nibbles choose of eight bytes; with their upper bit, the sign of a byte spread over it."""
    both = second.astype(np.uint64) << np.uint64(32) | first.astype(np.uint64)
    found: Array = np.zeros((), np.uint64)
    for index in range(4):
        nibble = selectors.astype(np.uint64) >> np.uint64(4 * index)
        byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = (byte >> np.uint64(7)) * np.uint64(0xFF)
        found = found | np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * index)
    return found.astype(np.uint32)


def looked_up(first: Array, second: Array, third: Array, table: Array) -> Array:
    """``lop3``: bit 4a + 2b + c of the table."""
    found = np.zeros((), first.dtype)
    for index in range(8):
        places = ((first, 2), (second, 1), (third, 0))
        terms = [each if index >> shift & 1 else ~each for each, shift in places]
        if int(table) >> index & 1:
            found = found | terms[0] & terms[1] & terms[2]
    return found


def extracted(values: Array, place: Array, count: Array) -> Array:
    """``bfe``: bits from a place on; what lies above is the sign, or zero."""
    bits, wide_type = 8 * values.dtype.itemsize, values.dtype
    begin, length = place & 0xFF, count & 0xFF
    moved = shifted_right(values, begin)
    free = (bits - np.minimum(length, bits)).astype(np.uint32)
    if wide_type.kind == "i":
        last = np.minimum(begin + length - 1, bits - 1)
        sign = -(shifted_right(values, last) & 1)
        left = shifted_left(moved.view(unsigned(wide_type.itemsize)), free).view(wide_type)
        found = np.where(begin + length > bits, moved, shifted_right(left, free))
        return np.where(length == 0, wide_type.type(0), np.where(begin >= bits, sign, found))
    return shifted_right(shifted_left(moved, free), free)


def inserted(bits: Array, values: Array, place: Array, count: Array) -> Array:
    """``bfi``: ``count`` lower bits of the first into the second, at a place."""
    begin, length = place & 0xFF, count & 0xFF
    every = np.full_like(values, -1 & (1 << 8 * values.dtype.itemsize) - 1)
    mask = shifted_left(~shifted_left(every, length), begin)
    return np.asarray(values & ~mask | shifted_left(bits, begin) & mask)


def counted(values: Array) -> Array:
    return np.bitwise_count(values).astype(np.uint32)


def leading(values: Array) -> Array:
    """Zeros above the first bit that is set."""
    bits = 8 * values.dtype.itemsize
    for shift in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
        values = values | values >> values.dtype.type(shift)
    return (bits - np.bitwise_count(values)).astype(np.uint32)


def reversed_bits(values: Array) -> Array:
    octets = np.ascontiguousarray(values).reshape(-1, 1).view(np.uint8)[:, ::-1]
    flipped = np.packbits(np.unpackbits(octets, axis=1, bitorder="little"), axis=1)
    return flipped.view(values.dtype).reshape(values.shape)


def exact(formula: Callable[[Array], Array]) -> Formula:
    """An approximation of hardware as the right answer rounded once: hardware's may differ in last bits."""
    return lambda values: np.asarray(formula(values.astype(FLOAT64))).astype(values.dtype)


def smaller(first: Array, second: Array) -> Array:
    """Of a number and NaN the number."""
    return np.fmin(first, second)


def larger(first: Array, second: Array) -> Array:
    return np.fmax(first, second)


COMPARISONS: dict[str, Formula] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def comparison(name: str, floats: bool) -> Formula | None:
    """NaN is unequal and of no order; a ``u`` behind a name lets it count as true."""
    if not floats:
        return COMPARISONS.get(name)
    if name in ("num", "nan"):
        return lambda first, second: (np.isnan(first) | np.isnan(second)) == (name == "nan")
    if name == "ne":
        return lambda first, second: (first != second) & ~np.isnan(first) & ~np.isnan(second)
    plain = COMPARISONS.get(name) if name in ("eq", "lt", "le", "gt", "ge") else None
    if plain is not None or not name.endswith("u") or (found := COMPARISONS.get(name[:-1])) is None:
        return plain
    return lambda first, second: found(first, second) | np.isnan(first) | np.isnan(second)


def times(first: Array, second: Array) -> Array:
    return np.asarray(first * second)


INTEGERS = "u16 s16 u32 s32 u64 s64"
FLOATS = "f32 f64 f16 f16x2 bf16 bf16x2 f32x2"
WORDS = "b16 b32 b64"
# By opcode and the modifiers that choose a formula: types, and the formula of operands of that type.
FORMULAS: dict[tuple[str, str], tuple[str, Formula]] = {
    ("add", ""): (f"{INTEGERS} u16x2 s16x2 {FLOATS}", lambda a, b: a + b),
    ("sub", ""): (f"{INTEGERS} {FLOATS}", lambda a, b: a - b),
    ("mul", ""): (FLOATS, times),
    ("mul", "lo"): (INTEGERS, times),
    ("mul", "hi"): (INTEGERS, high),
    ("mad", "lo"): (INTEGERS, lambda a, b, c: a * b + c),
    ("mad", "hi"): (INTEGERS, lambda a, b, c: high(a, b) + c),
    ("fma", "rn"): (FLOATS, fused),
    ("div", ""): (INTEGERS, _divided),
    ("rem", ""): (INTEGERS, _rest),
    ("div", "rn"): ("f32 f64", _divided),
    ("div", "full"): ("f32", _divided),
    ("div", "approx"): ("f32", _divided),
    ("rcp", "rn"): ("f32 f64", lambda a: 1 / a),
    ("rcp", "approx"): ("f32", exact(lambda a: 1 / a)),
    ("sqrt", "rn"): ("f32 f64", np.sqrt),
    ("sqrt", "approx"): ("f32", np.sqrt),
    ("rsqrt", "approx"): ("f32", exact(lambda a: 1 / np.sqrt(a))),
    ("ex2", "approx"): ("f32 f16 f16x2 bf16 bf16x2", exact(np.exp2)),
    ("lg2", "approx"): ("f32", exact(np.log2)),
    ("sin", "approx"): ("f32", exact(np.sin)),
    ("cos", "approx"): ("f32", exact(np.cos)),
    ("tanh", "approx"): ("f32", exact(np.tanh)),
    ("abs", ""): (f"s16 s32 s64 {FLOATS}", np.abs),
    ("neg", ""): (f"s16 s32 s64 {FLOATS}", np.negative),
    ("min", ""): (f"{INTEGERS} s16x2 {FLOATS}", smaller),
    ("max", ""): (f"{INTEGERS} s16x2 {FLOATS}", larger),
    ("min", "NaN"): (FLOATS, np.minimum),
    ("max", "NaN"): (FLOATS, np.maximum),
    ("and", ""): (f"pred {WORDS}", np.bitwise_and),
    ("or", ""): (f"pred {WORDS}", np.bitwise_or),
    ("xor", ""): (f"pred {WORDS}", np.bitwise_xor),
    ("not", ""): (f"pred {WORDS}", np.bitwise_not),
    ("popc", ""): ("b32 b64", counted),
    ("clz", ""): ("b32 b64", leading),
    ("brev", ""): ("b32 b64", reversed_bits),
    ("prmt", ""): ("b32", permuted),
    ("shf", "l.wrap"): ("b32", funnel(False, True)),
    ("shf", "l.clamp"): ("b32", funnel(False, False)),
    ("shf", "r.wrap"): ("b32", funnel(True, True)),
    ("shf", "r.clamp"): ("b32", funnel(True, False)),
}
CHOOSING = ("lo", "hi", "rn", "full", "approx", "NaN", "l", "r", "wrap", "clamp")
