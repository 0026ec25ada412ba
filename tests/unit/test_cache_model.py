"""The fast float32 model against transformers, and the simulated cache against the reference engine."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_model import config_of, random_tensors, save_model

from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.lower.signs import signs
from infer_compile.quantize.cache.model import Heads, Model, bf16_loader, exact, token_rows
from infer_compile.quantize.cache.simulate import (
    ALL,
    LayerForms,
    Simulated,
    Visibility,
    of_layout,
    visibility_of,
)
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.kv import CacheLayout, uniform
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.step import SequenceStep

torch = pytest.importorskip("torch")

TOKENS = 56


def program_of(config: dict[str, Any], level: str = "bf16", recent_pages: int = 1) -> Program:
    graph = build(config)
    cache = CacheLayout(
        level=level,
        page_tokens=8,
        sink_pages=1,
        recent_pages=recent_pages,
        kv_heads=graph.kv_heads,
        head_dim=graph.head_dim,
        layers=uniform(level, graph.cache_layers, graph.head_dim),
        signs=signs(graph.head_dim),
    )
    limits = Limits(max_context=64, max_sequences=8, max_batch_tokens=64, exact_pages=9, packed_pages=9)
    return assemble(graph, weight_format("bf16", 0), cache, limits)


def model_of(folder: Path, config: dict[str, Any], **settings: Any) -> Model:
    save_model(folder, config, random_tensors(config))
    return Model(program_of(config, **settings), bf16_loader(Checkpoint.open(folder)))


def tokens_of(config: dict[str, Any], sequences: int = 3) -> np.ndarray:
    draw = np.random.default_rng(5)
    return draw.integers(0, config["vocab_size"], (sequences, TOKENS)).astype(np.int32)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, tied": {"tie_word_embeddings": True},
    "mistral with a window": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 24,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
    },
}


def settings_of(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    config = config_of(**ARCHITECTURES[name])
    tensors = random_tensors(config)
    draw = np.random.default_rng(8)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}.self_attn."
        for part in "qkv":
            if name == "qwen2":
                rows = len(tensors[f"{prefix}{part}_proj.weight"])
                tensors[f"{prefix}{part}_proj.bias"] = draw.standard_normal(rows).astype(np.float32)
            if name == "qwen3" and part != "v":
                tensors[f"{prefix}{part}_norm.weight"] = draw.standard_normal(64).astype(np.float32)
        if name == "mixtral":
            stem = f"model.layers.{layer}."
            inner = [tensors.pop(f"{stem}mlp.{part}_proj.weight") for part in ("gate", "down", "up")]
            mixture = f"{stem}block_sparse_moe."
            tensors[f"{mixture}gate.weight"] = draw.standard_normal((3, 128)).astype(np.float32)
            for expert, (number, matrix) in itertools.product(range(3), enumerate(inner, 1)):
                tensors[f"{mixture}experts.{expert}.w{number}.weight"] = np.roll(matrix, expert, 0)
    return config, tensors


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config, tensors = settings_of(name)
    save_model(tmp_path, config, tensors)
    model = Model(program_of(config), bf16_loader(Checkpoint.open(tmp_path)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).float()
    tokens = tokens_of(config)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens.astype(np.int64))).logits
        found = model.logits(model.run(model.embed(tokens)))
    assert float((found - expected).abs().max()) < 1e-3 * float(expected.abs().max())


def test_streamed_weights_and_single_layers_give_the_same_states(tmp_path: Path) -> None:
    config = config_of()
    model = model_of(tmp_path, config)
    streamed = Model(model.program, bf16_loader(Checkpoint.open(tmp_path)), resident=False)
    tokens = tokens_of(config)
    with torch.no_grad():
        start = model.embed(tokens)
        whole = model.run(start)
        parts = streamed.run(streamed.run(start, last=2), first=2)
    assert torch.equal(whole, parts)


def test_where_a_sequence_begins_turns_its_keys_and_changes_no_result(tmp_path: Path) -> None:
    model = model_of(tmp_path, config_of())
    seen: list[Any] = []

    def look(heads: Heads) -> Any:
        seen.append(heads.keys.clone())
        return exact(heads)

    with torch.no_grad():
        start = model.embed(tokens_of(config_of()))
        first, later = (model.layer(0, start, look, start=position) for position in (0, 1000))
    assert torch.allclose(first, later, atol=1e-4)
    assert not torch.allclose(seen[0], seen[1], atol=0.1)


def test_a_cache_in_full_precision_changes_nothing_wherever_it_is_visible(tmp_path: Path) -> None:
    config = config_of(**ARCHITECTURES["mistral with a window"])
    model = model_of(tmp_path, config)
    tokens = tokens_of(config)

    def same(vectors: Any) -> Any:
        return vectors

    for visibility in (ALL, Visibility(8, 1, 1), Visibility(8, 0, 0)):
        hook = Simulated([LayerForms(same, same, same, same)] * 3, visibility)
        with torch.no_grad():
            expected = model.run(model.embed(tokens), exact)
            found = model.run(model.embed(tokens), hook)
        assert torch.allclose(found, expected, atol=1e-4)


def test_the_share_of_compressed_tokens_is_that_of_the_attention(tmp_path: Path) -> None:
    config = config_of()
    model = model_of(tmp_path, config)
    shares: dict[int, float] = {}

    def flat(heads: Heads) -> Any:
        hook = Simulated([None] * 3, Visibility(8, 1, 1))
        out = hook(
            Heads(heads.layer, heads.sequences, heads.queries * 0, heads.keys, heads.values, 1.0, None)
        )
        shares[heads.layer] = hook.mass[heads.layer].share
        return out

    with torch.no_grad():
        model.run(model.embed(tokens_of(config)), flat)
    # With equal weights: of a query's t + 1 tokens those in pages 1 to P - 2 are compressed.
    expected = np.mean([max(0, t // 8 - 2) * 8 / (t + 1) for t in range(TOKENS)])
    assert shares[0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("level", ["bf16", "tq3", "fp8"])
def test_a_simulated_cache_is_close_to_the_reference_engine(level: str, tmp_path: Path) -> None:
    config = config_of()
    model = model_of(tmp_path, config, level=level, recent_pages=0)
    cache = model.program.cache
    tokens = tokens_of(config, 1)
    visibility = ALL if level == "bf16" else visibility_of(cache)
    hook = Simulated(of_layout(cache, {}), visibility)
    with torch.no_grad():
        found = model.logits(model.run(model.embed(tokens), hook))[0].numpy()
        plain = model.logits(model.run(model.embed(tokens)))[0].numpy()
    engine = ReferenceEngine(model.program, bf16_loader(Checkpoint.open(tmp_path)))
    pages = np.arange(-(-TOKENS // 8), dtype=np.int32)
    step = SequenceStep(
        tokens=tokens[0],
        start=0,
        outputs=TOKENS,
        accepted=TOKENS,
        sealed=0,
        exact=pages,
        packed=pages,
    )
    expected = engine.step([step], logits=True).logits
    # What is left is the rounding of factors and weights to bytes, which the simulation leaves out.
    assert np.square(found - expected).mean() < 5e-3 * np.square(plain - expected).mean()


def test_token_rows_drop_what_does_not_fill_a_row() -> None:
    assert token_rows(range(10), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
