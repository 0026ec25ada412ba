"""The interpreter of PTX, held to what the PTX manual says of each instruction."""

from __future__ import annotations

import operator
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from ptx import Fault, Module, Unknown, run

WARP = 32
LANES = np.arange(WARP)
HEAD = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry kernel({parameters})
{{
.reg .b64 %rd<16>; .reg .b32 %r<64>; .reg .b16 %rs<16>; .reg .f32 %f<32>; .reg .pred %p<16>;
.shared .align 16 .b8 buffer[4096];
{loads}
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd8, %r0, 4;
add.s64 %rd9, %rd0, %rd8;
mov.u32 %r1, buffer;
shl.b32 %r2, %r0, 2;
add.s32 %r2, %r1, %r2;
{body}
ret;
}}
"""


def launch(body: str, *arrays: NDArray[Any], threads: int = WARP, grid: int = 1) -> Counter[str]:
    """``body`` has the arrays' addresses in %rd0 and so on, its thread in %r0, the address of its own word of
    the first array in %rd9, of shared memory in %r1, and of its own word there in %r2."""
    source = HEAD.format(
        parameters=", ".join(f".param .u64 given{index}" for index in range(len(arrays))),
        loads="\n".join(f"ld.param.u64 %rd{index}, [given{index}];" for index in range(len(arrays))),
        body=body,
    )
    return Module(source).run("kernel", (grid,), (threads,), arrays)


def words(rng: np.random.Generator, count: int, columns: int) -> NDArray[np.uint32]:
    edges = rng.choice(np.array([0, 1, 31, 32, 33, 1 << 31, (1 << 32) - 1], np.uint32), (count, columns))
    drawn = rng.integers(0, 1 << 32, (count, columns), dtype=np.uint32)
    return np.where(rng.random((count, columns)) < 0.3, edges, drawn)


def test_divergent_loops_come_together_again() -> None:
    """Each thread halves or triples its number until it is 1; a shuffle of all lanes follows."""
    body = """
        add.s32 %r3, %r0, 1;
        mov.u32 %r4, 0;
    again:
        setp.eq.s32 %p0, %r3, 1;
        @%p0 bra done;
        add.s32 %r4, %r4, 1;
        and.b32 %r5, %r3, 1;
        setp.eq.s32 %p1, %r5, 0;
        @%p1 bra even;
        mad.lo.s32 %r3, %r3, 3, 1;
        bra.uni again;
    even:
        shr.u32 %r3, %r3, 1;
        bra.uni again;
    done:
        shfl.sync.bfly.b32 %r6, %r4, 1, 31, -1;
        st.global.u32 [%rd9], %r6;
    """
    found = np.zeros(96, np.uint32)
    counts = launch(body, found, threads=96)

    def steps(number: int) -> int:
        return 0 if number == 1 else 1 + steps(3 * number + 1 if number % 2 else number // 2)

    assert found.tolist() == [steps(1 + (thread ^ 1)) for thread in range(96)]
    assert counts["shfl.sync.bfly.b32"] == 3
    alone = np.array([steps(1 + thread) for thread in range(96)]).reshape(3, WARP)
    assert alone.max(axis=1).sum() <= counts["mad.lo.s32"] + counts["shr.u32"] < alone.sum() / 4


def test_lanes_that_are_named_have_to_come() -> None:
    body = """
        setp.lt.u32 %p0, %r0, 16;
        @%p0 bra second;
        shfl.sync.bfly.b32 %r3, %r0, 1, 31, {mask};
        bra.uni done;
    second:
        shfl.sync.bfly.b32 %r3, %r0, 1, 31, 0xFFFF;
    done:
        st.global.u32 [%rd9], %r3;
    """
    found = np.zeros(WARP, np.uint32)
    launch(body.format(mask="0xFFFF0000"), found)
    assert np.array_equal(found, LANES ^ 1)
    with pytest.raises(Fault, match="nobody comes to: shfl"):
        launch(body.format(mask=-1), found)


REVERSE = """
    st.shared.u32 [%r2], %r0;
    {barrier}
    mov.u32 %r3, %ntid.x;
    sub.s32 %r3, %r3, %r0;
    shl.b32 %r3, %r3, 2;
    add.s32 %r3, %r1, %r3;
    ld.shared.u32 %r4, [%r3+-4];
    st.global.u32 [%rd9], %r4;
