"""What instructions of PTX make of numbers, as its manual has it."""

from __future__ import annotations

import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from ptx import run

WARP = 32


def words(rng: np.random.Generator, count: int, columns: int) -> NDArray[np.uint32]:
    edges = rng.choice(np.array([0, 1, 31, 32, 33, 1 << 31, (1 << 32) - 1], np.uint32), (count, columns))
    drawn = rng.integers(0, 1 << 32, (count, columns), dtype=np.uint32)
    return np.where(rng.random((count, columns)) < 0.3, edges, drawn)


def test_permutes() -> None:
    """Every selector in every place."""
    rng = np.random.default_rng(0)
    given = words(rng, 256, 3)
    given[:, 2] = [
        sum((index * (place + 1) + place) % 16 << 4 * place for place in range(4)) for index in range(256)
    ]
    (found,) = run("prmt.b32 $0, $1, $2, $3;", given, [32])
    for first, second, selectors, word in zip(*given.T.tolist(), found.tolist(), strict=True):
        octets = (first | second << 32).to_bytes(8, "little")
        for place in range(4):
            chosen = selectors >> 4 * place & 15
            byte = octets[chosen & 7]
            expected = (255 if byte > 127 else 0) if chosen & 8 else byte
            assert word >> 8 * place & 255 == expected


