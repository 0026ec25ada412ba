"""Lowering: tensors, formats, rounding and buffers; what runs is what was counted."""

from __future__ import annotations

import itertools

import pytest

from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.graph.storage import native_scheme, output_buffers, token_buffers, weight_bytes
from infer_compile.lower.assemble import assemble
from infer_compile.lower.lower import lower
from infer_compile.lower.signs import signs
from infer_compile.planner.plan import KvPart, LimitsPart, ModelPart, Plan, WeightsPart
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.formats import program as concrete
from infer_compile.runtime.formats.kv import CacheLayout, LevelName, uniform
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import BF16, FP8, WeightFormat, weight_format

FORMATS = (
    BF16,
    FP8,
    *(weight_format(name, group) for name in ("int8", "int4-rtn") for group in (32, 64, 128)),
)
CONFIG: dict[str, object] = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
LIMITS = Limits(max_context=64, max_sequences=2, max_batch_tokens=16, exact_pages=9, packed_pages=5)


def graph(architecture: str = "LlamaForCausalLM", **changes: object) -> Graph:
    return build(CONFIG | {"architectures": [architecture]} | changes, "small")


def layout(of: Graph) -> CacheLayout:
    return CacheLayout(
        level="bf16",
        page_tokens=32,
        sink_pages=1,
        recent_pages=4,
        kv_heads=of.kv_heads,
        head_dim=of.head_dim,
        layers=uniform("bf16", of.cache_layers, of.head_dim),
    )


def program(of: Graph, weights: WeightFormat = BF16) -> Program:
    return assemble(of, weights, layout(of), LIMITS)


def operations(of: Program) -> list[concrete.Operation]:
    return [*of.prologue, *itertools.chain.from_iterable(of.layers), *of.epilogue]


MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 128,
    "mlp_only_layers": [0],
    "head_dim": 128,
}
QWEN2_MOE = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 384,
    "head_dim": 128,
}
VARIANTS = [
    ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    ("LlamaForCausalLM", {"tie_word_embeddings": True, "head_dim": 128}),
    ("MistralForCausalLM", {"sliding_window": 32}),
    ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    ("Qwen3ForCausalLM", {}),
    ("MixtralForCausalLM", MIXTRAL),
    ("Qwen2MoeForCausalLM", QWEN2_MOE),
    ("Qwen3MoeForCausalLM", QWEN3_MOE),
]


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS)
@pytest.mark.parametrize("weights", FORMATS, ids=lambda form: f"{form.name}-{form.group}")
def test_counted_bytes_are_the_programs(
    architecture: str, changes: dict[str, object], weights: WeightFormat
) -> None:
    of = graph(architecture, **changes)
    assert program(of, weights).weight_bytes == weight_bytes(of, native_scheme(weights))


