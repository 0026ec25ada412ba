"""The interpreter of PTX: how threads go on together, and what memory holds."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ptx import Fault, Module, Unknown

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
