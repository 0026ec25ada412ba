"""The interpreter of PTX: what memory holds, who may touch it and when."""

from __future__ import annotations

import numpy as np
import pytest
from ptx import Fault
from test_ptx import LANES, WARP, launch

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


def test_threads_of_a_warp_are_brought_together() -> None:
    swap = """
        st.shared.u32 [%r2], %r0;
        {}
        xor.b32 %r3, %r2, 4;
        ld.shared.u32 %r4, [%r3];
        {}
        st.shared.u32 [%r2], %r4;
        {}
        ld.shared.u32 %r5, [%r3];
        st.global.u32 [%rd9], %r5;
    """
    found = np.zeros(96, np.uint32)
    barrier = "bar.warp.sync -1;"
    launch(swap.format(barrier, barrier, barrier), found, threads=96)
    assert np.array_equal(found, np.arange(96))
    for place, did in enumerate(("wrote", "read", "wrote")):
        barriers = [barrier] * 3
        barriers[place] = ""
        with pytest.raises(Fault, match=f"another thread of the warp {did} here"):
            launch(swap.format(*barriers), found, threads=96)


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


def test_blocks_come_in_no_order() -> None:
    found = np.zeros(WARP, np.uint32)
    mine = "mov.u32 %r3, %ctaid.x; setp.eq.u32 %p0, %r3, {}; @%p0 "
    launch(mine.format(1) + "st.global.u32 [%rd9], %r0;", found, grid=2)
    for first, second, did in (
        ("ld.global.u32 %r4, [%rd9];", "st.global.u32 [%rd9], 9;", "read"),
        ("st.global.u32 [%rd9], 9;", "ld.global.u32 %r4, [%rd9];", "wrote"),
        ("st.global.u32 [%rd9], 9;", "st.global.u32 [%rd9], 8;", "wrote"),
    ):
        # More of them than run at once.
        for other in (1, 40):
            with pytest.raises(Fault, match=f"a race: another block {did} here"):
                launch(mine.format(0) + first + mine.format(other) + second, found.copy(), grid=41)
    with pytest.raises(Fault, match="a race: another block writes something else here"):
        launch("mov.u32 %r3, %ctaid.x; st.global.u32 [%rd9], %r3;", found, grid=2)
    launch("st.global.u32 [%rd9], 5;", found, grid=2)


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
        bar.warp.sync -1;
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