@pytest.mark.parametrize(("architecture", "changes"), VARIANTS)
@pytest.mark.parametrize("weights", [BF16, FP8, weight_format("int4-rtn", 64)], ids=lambda form: form.name)
def test_a_program_holds_together(
    architecture: str, changes: dict[str, object], weights: WeightFormat
) -> None:
    """Every operation finds its weights, in the right size, and reads what was written before it."""
    of = graph(architecture, **changes)
    lowered = program(of, weights)
    tensors = {tensor.name: tensor for tensor in lowered.tensors}
    assert len(tensors) == len(lowered.tensors)
    read: set[str] = set()
    width: dict[str, int] = {}
    experts = next((one.experts for one in of.experts), 0)

    def vector(name: str, size: int) -> None:
        assert (tensors[name].rows, tensors[name].cols, tensors[name].format) == (1, size, BF16)
        read.add(name)

    for operation in operations(lowered):
        match operation:
            case concrete.Embed(table=table, output=output):
                read.add(table)
                width[output] = tensors[table].cols
            case concrete.Norm(weight=weight, input=source, output=output):
                vector(weight, width[source])
                width[output] = width[source]
            case concrete.HeadNorm(weight=weight, buffer=buffer, first_head=first, heads=heads, head_dim=dim):
                vector(weight, dim)
                assert (first + heads) * dim <= width[buffer]
            case concrete.Quantize(input=source, output=output):
                width[output] = width[source]
            case concrete.Linear(weight=weight, bias=bias, input=source, output=output, add=add):
                tensor = tensors[weight]
                read.add(weight)
                assert tensor.cols == width[source]
                assert (source == "quantized") is (tensor.format.activation != "none")
                if bias:
                    vector(bias, tensor.rows)
                assert not add or width[output] == tensor.rows
                width[output] = tensor.rows
            case concrete.Rotary(buffer=buffer, first_head=first, heads=heads, head_dim=dim):
                assert len(operation.frequencies) == dim // 2
                assert (first + heads) * dim <= width[buffer]
            case concrete.Attend(input=source, output=output, heads=heads, kv_heads=kv_heads, head_dim=dim):
                assert width[source] == (heads + 2 * kv_heads) * dim
                width[output] = heads * dim
            case concrete.Score(weight=weight, input=source, output=output):
                assert tensors[weight].cols == width[source] and tensors[weight].format == BF16
                read.add(weight)
                width[output] = tensors[weight].rows
            case concrete.Route(weight=weight, input=source, output=output, per_token=count):
                assert tensors[weight].cols == width[source] and tensors[weight].format == BF16
                read.add(weight)
                width[output] = 2 * count
            case concrete.ExpertLinear(weight=weight, routes=routes, input=source, output=output):
                tensor, count, rows = tensors[weight], operation.per_token, operation.rows
                read.add(weight)
                assert width[routes] == 2 * count and tensor.rows == experts * rows
                assert (source == "quantized") is (tensor.format.activation != "none")
                assert width[source] == tensor.cols * (count if operation.combine else 1)
                assert not operation.combine or width[output] == rows
                width[output] = rows if operation.combine else count * rows
            case concrete.Gate(input=source, output=output):
                assert width[source] % (2 * operation.width) == 0
                assert operation.portion is None or width[operation.portion] == 1
                width[output] = width[source] // 2
            case concrete.Select(input=source, output=output):
                width[output] = width[source]
        for name, size in width.items():
            assert size <= lowered.buffers[name]
    assert read == set(tensors)
    assert lowered.epilogue[-1].model_dump()["output"] == "logits" and width["logits"] == 1000
    assert set(width) == set(lowered.buffers)
    assert set(lowered.buffers) == set(token_buffers(of, weights)) | set(output_buffers(of))
    assert not set(token_buffers(of, weights)) & set(output_buffers(of))
    sources = {source.name for source in of.sources}
    assert {name for tensor in lowered.tensors for name in tensor.sources} == sources


def test_names_and_stacking() -> None:
    lowered = program(graph("Qwen2ForCausalLM"))
    tensors = {tensor.name: tensor for tensor in lowered.tensors}
    prefix = "model.layers.1."
    qkv = tensors["layers.1.attention.qkv"]
    assert qkv.sources == tuple(f"{prefix}self_attn.{part}_proj.weight" for part in "qkv")
    assert (qkv.rows, qkv.cols) == (512, 256)
    bias = tensors["layers.1.attention.qkv.bias"]
    assert bias.sources == tuple(f"{prefix}self_attn.{part}_proj.bias" for part in "qkv")
    gate_up = tensors["layers.1.mlp.gate_up"].sources
    assert gate_up == (f"{prefix}mlp.gate_proj.weight", f"{prefix}mlp.up_proj.weight")
    layer = {name.removeprefix("layers.0.") for name in tensors if name.startswith("layers.0.")}
    assert layer == {
        *("attention.norm", "attention.qkv", "attention.qkv.bias", "attention.output"),
        *("mlp.norm", "mlp.gate_up", "mlp.down"),
    }
    assert {name for name in tensors if not name.startswith("layers.")} == {"embed", "norm", "head"}


def test_formats_of_tensors() -> None:
    for weights in (weight_format("int8", 64), weight_format("int4-rtn", 32)):
        for tied in (False, True):
            lowered = program(graph("Qwen3ForCausalLM", tie_word_embeddings=tied), weights)
            tensors = {tensor.name: tensor for tensor in lowered.tensors}
            assert tensors["head"].format == weight_format("int8", weights.group)
            assert tensors["head"].sources == ("model.embed_tokens.weight" if tied else "lm_head.weight",)
            for name, tensor in tensors.items():
                if tensor.rows > 1 and name not in ("embed", "head"):
                    assert tensor.format == weights
            assert {name for name, tensor in tensors.items() if tensor.format == BF16} >= {"embed", "norm"}
    tied_bf16 = program(graph(tie_word_embeddings=True))
    assert "head" not in {tensor.name for tensor in tied_bf16.tensors}
    (head,) = (op for op in tied_bf16.epilogue if isinstance(op, concrete.Linear))
    assert head.weight == "embed"