"""


def test_barriers_order_shared_memory() -> None:
    found = np.zeros(128, np.uint32)
    launch(REVERSE.format(barrier="bar.sync 0;"), found, threads=128)
    assert np.array_equal(found, np.arange(128)[::-1])
    with pytest.raises(Fault, match=r"thread \(0, 0, 0\) of block \(0, 0, 0\): ld.shared.u32 %r4.*a race"):
        launch(REVERSE.format(barrier=""), found, threads=128)
    with pytest.raises(Fault, match=r"nobody comes to: bar\.sync 0"):
        launch("setp.eq.u32 %p0, %r0, 5; @%p0 ret; bar.sync 0;", found, threads=128)


def test_reading_before_the_barrier_and_writing_behind_it_is_no_race() -> None:
    """But another warp's write before it is."""
    body = "st.shared.u32 [%r2], %r0; bar.sync 0; ld.shared.u32 %r3, [%r1]; {barrier} {guard} {write}"
    write, mine = "st.shared.u32 [%r1], 7;", "setp.eq.u32 %p0, %r0, 40; @%p0"
    launch(body.format(barrier="bar.sync 0;", guard=mine, write=write), threads=64)
    with pytest.raises(Fault, match=r"thread \(40, 0, 0\).*another warp read here"):
        launch(body.format(barrier="", guard=mine, write=write), threads=64)
    with pytest.raises(Fault, match="another warp writes something else"):
        launch("st.shared.u32 [%r1], %r0;", threads=64)


def test_shared_memory_begins_as_garbage() -> None:
    with pytest.raises(Fault, match="never written"):
        launch("ld.shared.u32 %r3, [%r2];")
    with pytest.raises(Fault, match="outside of the 4096 there are"):
        launch("st.shared.u32 [%r2+4000], %r0;")


@pytest.mark.parametrize(
    ("access", "thread", "why"),
    [
        ("ld.global.u32 %r3, [%rd9+4];", 31, "4 bytes outside of every array"),
        ("ld.global.u32 %r3, [%rd9+-4];", 0, "outside"),
        ("ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [%rd9];", 1, "no multiple of 16"),
        ("st.global.u16 [%rd9+1], %r0;", 0, "no multiple of 2"),
        ("mov.u64 %rd1, 0; ld.global.u8 %r3, [%rd1];", 0, "outside"),
        ("cp.async.cg.shared.global [%r1], [%rd9], 16;", 1, "no multiple of"),
    ],
)
def test_memory_that_is_not_there(access: str, thread: int, why: str) -> None:
    text = access.split("; ")[-1].rstrip(";")
    with pytest.raises(Fault, match=why) as raised:
        launch(access, np.zeros(WARP, np.uint32))
    assert f"thread ({thread}, 0, 0) of block (0, 0, 0): {text}" in str(raised.value)


def test_arrays_lie_apart() -> None:
    first, second = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    launch("mul.wide.u32 %rd2, %r0, 4; add.s64 %rd2, %rd1, %rd2; st.global.u32 [%rd2], %r0;", first, second)
    assert not first.any()
    assert second.tolist() == [*range(32), *[0] * 32]
    with pytest.raises(ValueError, match="overlap"):
        launch("", first, first[4:])


@pytest.mark.parametrize(
    "line", ["frob.b32 %r0, %r1;", "add.rz.f32 %f0, %f1, %f2;", "ld.global.odd.u32 %r0, [%rd0];"]
)
def test_what_is_not_known_is_refused(line: str) -> None:
    with pytest.raises(Unknown, match=line.split()[0]):
        launch(line)


