"""The table of a GPU's step: what is launched, in which order, on what."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from infer_compile.codegen.launches import step_table
from infer_compile.codegen.tiles import WeightParts, tiled, tiled_scales
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.lower.signs import signs
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import CacheLayout, LevelName, uniform
from infer_compile.runtime.formats.launches import Cases, Launch, Matmul, StepTable, View
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import weight_format

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "gpu_step.json"


def program(
    weights: str = "int4-rtn", level: LevelName = "tq3", layers: int = 1, **changes: object
) -> Program:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 300,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }
    graph = build(config, "golden")
    layout = CacheLayout(
        level=level,
        page_tokens=int(str(changes.pop("page_tokens", 64))),
        sink_pages=1,
        recent_pages=1,
        kv_heads=2,
        head_dim=64,
        layers=uniform(level, layers, 64),
        signs="" if level == "bf16" else signs(64),
    )
    limits = {
        "max_context": 4096,
        "max_sequences": 8,
        "max_batch_tokens": 512,
        "exact_pages": 64,
        "packed_pages": 0 if level == "bf16" else 512,
    }
    return assemble(graph, weight_format(weights, 64), layout, Limits.model_validate(limits | changes))


def test_the_table_is_the_golden_one() -> None:
    """After an intended change: write ``step_table(program()).to_json()`` there."""
    assert step_table(program()).to_json() == GOLDEN.read_text()


def test_a_table_survives_its_file() -> None:
    table = step_table(program(level="k8v4"))
    assert StepTable.from_json(table.to_json()) == table


def kernels(table: StepTable) -> list[str]:
    """What a step of a single row launches."""
    found = []
    for line in (*table.lines, *table.head):
        if isinstance(line, Launch):
            found.append(line.kernel)
        elif isinstance(line, Cases):
            found += [launch.kernel for launch in line.cases[0].launches]
        else:
            found.append("matmul")
    return found


def test_few_launches_make_a_layer() -> None:
    one, two = (Counter(kernels(step_table(program("bf16", "bf16", layers)))) for layers in (1, 2))
    assert two - one == {
        "norm.norm": 2,
        "matmul": 4,
        "turn.turn": 1,
        "append.append": 1,
        "attend.attend": 1,
        "merge.merge": 1,
        "gate.gate": 1,
    }
    rounded = Counter(kernels(step_table(program(layers=2)))) - Counter(kernels(step_table(program())))
    assert rounded["seal.seal"] == rounded["query.query"] == 1 and not rounded["round.round"]
    assert rounded["linear.linear"] == 4 and rounded["norm.norm"] == 2


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4-rtn", "fp8"])
@pytest.mark.parametrize("level", ["bf16", "fp8", "tq3", "ct3"])
@pytest.mark.parametrize("overflow", ["stop", "evict"])
def test_every_name_and_argument_is_known(weights: str, level: LevelName, overflow: str) -> None:
    table = step_table(program(weights, level, layers=2, overflow=overflow))
    known = table.buffers.keys() | table.weights.keys()
    for line in (*table.lines, *table.head):
        if isinstance(line, Matmul):
            assert {line.input, line.weight, line.output} <= known
    for launch in table.launches():
        named = [tensor for tensor in launch.tensors.values() if tensor is not None]
        assert {tensor.name if isinstance(tensor, View) else tensor for tensor in named} <= known, launch
        given = [*launch.tensors, *launch.counts, *launch.numbers, *launch.constants]
        assert sorted(given) == sorted(arguments(launch.kernel)), launch.kernel


def arguments(kernel: str) -> list[str]:
    """Of the kernel's function, read from its source."""
    file, _, name = kernel.partition(".")
    source = (ROOT / "kernels" / "cuda" / f"{file}.py").read_text()
    found = re.search(rf"^def {name}\((.*?)\):", source, re.DOTALL | re.MULTILINE)
    assert found is not None, kernel
    return [part.split(":")[0].strip() for part in found[1].split(",") if part.strip()]