def test_rounding_precedes_every_integer_product() -> None:
    of = graph()
    assert not any(isinstance(op, concrete.Quantize) for op in operations(program(of)))
    lowered = operations(program(of, weight_format("int4-rtn", 64)))
    plain = [op for op in operations(program(of)) if isinstance(op, concrete.Linear)]
    pairs = [
        (before.input, before.group, after.weight)
        for before, after in itertools.pairwise(lowered)
        if isinstance(before, concrete.Quantize) and isinstance(after, concrete.Linear)
    ]
    assert pairs == [(op.input, 64, op.weight) for op in plain]


def test_a_program_survives_its_file() -> None:
    lowered = program(graph("Qwen3ForCausalLM"), weight_format("int8", 64))
    again = Program.from_json(lowered.to_json())
    assert again == lowered and again.digest == lowered.digest
    assert program(graph("Qwen3ForCausalLM"), weight_format("int8", 64)).to_json() == lowered.to_json()
    assert program(graph("Qwen3ForCausalLM"), weight_format("int8", 32)).digest != lowered.digest


def test_signs_are_fixed_and_mixed() -> None:
    # Bundles hold keys that were rotated with these: another value is another format.
    assert signs(64) == "c29ce99113c6121f"
    assert signs(128) == "a1e181e96232e4a4846f77b7c976516b"
    assert bin(int(signs(256), 16)).count("1") == pytest.approx(128, abs=40)


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(InferCompileError, match="IC280") as caught:
        program(graph(hidden_act="gelu"))
    assert "gelu" in caught.value.problems[0].because
    with pytest.raises(InferCompileError) as caught:
        program(graph(hidden_size=320, head_dim=64), weight_format("int8", 128))
    assert [problem.code for problem in caught.value.problems] == ["IC281"] * 5


def planned(of: Graph, weights: WeightFormat, level: LevelName = "tq3") -> Plan:
    """The parts of a plan that lowering reads."""
    bits = {"bf16": 16.0, "tq3": 3.25}[level]
    return Plan.model_construct(
        name="small",
        model=ModelPart(
            name="small", source="m", revision=None, architecture=of.architecture, parameters=of.parameters
        ),
        weights=WeightsPart(
            format=weights.name,
            group=weights.group,
            bits_per_weight=weights.bits_per_weight,
            bytes=weight_bytes(of, native_scheme(weights)),
            gib=0.1,
        ),
        kv=KvPart(
            level=level,
            bits_per_element=bits,
            bytes_per_token=int(of.totals.cache_elements_per_token * bits / 8),
            page_tokens=32,
            sink_pages=2,
            recent_pages=3,
            pages=8,
            spare_pages=0,
            exact_pages=11,
            packed_pages=7 if level == "tq3" else 0,
            layers=(level,) * of.layers,
        ),
        limits=LimitsPart(max_context=256, max_sequences=3, max_batch_tokens=48),
    )


@pytest.mark.parametrize("level", ["bf16", "tq3"])
@pytest.mark.parametrize("weights", FORMATS, ids=lambda form: f"{form.name}-{form.group}")
def test_a_plan_is_obeyed(weights: WeightFormat, level: LevelName) -> None:
    of = graph("Qwen3ForCausalLM", head_dim=64)
    plan = planned(of, weights, level)
    lowered = lower(of, plan)
    assert lowered.weight_bytes == plan.weights.bytes
    assert {tensor.format for tensor in lowered.tensors if "mlp.down" in tensor.name} == {weights}
    assert lowered.cache == CacheLayout(
        level=level,
        page_tokens=32,
        sink_pages=2,
        recent_pages=3,
        kv_heads=2,
        head_dim=64,
        layers=uniform(level, 2, 64),
        signs=signs(64) if level == "tq3" else "",
    )
    assert lowered.cache.token_bytes == plan.kv.bytes_per_token
    packed = 7 if level == "tq3" else 0
    assert lowered.limits == Limits(
        max_context=256, max_sequences=3, max_batch_tokens=48, exact_pages=11, packed_pages=packed
    )


def test_a_plan_of_another_model_is_refused() -> None:
    of = graph()
    plan = planned(of, BF16)
    with pytest.raises(InferCompileError) as caught:
        lower(graph("Qwen2ForCausalLM", num_hidden_layers=3), plan)
    assert caught.value.exit is Exit.MISMATCH
    named = [problem.message.split(" for ")[1].split(",")[0] for problem in caught.value.problems]
    assert {problem.code for problem in caught.value.problems} == {"IC283"}
    assert named == ["architecture", "parameters", "layers with a cache", "weight bytes"]
