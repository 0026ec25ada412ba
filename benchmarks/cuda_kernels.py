"""CUDA kernels compiled ahead of time: docs/cuda-kernels.md. No GPU is needed; minutes.

    python benchmarks/cuda_kernels.py [--cache FOLDER] [--only tq3] [--digest]

For each variant and architecture: registers and stack of a thread, shared memory, and, of attention and of
products with few rows, the instructions that are issued in the loop over packed pages or over tiles, per
number of the cache or of the weights: warp instructions times 32 lanes, over the numbers that the program
passes in one round. They are counted in the disassembled cubin: all between the loop's label and its jump
back."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from infer_compile.catalog.cuda_kernels import load_kernel_runs, sources_digest
from infer_compile.catalog.facts import load_facts
from infer_compile.catalog.target import Target, load_target
from infer_compile.codegen import cuda_constants as constants
from infer_compile.codegen import cuda_decode, cuda_skinny, nvrtc
from infer_compile.codegen import cuda_latent as latent
from infer_compile.codegen.cubins import ARCHITECTURES, Compiled, Variant, compile_kernel, disassemble
from infer_compile.codegen.cuda_constants import Launch, Tiling
from infer_compile.codegen.tilings import product_tilings
from infer_compile.lower.signs import signs
from infer_compile.planner.performance.latency import slots_per_second
from infer_compile.runtime.formats.kv import LEVELS, CacheLayout, LevelName, uniform
from infer_compile.runtime.formats.latent import LatentLayout, LatentLevel
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.kv.codec import FP8_MOST

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cuda-kernels.md"
WARP = 32
KV_HEADS = 8
FEW = (80, 90, 100, 120)
LATENT = (80, 90, 100)
LATENT_HEADS = 128
LATENT_STEP = 192
"""Numbers of a head's query: 128 without and 64 with a rotary embedding."""
HEAD = """\
# CUDA kernels of the cache, and of products with few rows

Append, seal, query, attend and merge, and those of latent attention
([kernels/cuda](../kernels/cuda/README.md)), compiled ahead of time by
Triton {triton}, and decode and skinny, which are what attend computes for few tokens and linear for up to 16
rows, in CUDA C++ by NVRTC {nvrtc};
for every architecture, without a GPU: `python benchmarks/cuda_kernels.py` writes this page.
Their results are held to the slow form by Triton's interpreter (`tests/engine/test_cuda_cache.py`: every
level, heads of 64 to 256, groups of 1 to 16, pages of 16 to 128, chains, trees, windows, ragged batches;
`tests/engine/test_cuda_latent.py`),
and what the compilers made of them by an interpreter of PTX (`tests/engine/test_decode.py`,
`test_skinny.py`, `test_cuda_compiled.py`).

{verified}

Nothing spills: a thread's stack is empty. *Slots* are the
instructions issued per number of the cache in the loop over packed pages (of `bf16`, over its exact pages;
of decode with what it does only where the largest score rises), or per weight in the loop over tiles (of
skinny for up to eight rows),
in lanes; what an H200 has left for each number if the kernel is to run at the speed of its memory
({bandwidth:.1f} TB/s against {slots:.1f}e12 instructions of lanes a second, from targets/h200-sxm.yaml)
stands beside it. Where slots exceed that, arithmetic says that issuing instructions takes so much longer than
reading the pages; no speed was measured. bf16 read at the speed of memory takes the time of {exact:.1f} slots
a number: `tq3` is faster as far as it stays below, and as much faster as its slots are fewer.

| variant | for | registers | stack | shared memory | slots | H200 has |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A variant, on which architectures it is compiled, and how many numbers of the cache or of the weights a
    round passes."""

    name: str
    variant: Variant
    architectures: tuple[int, ...]
    numbers: int = 0
    bits: float | None = None
    """Of one of these numbers."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "infer-compile" / "kernels")
    arguments.add_argument("--only", default="", help="print the variants whose name has this, write nothing")
    arguments.add_argument("--digest", action="store_true", help="print the digest of the sources")
    given = arguments.parse_args()
    if given.digest:
        print(sources_digest())
        return
    lines = []
    for row in rows():
        if given.only in row.name:
            for capability in row.architectures:
                compiled = compile_kernel(row.variant, capability, given.cache)
                lines.append(_line(row, compiled, given.cache))
                print(lines[-1], flush=True)
    if not given.only:
        PAGE.write_text(_head() + "\n".join(lines) + "\n" + _foot(), encoding="utf-8")


def rows() -> Iterator[Row]:
    tq3 = LEVELS["tq3"]
    yield _attend("attend bf16, decode", LEVELS["bf16"], ARCHITECTURES)
    yield _decode("decode tq3", tq3, ARCHITECTURES)
    for level in ("tq2", "tq4"):
        yield _decode(f"decode {level}", LEVELS[level], FEW)
    yield _decode("decode tq3, heads of 64", tq3, (90,), head_dim=64)
    yield _decode("decode tq3, groups of 16", tq3, (90,), group=16)
    yield _attend("attend tq3, decode", tq3, (90,))
    for level in ("fp8", "int8"):
        yield _attend(f"attend {level}, decode", LEVELS[level], FEW)
    yield _decode("decode ct3", LEVELS["ct3"], (80, 90))
    for head_dim in (96, 256):
        yield _decode(f"decode tq3, heads of {head_dim}", tq3, (90,), head_dim)
    yield _decode("decode tq3, trees of 8", tq3, (80, 90), tokens=8)
    yield _attend("attend tq3, chunks of a prompt", tq3, (80, 90), tokens=16)
    layout = _layout(tq3, 128)
    yield Row("append", Variant("append", constants.append_constants(layout, 0)), (90,))
    sealed = constants.seal_constants(layout, 0, FP8_MOST)
    yield Row("seal tq3", Variant("seal", sealed, warps=constants.SEAL_WARPS), FEW)
    for level in ("tq3", "ct3"):
        own = _layout(LEVELS[level], 128)
        asked = Variant("query", constants.query_constants(own, 0, 4), constants.query_warps(own, 0))
        yield Row(f"query {level}", asked, (90,))
    merged = constants.merge_constants(layout, 0, 4, _tiling(128, 4, 1)) | {"scales": None}
    yield Row("merge tq3", Variant("merge", merged), (90,))
    yield from _latents()
    for bits, architectures in ((4, (80, 90)), (8, (90,))):
        yield _skinny(f"skinny int{bits}", bits, architectures)


def _tiling(head_dim: int, group: int, tokens: int) -> Tiling:
    launch = _launch(head_dim, group, tokens, False)
    return Tiling(tokens, launch.block, exact_splits=1, packed_splits=8, tree=tokens == 8)


def _launch(head_dim: int, group: int, tokens: int, calibrated: bool) -> Launch:
    if tokens > 8:
        return constants.chunk_launch()
    return constants.decode_launch(head_dim, tokens * group, calibrated)


def _attend(
    name: str,
    level: LevelName,
    architectures: tuple[int, ...],
    head_dim: int = 128,
    group: int = 4,
    tokens: int = 1,
) -> Row:
    layout = _layout(level, head_dim)
    launch = _launch(head_dim, group, tokens, layout.layers[0].keys.calibrated)
    own = constants.attend_constants(layout, 0, group, _tiling(head_dim, group, tokens))
    variant = Variant("attend", own, launch.warps, launch.stages, launch.registers)
    # A round passes the keys and values of a block.
    bits = uniform(level, 1, head_dim)[0].bits_per_element(head_dim)
    return Row(name, variant, architectures, 2 * launch.block * head_dim, bits)


def _latents() -> Iterator[Row]:
    """The shape of DeepSeek-V3: 128 heads, of which a program takes as many as tensor cores have rows."""
    for level in ("bf16", "fp8"):
        layout = _latent_layout(level)
        launch, numbers = latent.latent_launch(), layout.rank + layout.rope
        tiling = Tiling(1, launch.block, exact_splits=1, packed_splits=8)
        own = latent.latent_constants(layout, LATENT_HEADS, LATENT_STEP, constants.LEAST_ROWS, tiling)
        variant = Variant("latent", own, launch.warps, launch.stages, launch.registers)
        bits = 8 * layout.token_bytes / numbers
        yield Row(f"latent {level}, decode", variant, LATENT, launch.block * numbers, bits)
    layout = _latent_layout("fp8")
    yield Row("latent_append", Variant("latent_append", latent.latent_append_constants(layout)), (90,))
    sealed = latent.latent_seal_constants(layout, FP8_MOST)
    yield Row("latent_seal fp8", Variant("latent_seal", sealed), (90,))


def _latent_layout(level: LatentLevel) -> LatentLayout:
    return LatentLayout(
        level=level, page_tokens=32, sink_pages=1, recent_pages=4, rank=512, rope=64, layers=1
    )


def _decode(
    name: str,
    level: LevelName,
    architectures: tuple[int, ...],
    head_dim: int = 128,
    group: int = 4,
    tokens: int = 1,
) -> Row:
    own = constants.attend_constants(_layout(level, head_dim), 0, group, _tiling(head_dim, group, tokens))
    variant = Variant("decode", own, cuda_decode.WARPS)
    bits = uniform(level, 1, head_dim)[0].bits_per_element(head_dim)
    # In a round each warp passes a block of its own.
    return Row(name, variant, architectures, cuda_decode.WARPS * 2 * cuda_decode.BLOCK * head_dim, bits)


def _skinny(name: str, bits: int, architectures: tuple[int, ...]) -> Row:
    """Of a matrix of Llama 3.1 8B, behind the gate of a layer."""
    form = weight_format("int4-rtn" if bits == 4 else "int8", 64)
    rows, cols = 4096, 14336
    _, cut = product_tilings(rows, cols, form)[0]
    own = {"ROWS": rows, "COLS": cols, "BITS": bits, "GROUP": form.group, "ROUNDED": True}
    variant = Variant("skinny", own | cut | {"BIAS": False, "ADD": True}, cut["warps"])
    numbers = cut["warps"] * cuda_skinny.PASSED * 8 // bits
    return Row(name, variant, architectures, numbers, form.bits_per_weight)


def _layout(level: LevelName, head_dim: int) -> CacheLayout:
    return CacheLayout(
        level=level,
        page_tokens=32,
        sink_pages=1,
        recent_pages=4,
        kv_heads=KV_HEADS,
        head_dim=head_dim,
        layers=uniform(level, 1, head_dim),
        signs="" if level == "bf16" else signs(head_dim),
    )


def _line(row: Row, compiled: Compiled, cache: Path) -> str:
    slots = bound = ""
    if row.bits is not None:
        text = disassemble(compiled, cache)
        if row.variant.kernel == "skinny":
            # The longer one is of more than eight rows.
            count = min(loops(text, "IMMA"))
        else:
            # Of decode, only packed pages are multiplied as integers.
            count = max(loops(text, "IMMA" if row.variant.kernel == "decode" else "MMA"))
        slots = f"{count * row.variant.warps * WARP / row.numbers:.1f}"
        bound = f"{_bound(row.bits):.1f}"
    cells = (row.name, f"sm_{compiled.capability}", compiled.registers, compiled.stack, compiled.shared)
    return "| " + " | ".join(str(cell) for cell in (*cells, slots, bound)) + " |"


def loops(disassembly: str, product: str = "MMA") -> list[int]:
    """Instructions between a label and the jump back to it, of each loop that multiplies matrices."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    found = []
    for end, text in enumerate(instructions):
        jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)
        begin = labels.get(jump[1], end + 1) if jump else end + 1
        body = instructions[begin : end + 1]
        if any(product in line for line in body):
            found.append(len(body))
    return found