def copies(tail: str) -> str:
    return f"""
        and.b32 %r3, %r0, 1;
        setp.eq.u32 %p0, %r3, 0;
        shl.b32 %r4, %r3, 4;
        mul.wide.u32 %rd2, %r0, 16;
        add.s64 %rd3, %rd1, %rd2;
        shl.b32 %r5, %r0, 4;
        add.s32 %r5, %r1, %r5;
        cp.async.cg.shared.global [%r5], [%rd3], 16, %r4;
        cp.async.commit_group;
        cp.async.ca.shared.global [%r5+512], [%rd3], 4;
        cp.async.commit_group;
        {tail}
        st.global.u32 [%rd9], %r6;
    """


def test_copies_arrive_when_they_are_waited_for() -> None:
    source, found = np.arange(1, 129, dtype=np.uint32), np.zeros(WARP, np.uint32)
    launch(copies("cp.async.wait_group 1; ld.shared.u32 %r6, [%r5+12];"), found, source)
    # Even threads asked for none of the bytes.
    assert np.array_equal(found, np.where(LANES % 2, 4 * LANES + 4, 0))
    launch(copies("cp.async.wait_group 0; ld.shared.u32 %r6, [%r5+512];"), found, source)
    assert np.array_equal(found, 4 * LANES + 1)
    for tail in ("", "cp.async.wait_group 2;"):
        with pytest.raises(Fault, match="still being copied to"):
            launch(copies(f"{tail} ld.shared.u32 %r6, [%r5];"), found, source)
    with pytest.raises(Fault, match="still being copied to"):
        launch(copies("cp.async.wait_group 1; ld.shared.u32 %r6, [%r5+512];"), found, source)


def test_what_others_copied_needs_a_barrier_too() -> None:
    source, found = np.arange(256, dtype=np.uint32), np.zeros(64, np.uint32)
    tail = "cp.async.wait_all; {} xor.b32 %r7, %r5, 512; ld.shared.u32 %r6, [%r7+2048];"
    body = copies(tail).replace("+512", "+2048").replace(", %r4;", ";")
    launch(body.format("bar.sync 0;"), found, source, threads=64)
    assert np.array_equal(found, 4 * (np.arange(64) ^ 32))
    with pytest.raises(Fault, match="a race"):
        launch(body.format(""), found, source, threads=64)


