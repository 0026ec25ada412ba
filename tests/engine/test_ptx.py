"""The interpreter of PTX: how threads go on together, and what a compiler makes of CUDA C++."""

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


@pytest.mark.parametrize(
    "line", ["frob.b32 %r0, %r1;", "add.rz.f32 %f0, %f1, %f2;", "ld.global.odd.u32 %r0, [%rd0];"]
)
def test_what_is_not_known_is_refused(line: str) -> None:
    with pytest.raises(Unknown, match=line.split()[0]):
        launch(line)


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


def test_blocks_are_as_small_as_the_kernel_says() -> None:
    module = Module(".visible .entry small() .maxntid 64, 2, 1 .minnctapersm 2 { ret; }")
    assert module.run("small", (1,), (128,), []) == {"ret": 4}
    with pytest.raises(ValueError, match="128 threads at most"):
        module.run("small", (1,), (129,), [])


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