def test_every_truth_table() -> None:
    given = words(np.random.default_rng(1), 64, 3)
    text = "\n".join(f"lop3.b32 ${table}, $64, $65, $66, {{}};" for table in range(64))
    bits = (given[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    index = bits[:, 0] * 4 + bits[:, 1] * 2 + bits[:, 2]
    for first in range(0, 256, 64):
        found = run(text.format(*range(first, first + 64)), given, [32] * 64)
        for table, each in enumerate(found, first):
            expected = (table >> index & 1).astype(np.uint64) @ (1 << np.arange(32, dtype=np.uint64))
            assert np.array_equal(each, expected), table


def signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def field(word: int, begin: int, length: int, sign: bool) -> int:
    """``bfe`` as the manual has it, bit by bit."""
    begin, length = begin & 255, length & 255
    top = 0 if not sign or not length else word >> min(begin + length - 1, 31) & 1
    return sum(
        (word >> begin + bit & 1 if bit < length and begin + bit < 32 else top) << bit for bit in range(32)
    )


def insert(bits: int, word: int, begin: int, length: int) -> int:
    for bit in range(length & 255):
        place = bit + (begin & 255)
        if place < 32:
            word = word & ~(1 << place) | (bits >> bit & 1 if bit < 32 else 0) << place
    return word


INTEGERS: dict[str, Callable[..., int]] = {
    "add.s32 $0, $1, $2": operator.add,
    "sub.u32 $0, $1, $2": operator.sub,
    "mul.lo.s32 $0, $1, $2": operator.mul,
    "mul.hi.u32 $0, $1, $2": lambda a, b, c, d: a * b >> 32,
    "mul.hi.s32 $0, $1, $2": lambda a, b, c, d: signed(a) * signed(b) >> 32,
    "mad.lo.u32 $0, $1, $2, $3": lambda a, b, c, d: a * b + c,
    "min.s32 $0, $1, $2": lambda a, b, c, d: min(signed(a), signed(b)),
    "max.u32 $0, $1, $2": lambda a, b, c, d: max(a, b),
    "shl.b32 $0, $1, $2": lambda a, b, c, d: a << b if b < 32 else 0,
    "shr.u32 $0, $1, $2": lambda a, b, c, d: a >> b if b < 32 else 0,
    "shr.s32 $0, $1, $2": lambda a, b, c, d: signed(a) >> min(b, 31),
    "shf.l.wrap.b32 $0, $1, $2, $3": lambda a, b, c, d: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.wrap.b32 $0, $1, $2, $3": lambda a, b, c, d: (b << 32 | a) >> (c & 31),
    "shf.r.clamp.b32 $0, $1, $2, $3": lambda a, b, c, d: (b << 32 | a) >> min(c, 32),
    "bfe.u32 $0, $1, $2, $3": lambda a, b, c, d: field(a, b, c, False),
    "bfe.s32 $0, $1, $2, $3": lambda a, b, c, d: field(a, b, c, True),
    "bfi.b32 $0, $1, $2, $3, $4": insert,
    "popc.b32 $0, $1": lambda a, b, c, d: a.bit_count(),
    "clz.b32 $0, $1": lambda a, b, c, d: 32 - a.bit_length(),
    "brev.b32 $0, $1": lambda a, b, c, d: int(f"{a:032b}"[::-1], 2),
    "neg.s32 $0, $1": lambda a, b, c, d: -a,
    "dp4a.s32.s32 $0, $1, $2, $3": lambda a, b, c, d: (
        c
        + sum(
            int(x) * int(y) for x, y in zip(*(np.array([w], "<u4").view("i1") for w in (a, b)), strict=True)
        )
    ),
}


@pytest.mark.parametrize("text", INTEGERS)
def test_integers(text: str) -> None:
    given = words(np.random.default_rng(len(text)), 300, 4)
    (found,) = run(f"{text};", given, [32])
    formula = INTEGERS[text]
    for row, word in zip(given.tolist(), found.tolist(), strict=True):
        expected = formula(*row) if formula.__name__ in ("<lambda>", "insert") else formula(*row[:2])
        assert word == expected & 0xFFFFFFFF, row


def test_wide_products_and_quotients() -> None:
    given = words(np.random.default_rng(2), 300, 3)
    given[:, 1] |= 1
    text = """
        mul.wide.s32 $0, $5, $6;
        mad.wide.u32 $1, $5, $6, $0;
        div.s32 $2, $5, $6;
        rem.s32 $3, $5, $6;
        div.u32 $4, $5, $6;
    """
    found = np.stack(run(text, given, [64, 64, 32, 32, 32]), axis=1).tolist()
    for (first, second, _), (product, added, quotient, rest, whole) in zip(
        given.tolist(), found, strict=True
    ):
        a, b = signed(first), signed(second)
        expected = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        assert product == a * b & (1 << 64) - 1
        assert added == product + first * second & (1 << 64) - 1
        assert quotient == expected & 0xFFFFFFFF
        assert rest == a - b * expected & 0xFFFFFFFF
        assert whole == first // second


def test_carries() -> None:
    """Products and differences of 64 bits by words."""
    given = words(np.random.default_rng(7), 300, 4)
    text = """{
        .reg .b32 low, high;
        mul.lo.u32 $0, $6, $8;
        mul.hi.u32 $1, $6, $8;
        mad.lo.cc.u32 $1, $7, $8, $1;
        madc.hi.u32 $2, $7, $8, 0;
        sub.cc.u32 $3, $6, $8;
        subc.cc.u32 $4, $7, $9;
        subc.u32 $5, 0, 0;
    }"""
    found = np.stack(run(text, given, [32] * 6), axis=1).tolist()
    for (low, high, other, last), (*product, less, much_less, borrowed) in zip(
        given.tolist(), found, strict=True
    ):
        assert sum(word << 32 * place for place, word in enumerate(product)) == (high << 32 | low) * other
        difference = (high << 32 | low) - (last << 32 | other)
        assert (much_less << 32 | less) == difference & (1 << 64) - 1
        assert borrowed == (0xFFFFFFFF if difference < 0 else 0)


def floats(rng: np.random.Generator, count: int, columns: int) -> NDArray[np.float32]:
    scale = 2.0 ** rng.integers(-20, 20, (count, columns))
    return (rng.standard_normal((count, columns)) * scale).astype(np.float32)


def test_fused_products_are_rounded_once() -> None:
    rng = np.random.default_rng(3)
    given = floats(rng, 2000, 3)
    # Halfway between two float32 but for a bit that float64 drops.
    given[:3] = np.array(
        [
            [1 + 2**-12, 1 + 2**-12, 2**-60],
            [1 + 2**-12, 1 - 2**-12, 2**-70],
            [-1 - 2**-12, 1 + 2**-12, 2**-90],
        ]
    )
    (found,) = run("fma.rn.f32 $0, $1, $2, $3;", given.view(np.uint32), [32])
    for row, value in zip(given.tolist(), found.astype(np.uint32).view(np.float32), strict=True):
        a, b, c = (Fraction(each) for each in row)
        exact = a * b + c
        other = [np.nextafter(value, np.float32(end)) for end in (-np.inf, np.inf)]
        assert all(
            abs(Fraction(float(value)) - exact) <= abs(Fraction(float(each)) - exact) for each in other
        )


def test_floats_are_rounded_to_narrow_ones() -> None:
    given = floats(np.random.default_rng(4), 3000, 2)
    given[0] = np.float32(1 + 2**-8), np.float32(1 + 3 * 2**-8)
    text = """{
        .reg .b16 half, other;
        cvt.rn.f16.f32 $0, $5;
        cvt.rn.bf16.f32 $1, $5;
        cvt.rn.bf16x2.f32 $2, $5, $6;
        cvt.rn.satfinite.e4m3x2.f32 $3, $5, $6;
        cvt.f32.f16 $4, $0;
    }"""
    half, brain, pair, eighths, wide = run(text, given.view(np.uint32), [16, 16, 32, 16, 32])
    narrow = given.astype(ml_dtypes.bfloat16).view(np.uint16).astype(np.uint64)
    with np.errstate(over="ignore"):
        assert np.array_equal(half, given[:, 0].astype(np.float16).view(np.uint16))
    assert np.array_equal(brain, narrow[:, 0])
    assert np.array_equal(pair, narrow[:, 0] << np.uint64(16) | narrow[:, 1])
    held = np.clip(given, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8).astype(np.uint64)
    assert np.array_equal(eighths, held[:, 0] << np.uint64(8) | held[:, 1])
    assert np.array_equal(wide.astype(np.uint32).view(np.float32), half.astype(np.uint16).view(np.float16))


def test_floats_become_integers() -> None:
    given = np.array([[0.5], [1.5], [-2.5], [3e9], [-3e9], [np.nan], [200.7], [-0.3]], np.float32)
    text = "cvt.rni.s32.f32 $0, $4; cvt.rzi.u32.f32 $1, $4; cvt.rmi.s32.f32 $2, $4; cvt.rpi.f32.f32 $3, $4;"
    nearest, cut, below, above = run(text, given.view(np.uint32), [32] * 4)
    most = 2**31 - 1
    assert nearest.astype(np.uint32).view(np.int32).tolist() == [0, 2, -2, most, -most - 1, 0, 201, 0]
    assert cut.tolist() == [0, 1, 0, 3_000_000_000, 0, 0, 200, 0]
    assert below.astype(np.uint32).view(np.int32).tolist() == [0, 1, -3, most, -most - 1, 0, 200, -1]
    assert np.array_equal(above.astype(np.uint32).view(np.float32), np.ceil(given[:, 0]), equal_nan=True)


def test_comparisons_with_nan() -> None:
    nan = float("nan")
    given = np.array([[1, 2], [2, 2], [nan, 1], [1, nan]], np.float32)
    names = ("lt", "ltu", "eq", "equ", "ne", "neu", "num", "nan", "ge", "geu")
    lines = [
        f"{{.reg .pred p, q; setp.{name}.f32 p|q, $10, $11; selp.u32 ${index}, 1, 0, p;}}"
        for index, name in enumerate(names)
    ]
    found = dict(zip(names, run("\n".join(lines), given.view(np.uint32), [32] * 10), strict=True))
    assert found["lt"].tolist() == [1, 0, 0, 0]
    assert found["eq"].tolist() == [0, 1, 0, 0]
    assert found["ne"].tolist() == [1, 0, 0, 0]
    assert found["ge"].tolist() == [0, 1, 0, 0]
    assert found["num"].tolist() == [1, 1, 0, 0]
    assert found["nan"].tolist() == [0, 0, 1, 1]
    for name in ("lt", "eq", "ne", "ge"):
        assert np.array_equal(found[f"{name}u"], found[name] | found["nan"])


def test_halves_are_calculated_in_pairs() -> None:
    rng = np.random.default_rng(5)
    given = rng.standard_normal((100, 6)).astype(np.float16)
    text = "fma.rn.f16x2 $0, $3, $4, $5; add.f16x2 $1, $3, $4; max.f16x2 $2, $3, $4;"
    found = [
        each.astype("<u4").view(np.float16).reshape(-1, 2) for each in run(text, given.view("<u4"), [32] * 3)
    ]
    a, b, c = (given[:, place : place + 2] for place in (0, 2, 4))
    exact = a.astype(np.float64) * b + c
    assert np.array_equal(found[0], exact.astype(np.float16))
    assert np.array_equal(found[1], a + b)
    assert np.array_equal(found[2], np.maximum(a, b))


def test_approximations_are_near_and_flush_what_is_small() -> None:
    given = np.array([[3.0], [-0.5], [1e-40], [40.0]], np.float32)
    text = "ex2.approx.ftz.f32 $0, $3; lg2.approx.ftz.f32 $1, $3; rcp.approx.ftz.f32 $2, $3;"
    power, log, inverse = (
        each.astype("<u4").view(np.float32) for each in run(text, given.view("<u4"), [32] * 3)
    )
    np.testing.assert_allclose(power, [8, 2**-0.5, 1, 2.0**40], rtol=1e-6)
    np.testing.assert_allclose(log, [np.log2(3), np.nan, -np.inf, np.log2(40)], rtol=1e-6)
    np.testing.assert_allclose(inverse, [1 / 3, -2, np.inf, 1 / 40], rtol=1e-6)


# Where a lane's number i of a matrix lies, as the manual's formulas have it.
def first_place(lane: int, i: int, each: int) -> tuple[int, int]:
    """Of 16 rows; ``each`` numbers share a word."""
    word, inside = divmod(i, each)
    return lane // 4 + 8 * (word % 2), lane % 4 * each + inside + 4 * each * (word // 2)


def second_place(lane: int, i: int, each: int) -> tuple[int, int]:
    word, inside = divmod(i, each)
    return lane % 4 * each + inside + 4 * each * word, lane // 4


PRODUCTS = [
    ("m16n8k16.row.col.f32.bf16.bf16.f32", ml_dtypes.bfloat16, ml_dtypes.bfloat16, 16),
    ("m16n8k16.row.col.f32.f16.f16.f32", np.float16, np.float16, 16),
    ("m16n8k8.row.col.f32.f16.f16.f32", np.float16, np.float16, 8),
    ("m16n8k32.row.col.f32.e4m3.e4m3.f32", ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fn, 32),
    ("m16n8k32.row.col.s32.s8.s8.s32", np.int8, np.int8, 32),
    ("m16n8k32.row.col.s32.u8.s8.s32", np.uint8, np.int8, 32),
    ("m16n8k16.row.col.s32.s8.s8.s32", np.int8, np.int8, 16),
    ("m16n8k32.row.col.satfinite.s32.s8.s8.s32", np.int8, np.int8, 32),
]


@pytest.mark.parametrize(("name", "left", "right", "depth"), PRODUCTS)
def test_products_of_matrices(name: str, left: Any, right: Any, depth: int) -> None:
    rng = np.random.default_rng(depth)
    whole = np.issubdtype(left, np.integer)

    def draw(kind: Any, *shape: int) -> NDArray[Any]:
        if whole:
            return rng.integers(np.iinfo(kind).min, np.iinfo(kind).max + 1, shape).astype(kind)
        return rng.standard_normal(shape).astype(kind)

    each = 4 // np.dtype(left).itemsize
    first, second = draw(left, 16, depth), draw(right, depth, 8)
    sums = draw(np.int32, 16, 8) if whole else draw(np.float32, 16, 8)
    if whole:
        # These wrap, or are held.
        sums[0], sums[1] = np.iinfo(np.int32).max - 9, np.iinfo(np.int32).min + 9
    many = (depth // 2 // each, depth // 4 // each)
    given = [np.zeros((WARP, count * each), kind) for count, kind in zip(many, (left, right), strict=True)]
    before = np.zeros((WARP, 4), sums.dtype)
    for lane in range(WARP):
        given[0][lane] = [first[first_place(lane, i, each)] for i in range(many[0] * each)]
        given[1][lane] = [second[second_place(lane, i, each)] for i in range(many[1] * each)]
        before[lane] = [sums[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2] for i in range(4)]
    names = [
        [f"${4 + index}" for index in range(sum(many) + 4)][begin:][:count]
        for begin, count in ((0, many[0]), (many[0], many[1]), (sum(many), 4))
    ]
    vectors = ["{" + ", ".join(each) + "}" for each in (["$0", "$1", "$2", "$3"], *names)]
    words_ = np.concatenate([part.view("<u4") for part in (*given, before)], axis=1)
    found = np.stack(run(f"mma.sync.aligned.{name} {', '.join(vectors)};", words_, [32] * 4), axis=1)
    result = found.astype("<u4").view(sums.dtype)
    expected = first.astype(np.float64) @ second.astype(np.float64) + sums
    if whole:
        limits = np.iinfo(np.int32)
        held = "satfinite" in name
        expected = np.clip(expected, limits.min, limits.max) if held else expected.astype(np.int64)
    places = [(lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2) for lane in range(WARP) for i in range(4)]
    wanted = np.array([expected[place] for place in places]).astype(sums.dtype).reshape(WARP, 4)
    np.testing.assert_allclose(result, wanted, rtol=0, atol=0 if whole else 1e-6 * depth)
