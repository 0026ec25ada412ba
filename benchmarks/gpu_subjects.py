"""Our attention at one level of the cache, in one case, as gpu_attention.py times it: the launches, kernels
and tilings of the engine's step, around next to nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_cache import COPIED, Contents, Places, limits_of, spread
from gpu_engine import folder_of, opened, prepare, tables_of
from infer_compile.codegen import cuda_decode
from infer_compile.codegen.cubins import Compiled, disassemble
from infer_compile.codegen.gpu_cubins import by_nvrtc
from infer_compile.codegen.gpu_engine import CUBINS
from infer_compile.codegen.launches import step_table
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.engines.kernels import INDEX
from infer_compile.runtime.formats.kv import CacheLayout, LevelName
from infer_compile.runtime.formats.launches import Cases, Cubins, Launch, Line, StepTable
from infer_compile.runtime.formats.program import Attend, Program
from infer_compile.runtime.formats.weights import BF16
from synthetic_cache import layout_of

WRITING = ("append", "seal")
"""Kernels that write the cache, by their files; they are not timed, as those of peers are not."""
BESIDE = 10 << 30
"""Bytes of what is held beside the cache: what one sequence of 128K tokens is checked with, in float32."""
FACTORS = "attend."
"""What buffers between kernels of attention are called."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table: ``batch`` sequences, each with its last of ``context`` tokens as the query."""

    group: int
    batch: int
    context: int

    def __str__(self) -> str:
        return f"groups of {self.group}, {self.batch} x {self.context}"


@dataclass(frozen=True, slots=True)
class Heads:
    """Key-value heads and their size; tokens of a page, and how many pages differ."""

    count: int = 8
    size: int = 128
    page_tokens: int = 32
    copied: int = COPIED


@dataclass(frozen=True)
class Subject:
    """What is timed: ``run`` computes ``output`` [batch, heads, head_dim], which should be ``expected``."""

    run: Callable[[], object]
    output: Callable[[], torch.Tensor]
    expected: Callable[[], torch.Tensor]
    bytes: int
    """Of the cache, read once."""
    slots: float | None = None
    """Instructions of lanes issued per number of the cache, where the kernel is at hand."""
    kernels: tuple[str, ...] = ()
    """Ours that ran for it."""


