"""Heads that draft, and models that tell them their states, on the GPU engine: against the reference, the
kernels run by Triton's interpreter."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
from pathlib import Path

import numpy as np
import pytest
import torch
from test_heads import CONFIG, LAYERS, MODEL, RNG, Built, agree, chain, fed, program_of, random_heads

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.codegen.gpu_engine import emit
from infer_compile.lower.lower import telling
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.heads import joined
from infer_compile.quantize.read import reference_loader
from infer_compile.quantize.write import write
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.program import Program
from infer_compile.runtime.formats.weights import BF16, weight_format

CUTS = (Tiling(1, 32, 1, 0), Tiling(16, 32, 1, 0, tree=True))


def opened(program: Program, weights: Path, folder: Path) -> CudaEngine:
    torch.set_num_threads(1)
    emit(program, None, weights, folder, CUTS)
    return CudaEngine(folder, "cpu")


@pytest.mark.parametrize("before", [False, True])
def test_an_eagle3_layer_agrees_with_the_reference(before: bool, tmp_path: Path) -> None:
    """Fed three tokens, of which two are told, then one."""
    built = Built(tmp_path, *random_heads.eagle3(CONFIG, LAYERS, norm_before_residual=before))
    engine = opened(built.program, built.folder, tmp_path / "engine")
    reference, width = built.reference("bf16"), built.program.features
    for count, start, outputs in ((3, 0, 2), (1, 3, 1)):
        tokens = RNG.integers(0, 150, count).astype(np.int32)
        step = chain(tokens, start, fed(width, count, count), outputs)
        agree(*(each.step([step], logits=True, hidden=True) for each in (engine, reference)))
    for wrong in (None, fed(width + 1, 1, 8)):
        with pytest.raises(InferCompileError, match="IC521"):
            engine.step([chain(np.array([7], np.int32), 0, wrong, 1)])


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_medusa_heads_agree_with_the_reference(weights: str, tmp_path: Path) -> None:
    """Without a cache; logits of all heads side by side, each behind a gap."""
    built = Built(tmp_path, *random_heads.medusa(CONFIG, heads=2, blocks=2))
    program = program_of(built.heads.graph(2), BF16 if weights == "bf16" else weight_format(weights, 64))
    own, model = Checkpoint.open(tmp_path / "heads"), Checkpoint.open(tmp_path / "model")
    write(joined(own, model, program, built.heads.names), program, tmp_path / "again", config={})
    engine = opened(program, tmp_path / "again", tmp_path / "engine")
    reference = ReferenceEngine(program, reference_loader(tmp_path / "again"))
    batch = [chain(np.zeros(1, np.int32), 0, fed(program.features, 1, row), 1) for row in range(3)]
    found, expected = (each.step(batch, logits=True, hidden=True) for each in (engine, reference))
    agree(found, expected)
    assert found.logits is not None and not found.logits[:, 150:160].any()


def test_a_model_tells_what_goes_into_its_layers(tmp_path: Path) -> None:
    """Of every token of a step, also where no logits are asked for."""
    built = Built(tmp_path, *random_heads.medusa(CONFIG))
    program = telling(program_of(MODEL), (0, 2, 3))
    write(Checkpoint.open(tmp_path / "model"), program, tmp_path / "again", config=CONFIG)
    engine = opened(program, tmp_path / "again", tmp_path / "engine")
    reference = ReferenceEngine(program, reference_loader(tmp_path / "again"))
    tokens = RNG.integers(0, 150, 4).astype(np.int32)
    for first, outputs in ((0, 0), (3, 1)):
        step = chain(tokens[first : first + 3], first, None, outputs)
        results = [each.step([step], logits=True, hidden=True) for each in (engine, reference)]
        assert results[0].hidden is not None and results[0].hidden.shape == (len(step.tokens), 3 * 128)
        agree(*results)
    assert np.array_equal(results[0].hidden[:, :128], built.embedding[tokens[3:]])
