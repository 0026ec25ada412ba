"""Small drawn models on the GPU engine and on the reference, and the steps that both run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from driver import Driver, Place
from levels import draw_layout
from shapes import draw_sampling, reference_of, write_model
from test_cpu_engine import check_tokens, errors_of

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.codegen.gpu_engine import emit
from infer_compile.codegen.repack import TABLES
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.formats.program import Limits, Overflow, Program
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.step import SequenceStep

# docs/cuda.md: what is rounded otherwise than in the slow form, and how far it may lead.
ROW_ERROR = 0.1
# Where nothing is: without a compressed page, before the first activation that rounds the other way.
UNDISTURBED_ERROR = 1e-5


@dataclass(frozen=True)
class Case:
    family: str
    weights: str
    levels: tuple[LevelName, ...]
    sink_pages: int = 0
    window: int | None = None
    tied: bool = False
    overflow: Overflow = "stop"
    context: int = 96
    checked: int = 0


MIXTURES: dict[str, dict[str, object]] = {
    "MixtralForCausalLM": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "Qwen2MoeForCausalLM": {
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 96,
    },
}
CASES = (
    Case("Qwen3ForCausalLM", "int4-rtn", ("bf16", "bf16"), tied=True),
    Case("LlamaForCausalLM", "int4-rtn", ("tq3", "int8")),
    Case("Qwen2ForCausalLM", "bf16", ("fp8", "bf16"), tied=True),
    Case("Qwen2ForCausalLM", "fp8", ("tq3", "bf16")),
    Case("MixtralForCausalLM", "bf16", ("bf16",)),
    Case("MixtralForCausalLM", "fp8", ("bf16",)),
    Case("Qwen2MoeForCausalLM", "int4-rtn", ("bf16",)),
    Case("MistralForCausalLM", "int8", ("ct3", "ct2"), sink_pages=1, window=25),
)


@dataclass
class Pair:
    """The two engines of one drawn model."""

    program: Program
    reference: ReferenceEngine
    engine: CudaEngine
    folder: Path


def pair(
    case: Case,
    folder: Path,
    tilings: tuple[Tiling, ...] | None = None,
    device: str = "cpu",
    capability: int | None = None,
) -> Pair:
    """Both engines; with a ``capability`` the kernels are compiled ahead of time."""
    rng = np.random.default_rng(11)
    config = {
        "architectures": [case.family],
        "model_type": case.family.removesuffix("ForCausalLM").lower(),
        "vocab_size": 50,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": len(case.levels),
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": case.window,
        "tie_word_embeddings": case.tied,
        "hidden_act": "silu",
        **MIXTURES.get(case.family, {}),
    }
    layout = draw_layout(rng, list(case.levels), 1, 64, 16, case.sink_pages, recent_pages=0)
    limits = Limits(
        max_context=case.context,
        max_sequences=3,
        max_batch_tokens=48,
        exact_pages=20,
        packed_pages=20 if layout.compressed else 0,
        overflow=case.overflow,
        checked_tokens=case.checked,
    )
    program = assemble(build(config, "drawn"), weight_format(case.weights, 32), layout, limits)
    model = write_model(rng, config, program, folder)
    (folder / "engine").mkdir()
    (folder / "engine" / TABLES).write_bytes((folder / TABLES).read_bytes())
    emit(program, capability, model, folder / "engine", tilings)
    engine = CudaEngine(folder / "engine", device)
    return Pair(program, reference_of(program, model), engine, folder / "engine")


def steps_of(program: Program, driver: Driver) -> list[list[SequenceStep]]:
    """Of three sequences: a first token, a prompt in two chunks, drafts of which some are kept, a tree."""
    rng = np.random.default_rng(5)

    def some(count: int) -> list[int]:
        return rng.integers(0, program.vocabulary, count).tolist()

    prompt, other = driver.open(64), driver.open(16)
    alone: Place = driver.open(16)
    batches = [
        [alone.feed(some(1))],
        [prompt.feed(some(20), outputs=1)],
        [prompt.feed(some(12), outputs=2), other.feed(some(3), outputs=0)],
        [prompt.feed(some(1)), other.feed(some(1)), alone.feed(some(1))],
        [prompt.feed(some(4), accepted=1), other.feed(some(1))],
        [prompt.feed(some(4), accepted=1, parents=[-1, 0, 0, 2]), alone.feed(some(2), accepted=0)],
        [prompt.feed(some(5), outputs=1), other.feed(some(3), accepted=0, parents=[-1, -1, 1])],
    ]
    for step in (step for batch in batches[1:] for step in batch):
        if rng.random() < 0.5:
            step.sampling = draw_sampling(rng)
    return batches


def compare(both: Pair, batches: Sequence[list[SequenceStep]], weights: str) -> None:
    """Runs all steps on both engines, and holds the one against the other."""
    closest = np.inf
    for batch in batches:
        expected = both.reference.step(batch, logits=True, hidden=True)
        result = both.engine.step(batch, logits=True, hidden=True)
        assert result.logits is not None and result.hidden is not None
        assert expected.logits is not None and expected.hidden is not None
        errors = errors_of(result.logits, expected.logits)
        assert np.all(errors < ROW_ERROR), [len(step.tokens) for step in batch]
        errors = errors_of(result.hidden, expected.hidden)
        closest = np.min(errors, initial=closest)
        assert np.all(errors < ROW_ERROR)
        check_tokens(result, expected, batch)
    # Products of bf16 weights round what they read to bf16.
    assert closest < (UNDISTURBED_ERROR if weights != "bf16" else 0.01)