def program_of(level: LevelName, heads: Heads, case: Case) -> Program:
    """A model of one layer that is attention and next to nothing else."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": case.group * heads.count,
        "num_key_value_heads": heads.count,
        "head_dim": heads.size,
        "max_position_embeddings": 1 << 20,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    layout = layout_of(level, 1, heads.count, heads.size, heads.page_tokens)
    limits = limits_of(layout, case.batch, case.context, copied=heads.copied)
    return assemble(build(config, "attention"), BF16, layout, limits)


def table_of(program: Program) -> StepTable:
    """The attention of its step, and of its tilings that for single tokens."""
    table = step_table(program)
    lines = tuple(_first(line) for line in table.lines if any(map(attends, launches_of(line))))
    return table.model_copy(update={"lines": lines, "head": ()})


def _first(line: Line) -> Line:
    return line.model_copy(update={"cases": line.cases[:1]}) if isinstance(line, Cases) else line


def launches_of(line: Line) -> Iterator[Launch]:
    """All of its cases."""
    if isinstance(line, Launch):
        yield line
    elif isinstance(line, Cases):
        for case in line.cases:
            yield from case.launches


def attends(launch: Launch) -> bool:
    """Whether it is of attention: it reads or writes the cache, or what such kernels hand on."""
    return any(
        isinstance(name, str) and (name in ("exact_pool", "packed_pool") or name.startswith(FACTORS))
        for name in launch.tensors.values()
    )


def _writes(line: Line) -> bool:
    return all(launch.kernel.partition(".")[0] in WRITING for launch in launches_of(line))


def place_of(work: Path, level: LevelName, heads: Heads, group: int) -> Path:
    return folder_of(work, f"attention-{level}-{heads.count}x{heads.size}-{group}")


def prepared(work: Path, level: LevelName, heads: Heads, group: int, capability: int) -> None:
    """Compile the kernels; no GPU is needed."""
    program = program_of(level, heads, Case(group, 1, 1))
    prepare(place_of(work, level, heads, group), program, table_of(program), capability)


def needed_bytes(level: LevelName, heads: Heads, case: Case) -> int:
    """Of the pools, and of what is copied and checked beside them."""
    program = program_of(level, heads, case)
    layout, limits = program.cache, program.limits
    pools = limits.exact_pages * layout.exact_page_bytes + limits.packed_pages * layout.packed_page_bytes
    return pools + BESIDE


def level_subject(
    level: LevelName, heads: Heads, case: Case, device: str, work: Path, ahead: bool
) -> Subject:
    """Our own attention, its pools filled."""
    program = program_of(level, heads, case)
    table, layout = table_of(program), program.cache
    place = place_of(work, level, heads, case.group)
    engine = opened(place, program, table, device, ahead)
    attend = next(op for layer in program.layers for op in layer if isinstance(op, Attend))
    places = Places(layout, program.limits, case.batch, case.context, heads.copied)
    contents = Contents.drawn(layout, tables_of(program), device, heads.copied)

    inputs = engine.buffer(attend.input).view(-1, program.buffers[attend.input])
    source = contents.rows()
    values = attend.heads * attend.head_dim
    inputs[: len(source), values : values + source[0].numel()] = source.flatten(1)
    engine.prepared([places.first()], [line for line in table.lines if _writes(line)])()
    steps = places.steps(case.context - 1)
    spread(engine, places, steps)

    queries = queries_of(case, heads, device)
    inputs[: case.batch, :values] = queries.flatten(1)
    reading = [line for line in table.lines if not _writes(line)]
    output = next(
        launch.tensors["out"] for launch in reversed(list(table.launches())) if "out" in launch.tensors
    )
    found = engine.buffer(str(output)).view(-1, attend.heads, attend.head_dim)[: case.batch]
    return Subject(
        run=engine.prepared(steps, reading),
        output=lambda: found.float(),
        expected=lambda: reference(queries, lambda i: contents.cache(places, i), heads),
        bytes=case.batch * read_bytes(layout, case.context),
        slots=slots_of(place, table, device, work) if ahead else None,
        kernels=kernels_of(table, ahead and torch.device(device).type == "cuda"),
    )


def kernels_of(table: StepTable, ahead: bool) -> tuple[str, ...]:
    """What is launched, by the files in kernels/cuda."""
    return tuple(
        (ahead and by_nvrtc(launch)) or launch.kernel.partition(".")[0] for launch in table.launches()
    )


def queries_of(case: Case, heads: Heads, device: str) -> torch.Tensor:
    """``[batch, heads, head_dim]`` float32, as bf16 holds them."""
    shape = (case.batch, case.group * heads.count, heads.size)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    return drawn.to(torch.bfloat16).float().to(device)


def reference(queries: torch.Tensor, cache: Callable[[int], torch.Tensor], heads: Heads) -> torch.Tensor:
    """PyTorch's attention in float32, sequence by sequence; ``cache`` gives keys and values of one,
    ``[2, kv_heads, context, head_dim]``. Grouped heads are the rows of one query."""
    found = torch.empty_like(queries)
    with sdpa_kernel(SDPBackend.MATH):
        for sequence, own in enumerate(queries):
            keys, values = cache(sequence)
            rows = own.view(1, heads.count, -1, heads.size)
            mixed = F.scaled_dot_product_attention(rows, keys[None], values[None])
            found[sequence] = mixed.reshape(own.shape)
    return found


def read_bytes(layout: CacheLayout, context: int) -> int:
    """Of one sequence's cache, as its last token reads it."""
    pages = layout.pages(context)
    near = sum(layout.exact(pages - 1, page) for page in range(pages))
    exact = near * layout.page_tokens - (pages * layout.page_tokens - context)
    return exact * layout.exact_token_bytes + (context - exact) * layout.token_bytes


def slots_of(place: Path, table: StepTable, device: str, work: Path) -> float | None:
    """Instructions of lanes per number in the loop of ``attend``, or of what stands for it, counted in its
    cubin."""
    from cuda_kernels import WARP, loops

    if torch.device(device).type != "cuda":
        return None
    launch = next((each for each in table.launches() if each.kernel == "attend.attend"), None)
    major, minor = torch.cuda.get_device_capability(torch.device(device))
    folder = place / CUBINS.format(10 * major + minor)
    if launch is None or not (folder / INDEX).is_file():
        return None
    held = Cubins.model_validate_json((folder / INDEX).read_text(encoding="utf-8"))
    cubin = held.kernels[table.variant(launch)]
    code = (folder / cubin.file).read_bytes()
    text = disassemble(Compiled(held.capability, cubin.entry, 0, cubin.shared, 0, code, ""), work)
    # Keys and values of a block; of decode each warp passes two of its own.
    blocks = launch.constants["BLOCK"]
    if cubin.entry == cuda_decode.ENTRY:
        blocks = 2 * cuda_decode.WARPS * cuda_decode.BLOCK
    return max(loops(text)) * cubin.warps * WARP / (2 * blocks * launch.constants["D"])
