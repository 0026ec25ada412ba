"""Specs, models, devices and coefficients whose plans can be reckoned by hand."""

from __future__ import annotations

from typing import Any

from infer_compile.catalog.engines import EngineKind
from infer_compile.catalog.model import load_card
from infer_compile.catalog.target import Target
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.spec.spec import Spec

# Layers: 2 x (qkv 256 x 64, output 64 x 128, gate and up 256 x 64, down 64 x 128) = 98,304 weights;
# embedding and head 100 x 64 each; five norms of 64.
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
LAYERS, TABLE, NORMS = 98_304, 6_400, 320


def tiny(**config: Any) -> Graph:
    return build(TINY | config, "tiny")


def card(name: str) -> Graph:
    found = load_card(name)
    assert found is not None
    return build(found.config, name)


def cpu(**fields: Any) -> Target:
    """One GB/s and one GFLOPS per figure: a byte and an operation take a nanosecond each."""
    base = {
        "id": "round-cpu",
        "name": "a round processor",
        "vendor": "nobody",
        "kind": "cpu",
        "memory_gb": 4.0,
        "bandwidth_gbs": 1.0,
        "rates": {"bf16_tflops": 0.001},
        "cpu": {"architecture": "x86-64", "isa": "avx2", "cores": 2},
        "sources": {"default": "a test"},
        "confidence": "A",
        "measured": True,
    }
    return Target.model_validate(base | fields)


def gpu(**fields: Any) -> Target:
    base = {
        "id": "round-gpu",
        "name": "a round card",
        "vendor": "NVIDIA",
        "compute_capability": "8.9",
        "kind": "gpu",
        "cpu": None,
        "memory_gb": 24.0,
        "bandwidth_gbs": 1000.0,
        "rates": {"bf16_tflops": 100.0},
        "interconnect": {"name": "a wire", "gbs_per_direction": 100.0},
        "measured": False,
    }
    return cpu(**(base | fields))


def spec(**fields: Any) -> Spec:
    base = {"model": {"source": "tiny"}, "target": "round-cpu", "workload": load()}
    return Spec.model_validate(base | fields)


def load(**fields: Any) -> dict[str, Any]:
    return {"context_tokens": 1024, "input_tokens": 512, "output_tokens": 128, "concurrency": 2} | fields


def engine_kind(**changes: Any) -> EngineKind:
    """All of the memory and nothing lost, but for ``changes``."""
    ideal = {
        "memory_fraction": 1.0,
        "overhead_gib": 0.0,
        "weight_overhead_fraction": 0.0,
        "most_sequences": 64.0,
    }
    made: dict[str, Any] = {
        "kind": "cpu",
        "batch_tokens": {"smallest": 64, "largest": 512, "source": "a test"},
    }
    for name, value in (ideal | changes).items():
        made[name] = figure(value) if isinstance(value, float) else value
    return EngineKind.model_validate(made)


def figure(value: float) -> dict[str, Any]:
    return {"value": value, "basis": "assumption", "source": "a test"}
