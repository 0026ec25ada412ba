"""The GPU engine with latent attention against the reference, its kernels run by Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_pair import Pair, compare, steps_of
from driver import Driver
from shapes import reference_of, write_model

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.codegen.gpu_engine import emit
from infer_compile.codegen.launches import step_table
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.latent import LatentLayout, LatentLevel
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import weight_format

CUTS = (
    Tiling(tokens=1, block=32, exact_splits=1, packed_splits=1),
    Tiling(tokens=4, block=32, exact_splits=1, packed_splits=1, tree=True),
    Tiling(tokens=16, block=32, exact_splits=1, packed_splits=1, tree=True),
)
CONFIG: dict[str, object] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "moe_intermediate_size": 32,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 3,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}


def program(config: dict[str, object], level: LatentLevel = "bf16", weights: str = "bf16") -> Program:
    graph = build(config, "drawn")
    layout = LatentLayout(
        level=level,
        page_tokens=16,
        sink_pages=0,
        recent_pages=0,
        rank=64,
        rope=16,
        layers=graph.cache_layers,
    )
    limits = Limits(
        max_context=96,
        max_sequences=3,
        max_batch_tokens=48,
        exact_pages=20,
        packed_pages=20 if layout.compressed else 0,
    )
    return assemble(graph, weight_format(weights, 32), layout, limits)


def pair(config: dict[str, object], level: LatentLevel, folder: Path) -> Pair:
    made = program(config, level)
    model = write_model(np.random.default_rng(11), config, made, folder)
    emit(made, None, model, folder / "engine", CUTS)
    return Pair(
        made, reference_of(made, model), CudaEngine(folder / "engine", device="cpu"), folder / "engine"
    )


@pytest.mark.parametrize(("level", "dense", "layers", "steps"), [("bf16", 1, 2, 3), ("fp8", 1, 1, 7)])
def test_agrees_with_the_reference(
    level: LatentLevel, dense: int, layers: int, steps: int, tmp_path: Path
) -> None:
    """Prompts in chunks, single tokens and, in fp8, chains and trees; a layer with experts."""
    torch.set_num_threads(1)
    both = pair(CONFIG | {"num_hidden_layers": layers, "first_k_dense_replace": dense}, level, tmp_path)
    compare(both, steps_of(both.program, Driver(both.reference))[:steps], "bf16")


def test_crooked_heads_and_checked_answers_are_refused() -> None:
    with pytest.raises(InferCompileError, match=r"IC280(.|\n)*qk_nope_head_dim 20"):
        program(CONFIG | {"qk_nope_head_dim": 20})
    made = program(CONFIG)
    checked = made.limits.model_copy(update={"checked_tokens": 32})
    with pytest.raises(InferCompileError, match=r"IC315.*latent attention"):
        step_table(made.model_copy(update={"limits": checked}))