def test_a_product_of_fp8_is_the_librarys_and_the_scales_are_a_kernels() -> None:
    table = step_table(program("fp8", "bf16"))
    layer = [line for line in table.lines if getattr(line, "kernel", "").startswith("scale")]
    assert [launch.constants["ADD"] for launch in layer if isinstance(launch, Launch)] == [False, True] * 2
    products = [line for line in table.lines if isinstance(line, Matmul)]
    assert [table.weights[line.weight].dtype for line in products] == ["e4m3"] * 4
    assert {(line.input, line.output, line.bias, line.add) for line in products} == {
        ("quantized", "products", None, False)
    }
    # A row's scale is of all of the row: one program makes it.
    rounding = [each for each in table.launches() if each.constants.get("E4M3")]
    assert len(rounding) == 4 and all(each.grid[1:] in ((), (1,)) for each in rounding)


def test_what_one_line_writes_the_next_may_read() -> None:
    """No launch reads a buffer that nobody filled: neither the caller nor a line before it."""
    table = step_table(program(layers=2, overflow="evict"))
    filled = {*table.inputs, "exact_pool", "packed_pool", "broken"}
    writes = {
        "output",
        "out",
        "operand",
        "scales",
        "cosine",
        "sine",
        "factors",
        "steps",
        "sums",
        "logs",
        "turned",
    }
    for line in (*table.lines, *table.head):
        launches = [line] if isinstance(line, Launch) else []
        if isinstance(line, Cases):
            launches = list(line.cases[0].launches)
        for launch in launches:
            makes = writes & {
                "linear.linear": {"output"},
                "attend.attend": {"sums", "logs"},
                "turn_back.turn_back": {"turned"},
                "merge.merge": {"out", "scales"},
                "turn.turn": set(),
            }.get(launch.kernel, writes)
            for argument, tensor in launch.tensors.items():
                name = tensor.name if isinstance(tensor, View) else tensor
                if name in table.buffers and argument not in makes:
                    assert name in filled or name == "attend.sums", (launch.kernel, argument, name)
            filled |= {str(name) for argument, name in launch.tensors.items() if argument in makes}


def test_weights_take_the_planned_bytes() -> None:
    """But for rows and groups that fill up tiles, and what the program does not store."""
    subject = program()
    parts = WeightParts(subject).parts
    for tensor in subject.tensors:
        own = [part.bytes for name, part in parts.items() if name in (tensor.name, f"{tensor.name}.scales")]
        assert tensor.bytes <= sum(own) <= tensor.bytes * (1 + 16 / max(tensor.rows, 16))
    ends = sorted((part.offset, part.offset + part.bytes) for part in parts.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


def test_tiles_hold_every_weight_once() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(-8, 8, (20, 96)).astype(np.int8)
    scales = rng.random((20, 3)).astype(ml_dtypes.bfloat16)
    packed = tiled(values, 4, 32)
    assert packed.shape == (2, 2, 16, 32)
    low, high = packed << 4 >> 4, packed >> 4
    both = np.stack([low, high], axis=2).transpose(0, 3, 1, 2, 4).reshape(32, 128)
    assert np.array_equal(both[:20, :96], values) and not both[20:].any() and not both[:, 96:].any()
    lying = tiled_scales(scales, 4)
    assert lying.shape == (2, 4, 16)
    assert np.array_equal(lying.transpose(0, 2, 1).reshape(32, 4)[:20, :3], scales.view(np.uint16))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"page_tokens": 24}, "pages of 24 tokens"),
    ],
)
def test_what_has_no_kernel_is_refused_by_name(change: dict[str, object], says: str) -> None:
    with pytest.raises(InferCompileError, match=rf"IC315.*{says}"):
        step_table(program(**change))  # type: ignore[arg-type]


def test_sizes_that_the_librarys_product_of_fp8_does_not_take_are_refused() -> None:
    subject = program("fp8", "bf16")
    odd = tuple(
        tensor.model_copy(update={"rows": tensor.rows + 8}) if "mlp.down" in tensor.name else tensor
        for tensor in subject.tensors
    )
    with pytest.raises(InferCompileError, match=r"IC315.*mlp\.down in fp8: 264 x 512"):
        step_table(subject.model_copy(update={"tensors": odd}))
