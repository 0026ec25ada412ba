"""Latent attention, and DeepSeek's mixtures, in the reference engine against transformers' models."""

from __future__ import annotations

from itertools import pairwise

import families
import numpy as np
import pytest
import torch
import transformers
from driver import Driver

from infer_compile.codegen.generate import generate
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.graph.storage import native_scheme, weight_bytes
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.latent import LatentLayout, LatentLevel
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import BF16
from infer_compile.runtime.measure import measure

TOKENS, PROMPT = 40, 29
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 48,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 20,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
YARN = families.YARN | {"mscale": 1.0, "mscale_all_dim": 0.8}
EXPERTS = {"first_k_dense_replace": 1, "n_routed_experts": 12, "num_experts_per_tok": 4}
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "v3": ("V3", {}),
    "v3-yarn": ("V3", {"rope_parameters": YARN}),
    "v3-halves-and-biases": ("V3", {"rope_interleave": False, "attention_bias": True}),
    "v2": ("V2", {}),
    "v2-queries-at-once": ("V2", {"q_lora_rank": None}),
    "v3-experts": ("V3", EXPERTS | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}),
    "v3-experts-of-no-group": ("V3", EXPERTS | {"first_k_dense_replace": 0, "norm_topk_prob": False}),
    "v2-experts": ("V2", EXPERTS | {"routed_scaling_factor": 1.5, "rope_parameters": YARN}),
    "v2-experts-in-groups": (
        "V2",
        EXPERTS | {"topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2},
    ),
}


def model(name: str, **changes: object) -> transformers.PreTrainedModel:
    family, special = CONFIGS[name]
    config = getattr(transformers, f"Deepseek{family}Config")(**(SHAPE | special | changes))
    torch.manual_seed(0)
    module = getattr(transformers, f"Deepseek{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(0.0, 0.12)
        for key, tensor in module.named_buffers():
            if key.endswith("e_score_correction_bias"):
                tensor.normal_(0.0, 0.2)
    return module


def program(of: Graph, level: LatentLevel = "bf16", pages: int = 16) -> Program:
    layout = LatentLayout(
        level=level, page_tokens=16, sink_pages=0, recent_pages=0, rank=32, rope=16, layers=of.cache_layers
    )
    limits = Limits(
        max_context=of.max_context,
        max_sequences=4,
        max_batch_tokens=64,
        exact_pages=pages,
        packed_pages=pages if layout.compressed else 0,
    )
    return assemble(of, BF16, layout, limits)


def logits(name: str, level: LatentLevel = "bf16", dtype: str = "f32") -> tuple[np.ndarray, np.ndarray]:
    """A prompt in two chunks, then token by token; and what transformers makes of it all at once."""
    module = model(name)
    tokens = np.random.default_rng(1).integers(0, 97, TOKENS)
    engine = ReferenceEngine(
        program(families.graph(module), level), families.loader(families.state(module)), exact_dtype=dtype
    )
    driver = Driver(engine)
    sequence = driver.open(TOKENS)
    cuts = [0, 13, *range(PROMPT, TOKENS + 1)]
    parts = [driver.step(sequence.feed(tokens[first:last])).logits for first, last in pairwise(cuts)]
    with torch.no_grad():
        expected = module(torch.tensor(tokens[None])).logits[0].numpy()
    return np.concatenate(parts), expected


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str) -> None:
    found, expected = logits(name)
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("level", "bound"), [("bf16", 0.03), ("fp8", 0.15)])
def test_what_the_cache_loses(level: LatentLevel, bound: float) -> None:
    """Of each row of logits, over its spread; before anything is read compressed fp8 is bf16."""
    found, expected = logits("v3", level, "bf16")
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=-1)) / expected.std(axis=-1)
    assert errors.max() < bound
    assert (errors[16:].mean() > 3 * errors[:16].mean()) == (level == "fp8")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_source_is_in_the_checkpoint_and_nothing_else(name: str) -> None:
    module = model(name)
    graph = families.graph(module)
    state = {key: tuple(value.shape) for key, value in families.state(module).items()}
    assert {source.name: source.shape for source in graph.sources} == state
    made = program(graph)
    assert {source for tensor in made.tensors for source in tensor.sources} == set(state)
    assert Program.from_json(made.to_json()) == made


@pytest.mark.parametrize("level", ["bf16", "fp8"])
def test_a_token_takes_the_bytes_of_the_layout(level: LatentLevel) -> None:
    module = model("v3")
    engine = ReferenceEngine(program(families.graph(module), level), families.loader(families.state(module)))
    assert measure(engine).token_bytes == 2 * (32 * (2 if level == "bf16" else 1) + 16 * 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("topk_method", "other"), ("norm_topk_prob", True), ("scoring_func", "sigmoid"), ("mlp_bias", True)],
)
def test_what_no_kernel_of_the_mixture_does_is_refused_by_name(field: str, value: object) -> None:
    config = families.config(model("v2")) | {field: value}
    with pytest.raises(InferCompileError, match=rf"(?s)IC280.*{field}"):
        program(build(config))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_group": 5}, "12 do not make 5 groups"),
        ({"n_group": 12}, "12 do not make 12 groups"),
        ({"n_group": 4, "topk_group": 1}, "num_experts_per_tok 4 is more than 1 groups"),
        ({"n_group": 2, "topk_group": 3}, "topk_group 3 is more than n_group 2"),
    ],
)
def test_groups_that_do_not_go_together_are_refused(changes: dict[str, object], says: str) -> None:
    config = families.config(model("v3-experts")) | {"topk_group": 2} | changes
    with pytest.raises(InferCompileError, match=f"(?s)IC113.*{says}"):
        build(config)


def test_the_bias_of_choices_is_never_rounded() -> None:
    """In bf16 it would not tell experts apart whose scores are close."""
    graph = families.graph(model("v3-experts"))
    made = program(graph)
    (bias,) = (tensor for tensor in made.tensors if tensor.name == "layers.1.mlp.router.bias")
    assert (bias.format.name, bias.bytes) == ("f32", 4 * 12)
    assert made.weight_bytes == weight_bytes(graph, native_scheme(BF16))


def test_sequences_do_not_go_on_without_their_oldest_tokens() -> None:
    graph = families.graph(model("v3"))
    made = program(graph)
    with pytest.raises(InferCompileError, match="IC280"):
        assemble(graph, BF16, made.cache, made.limits.model_copy(update={"overflow": "evict"}))


def test_processors_do_not_run_it_and_say_so() -> None:
    made = program(families.graph(model("v3")))
    with pytest.raises(InferCompileError, match="IC310") as raised:
        generate(made)
    assert "latent attention" in str(raised.value)