def _h200() -> Target:
    return load_target("h200-sxm", Path())


def _bound(bits: float) -> float:
    """Slots of an H200 in the time in which its memory yields one number of so many bits."""
    return _slots_per_second() / (_h200().bandwidth_gbs * 1e9 / (bits / 8))


def _slots_per_second() -> float:
    return slots_per_second(_h200(), load_facts().coefficients)


def _head() -> str:
    runs = load_kernel_runs().current
    told = "\n".join(
        f"- {run.kernel}: compute capability {run.compute_capability}, {run.source}" for run in runs
    )
    verified = (
        f"Run on a device as they are now:\n\n{told}"
        if runs
        else "**Unverified**: no kernel was run on a GPU since it was last changed\n"
        "(`compiler/infer_compile/catalog/cuda_kernels.yaml`), and none is chosen by default."
    )
    return HEAD.format(
        triton=version("triton"),
        nvrtc=nvrtc.version(),
        verified=verified,
        bandwidth=_h200().bandwidth_gbs / 1e3,
        slots=_slots_per_second() / 1e12,
        exact=_bound(16),
    )


def _foot() -> str:
    return (
        f"\nSources: `{sources_digest()}`. Pages of 32 tokens, {KV_HEADS} key-value heads; "
        "heads of 128 and groups of 4 where nothing else is said. Latent attention as of DeepSeek-V3: latent "
        f"vectors of 512, rotary keys of 64, {LATENT_HEADS} heads, 16 of them in a program: each of the "
        f"{LATENT_HEADS // 16} programs of a page has the slots of its own.\n"
    )


if __name__ == "__main__":
    main()
