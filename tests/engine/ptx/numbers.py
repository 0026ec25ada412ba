"""PTX's types of numbers and how hardware rounds them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
BOOL = np.dtype(bool)
FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True, slots=True)
class Kind:
    """Numbers of type ``number``, in registers or memory as unsigned ``words``: two to a word if packed."""

    number: np.dtype[Any]
    words: np.dtype[Any]

    @property
    def size(self) -> int:
        """Bytes of a word."""
        return self.words.itemsize

    @property
    def packed(self) -> bool:
        return self.number.itemsize < self.words.itemsize

    @property
    def floats(self) -> bool:
        return not np.issubdtype(self.number, np.integer) and self.number != BOOL

    @property
    def signed(self) -> bool:
        return self.number.kind == "i"


def unsigned(size: int) -> np.dtype[Any]:
    return np.dtype(f"u{size}")


def _kinds() -> dict[str, Kind]:
    found = {"pred": Kind(BOOL, BOOL)}
    for size in (1, 2, 4, 8):
        for letter, code in (("b", "u"), ("u", "u"), ("s", "i")):
            found[f"{letter}{8 * size}"] = Kind(np.dtype(f"{code}{size}"), unsigned(size))
    floats = {
        "f16": np.float16,
        "bf16": ml_dtypes.bfloat16,
        "e4m3": ml_dtypes.float8_e4m3fn,
        "e5m2": ml_dtypes.float8_e5m2,
        "f32": np.float32,
        "f64": np.float64,
    }
    numbers = {name: np.dtype(each) for name, each in floats.items()} | {"s16": np.dtype("i2")}
    for name, number in numbers.items():
        found.setdefault(name, Kind(number, unsigned(number.itemsize)))
        if number.itemsize <= 4:
            found[f"{name}x2"] = Kind(number, unsigned(2 * number.itemsize))
    return found


KINDS = _kinds()


def flush(values: Array) -> Array:
    """Numbers too small to be normal become zeros of their sign."""
    tiny = np.abs(values) < ml_dtypes.finfo(values.dtype).tiny
    return np.where(tiny, np.copysign(np.zeros((), values.dtype), values), values)


def _odd(rounded: Array, rest: Array) -> Array:
    """Of a number ``rounded`` to nearest and what it lacks, the neighbour whose last bit is odd, if it is not
    exact: rounding that once more gives what rounding the exact number would."""
    words = rounded.view(unsigned(rounded.dtype.itemsize))
    inexact = (rest != 0) & np.isfinite(rest) & (words & words.dtype.type(1) == 0)
    return np.where(inexact, np.nextafter(rounded, np.where(rest > 0, np.inf, -np.inf)), rounded)


def _fused_wide(first: float, second: float, third: float) -> float:
    if math.isfinite(first) and math.isfinite(second) and math.isfinite(third):
        return float(Fraction(first) * Fraction(second) + Fraction(third))
    return first * second + third


_FUSED = np.frompyfunc(_fused_wide, 3, 1)


def fused(first: Array, second: Array, third: Array) -> Array:
    """first * second + third, rounded once."""
    number = first.dtype
    if number == FLOAT64:
        return np.asarray(_FUSED(first, second, third)).astype(FLOAT64)
    # float64 holds products of narrower numbers.
    product = first.astype(FLOAT64) * second.astype(FLOAT64)
    addend = np.asarray(third.astype(FLOAT64))
    total = np.asarray(product + addend)
    back = total - product
    rest = (product - (total - back)) + (addend - back)
    return narrowed(_odd(total, rest), number)


def narrowed(values: Array, number: np.dtype[Any]) -> Array:
    """float64 to ``number``, to nearest, ties to even, rounded once."""
    if number.itemsize >= 4 or number == np.float16:
        return values.astype(number)
    # ml_dtypes rounds on the way, to float32.
    single = np.asarray(values.astype(np.float32))
    return _odd(single, values - single).astype(number)


ROUNDED: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


def convert(values: Array, target: Kind, modifiers: frozenset[str]) -> Array:
    """``values`` as ``target`` by the modifiers of ``cvt``: rn or rz for floats, ROUNDED to integers (what
    does not fit is held, NaN is 0), ftz, sat, satfinite, relu."""
    number = target.number
    if "ftz" in modifiers and values.dtype == np.float32:
        values = flush(values)
    if not target.floats:
        if values.dtype.kind in "iu":
            if "sat" in modifiers:
                values = _held(values.astype(object), number)
            return values.astype(number)
        (rounding,) = modifiers & ROUNDED.keys()
        whole = ROUNDED[rounding](values.astype(FLOAT64))
        return _held(np.where(np.isnan(whole), 0.0, whole), number)
    if values.dtype.kind not in "iu" and (chosen := modifiers & ROUNDED.keys()):
        (rounding,) = chosen
        values = ROUNDED[rounding](values)
    if "relu" in modifiers:
        values = np.maximum(values, values.dtype.type(0))
    if "sat" in modifiers:
        values = np.clip(np.where(np.isnan(values), 0, values), 0, 1).astype(values.dtype)
    # 64-bit integers have more digits than float64.
    found = values.astype(number) if values.dtype.kind in "iu" and number.itemsize > 2 else None
    if found is None:
        wide = values.astype(FLOAT64)
        found = _toward_zero(wide, number) if "rz" in modifiers else narrowed(wide, number)
    if "satfinite" in modifiers:
        most = ml_dtypes.finfo(number).max
        over = np.abs(values.astype(FLOAT64)) > float(most)
        found = np.where(over, np.copysign(float(most), values.astype(FLOAT64)).astype(number), found)
    return flush(found) if "ftz" in modifiers and number == np.float32 else found


def _held(values: Array, number: np.dtype[Any]) -> Array:
    limits = np.iinfo(number)
    low, high = values <= limits.min, values >= limits.max
    inner = np.where(low | high, 0, values).astype(number)
    return np.where(low, limits.min, np.where(high, limits.max, inner)).astype(number)


def _toward_zero(values: Array, number: np.dtype[Any]) -> Array:
    found = narrowed(values, number)
    over = np.abs(found.astype(FLOAT64)) > np.abs(values)
    words = found.view(unsigned(number.itemsize))
    return np.where(over, words - words.dtype.type(1), words).view(number)
