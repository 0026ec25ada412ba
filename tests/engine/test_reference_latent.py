"""Latent attention in the reference engine against transformers' DeepSeek models, without experts."""

from __future__ import annotations

from itertools import pairwise

import families
import numpy as np
import pytest
import torch
import transformers
from driver import Driver

from infer_compile.codegen.generate import generate
from infer_compile.graph.graph import Graph
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
CONFIGS: dict[str, tuple[str, dict[str, object]]] = {
    "v3": ("V3", {}),
    "v3-yarn": ("V3", {"rope_parameters": YARN}),
    "v3-halves-and-biases": ("V3", {"rope_interleave": False, "attention_bias": True}),
    "v2": ("V2", {}),
    "v2-queries-at-once": ("V2", {"q_lora_rank": None}),
}


def model(name: str, **changes: object) -> transformers.PreTrainedModel:
    family, special = CONFIGS[name]
    config = getattr(transformers, f"Deepseek{family}Config")(**(SHAPE | special | changes))
    torch.manual_seed(0)
    module = getattr(transformers, f"Deepseek{family}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.uniform_(0.5, 1.5) if tensor.dim() == 1 else tensor.normal_(0.0, 0.12)
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
        program(families.graph(module), level), families.loader(module.state_dict()), exact_dtype=dtype
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
    state = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert {source.name: source.shape for source in graph.sources} == state
    made = program(graph)
    assert {source for tensor in made.tensors for source in tensor.sources} == set(state)
    assert Program.from_json(made.to_json()) == made


@pytest.mark.parametrize("level", ["bf16", "fp8"])
def test_a_token_takes_the_bytes_of_the_layout(level: LatentLevel) -> None:
    module = model("v3")
    engine = ReferenceEngine(program(families.graph(module), level), families.loader(module.state_dict()))
    assert measure(engine).token_bytes == 2 * (32 * (2 if level == "bf16" else 1) + 16 * 2)


def test_models_with_experts_are_refused() -> None:
    graph = families.graph(model("v3", first_k_dense_replace=1))
    with pytest.raises(InferCompileError, match="IC280"):
        program(graph)


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