MODES: dict[str, Callable[[int, int], int]] = {
    "idx": lambda lane, by: by,
    "up": lambda lane, by: lane - by,
    "down": lambda lane, by: lane + by,
    "bfly": lambda lane, by: lane ^ by,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("width", [32, 8])
@pytest.mark.parametrize("by", [1, 5])
def test_shuffles(mode: str, width: int, by: int) -> None:
    limits = (WARP - width) << 8 | (0 if mode == "up" else 31)
    found, inside = np.zeros(WARP, np.uint32), np.zeros(WARP, np.uint32)
    body = f"""
        mul.lo.u32 %r3, %r0, 7;
        shfl.sync.{mode}.b32 %r4|%p0, %r3, {by}, {limits}, -1;
        st.global.u32 [%rd9], %r4;
        selp.u32 %r5, 1, 0, %p0;
        add.s64 %rd2, %rd1, %rd8;
        st.global.u32 [%rd2], %r5;
    """
    launch(body, found, inside)
    for lane in range(WARP):
        first = lane // width * width
        source = first + by % width if mode == "idx" else MODES[mode](lane, by)
        good = first <= source < first + width
        assert bool(inside[lane]) == good
        assert found[lane] == 7 * (source if good else lane)


def test_votes_and_reductions() -> None:
    body = """
        and.b32 %r3, %r0, {bits};
        setp.ne.s32 %p0, %r3, 0;
        vote.sync.any.pred %p1, %p0, -1;
        vote.sync.all.pred %p2, %p0, -1;
        vote.sync.ballot.b32 %r4, %p0, -1;
        redux.sync.max.s32 %r5, %r3, -1;
        redux.sync.add.u32 %r6, %r3, -1;
        selp.u32 %r7, 1, 0, %p1;
        selp.u32 %r8, 2, 0, %p2;
        or.b32 %r7, %r7, %r8;
        mul.wide.u32 %rd2, %r0, 16;
        add.s64 %rd2, %rd0, %rd2;
        st.global.v4.u32 [%rd2], {{%r7, %r4, %r5, %r6}};
    """
    for bits in (0, 1, 32, 96):
        found = np.zeros((64, 4), np.uint32)
        launch(body.format(bits=bits), found, threads=64)
        for warp in range(2):
            own = np.arange(32 * warp, 32 * warp + 32) & bits
            ballot = sum(1 << lane for lane in range(WARP) if own[lane])
            expected = [any(own) + 2 * all(own), ballot, max(own), sum(own)]
            assert np.array_equal(found[32 * warp : 32 * warp + 32], [expected] * 32)


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
    many = (depth // 2 // each, depth // 4 // each)
    given = [np.zeros((WARP, count * each), kind) for count, kind in zip(many, (left, right), strict=True)]
    held = np.zeros((WARP, 4), sums.dtype)
    for lane in range(WARP):
        given[0][lane] = [first[first_place(lane, i, each)] for i in range(many[0] * each)]
        given[1][lane] = [second[second_place(lane, i, each)] for i in range(many[1] * each)]
        held[lane] = [sums[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2] for i in range(4)]
    names = [
        [f"${4 + index}" for index in range(sum(many) + 4)][begin:][:count]
        for begin, count in ((0, many[0]), (many[0], many[1]), (sum(many), 4))
    ]
    vectors = ["{" + ", ".join(each) + "}" for each in (["$0", "$1", "$2", "$3"], *names)]
    words_ = np.concatenate([part.view("<u4") for part in (*given, held)], axis=1)
    found = np.stack(run(f"mma.sync.aligned.{name} {', '.join(vectors)};", words_, [32] * 4), axis=1)
    result = found.astype("<u4").view(sums.dtype)
    expected = first.astype(np.float64) @ second.astype(np.float64) + sums
    for lane in range(WARP):
        for i in range(4):
            value = expected[lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2]
            # Sums of integers wrap.
            assert (
                int(result[lane, i]) == int(np.array(value).astype(np.int64).astype(np.int32))
                if whole
                else (abs(result[lane, i] - value) < 1e-6 * depth)
            )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_matrices_come_from_shared_memory(count: int, transposed: bool) -> None:
    """Rows lie in no order."""
    rng = np.random.default_rng(count)
    halves = rng.integers(0, 1 << 16, (32, 8)).astype(np.uint16)
    order = rng.permutation(32).astype(np.uint32)
    found = np.zeros((WARP, 4), np.uint32)
    names = ", ".join(f"%r{10 + index}" for index in range(count))
    body = f"""
        mul.wide.u32 %rd3, %r0, 16;
        add.s64 %rd4, %rd1, %rd3;
        ld.global.v4.u32 {{%r3, %r4, %r5, %r6}}, [%rd4];
        shl.b32 %r7, %r0, 4;
        add.s32 %r7, %r1, %r7;
        st.shared.v4.u32 [%r7], {{%r3, %r4, %r5, %r6}};
        add.s64 %rd5, %rd2, %rd8;
        ld.global.u32 %r8, [%rd5];
        shl.b32 %r8, %r8, 4;
        add.s32 %r8, %r1, %r8;
        ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}.shared.b16 {{{names}}}, [%r8];
        add.s64 %rd6, %rd0, %rd3;
        st.global.v4.u32 [%rd6], {{%r10, %r11, %r12, %r13}};
    """
    launch(body, found, halves, order)
    for matrix in range(count):
        rows = halves[order[8 * matrix : 8 * matrix + 8]]
        rows = rows.T if transposed else rows
        for lane in range(WARP):
            low, high = (int(each) for each in rows[lane // 4, lane % 4 * 2 :][:2])
            assert found[lane, matrix] == low | high << 16


def test_atoms() -> None:
    found, before = np.zeros(WARP, np.uint32), np.zeros(64, np.uint32)
    body = """
        add.s64 %rd2, %rd1, %rd8;
        atom.global.add.u32 %r3, [%rd0], 2;
        st.global.u32 [%rd2], %r3;
        atom.global.gpu.acq_rel.cas.b32 %r4, [%rd0+4], 0, 9;
        red.global.max.s32 [%rd0+8], %r0;
        mov.f32 %f0, 0f3F000000;
        red.global.add.f32 [%rd0+12], %f0;
    """
    launch(body, found, before, threads=64)
    assert sorted(before.tolist()) == list(range(0, 128, 2))
    assert found[:3].tolist() == [128, 9, 63]
    assert found[3:4].view(np.float32)[0] == 32


CUDA = """
#include <cuda_fp16.h>
__constant__ int table[4] = {3, 1, 4, 1};
extern __shared__ float dynamic[];
struct Shape { int factor; float bias; };
extern "C" __global__ void kernel(const __half* __restrict__ input, float* output, Shape shape) {
    __shared__ int own[128];
    const int thread = threadIdx.x, place = blockIdx.x * blockDim.x + thread;
    own[thread] = thread * shape.factor;
    int local[8];
    for (int i = 0; i < 8; i++) local[i] = i * shape.factor + table[i & 3];
    __syncthreads();
    float value = __half2float(input[place]);
    if (thread & 1) {
        value = exp2f(value) / shape.bias;
    } else {
        for (int i = 0; i < (thread & 7); i++) value += own[i + 1] * table[i & 3];
    }
    dynamic[thread] = value + __shfl_xor_sync(~0u, value, 1);
    __syncthreads();
    const float4 four = reinterpret_cast<float4*>(dynamic)[thread / 4];
    output[place] = four.x + 2 * four.w + local[thread & 7] + (__any_sync(~0u, value > 1e6f) ? 1 : 0);
}
"""


def test_what_nvcc_makes(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not on PATH")
    (tmp_path / "kernel.cu").write_text(CUDA)
    command = [nvcc, "-arch=sm_80", "-ptx", "kernel.cu", "-o", "kernel.ptx"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    module = Module((tmp_path / "kernel.ptx").read_text())
    given = np.random.default_rng(6).standard_normal(384).astype(np.float16)
    found = np.zeros(384, np.float32)
    shape = np.array([(5, 1.5)], [("factor", np.int32), ("bias", np.float32)])
    module.run("kernel", (3,), (128,), [given, found, shape.tobytes()], shared=512)
    thread, table = np.arange(384) % 128, np.array([3, 1, 4, 1])
    sums = [sum(5 * (i + 1) * int(table[i & 3]) for i in range(each & 7)) for each in thread]
    value = np.where(thread & 1, np.exp2(given.astype(np.float32)) / 1.5, given + np.array(sums))
    both = (value + value[np.arange(384) ^ 1]).reshape(-1, 4)
    expected = np.repeat(both[:, 0] + 2 * both[:, 3], 4) + (thread & 7) * 5 + table[thread & 3]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_blocks_and_threads_have_places() -> None:
    source = HEAD.format(
        parameters=".param .u64 given0",
        loads="ld.param.u64 %rd0, [given0];",
        body="""
        mov.u32 %r3, %ctaid.y; mov.u32 %r4, %nctaid.x; mov.u32 %r5, %ctaid.x; mad.lo.s32 %r3, %r3, %r4, %r5;
        mov.u32 %r4, %tid.y; mov.u32 %r5, %ntid.x; mad.lo.s32 %r6, %r4, %r5, %r0;
        mad.lo.s32 %r6, %r3, 48, %r6;
        mad.wide.u32 %rd9, %r6, 4, %rd0;
        shl.b32 %r4, %r4, 8; shl.b32 %r3, %r3, 16; or.b32 %r3, %r3, %r4; or.b32 %r3, %r3, %r0;
        st.global.u32 [%rd9], %r3;
        """,
    )
    found = np.zeros((35, 6, 8), np.uint32)
    counts = Module(source).run("kernel", (7, 5), (8, 6), [found])
    block, y, x = np.indices(found.shape)
    assert np.array_equal(found, block << 16 | y << 8 | x)
    assert counts["st.global.u32"] == 35 * 2
