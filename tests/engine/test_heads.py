"""Heads as programs: against plain torch, the generated engine against the reference, and what a model tells
them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import random_heads
from random_model import config_of, random_tensors, save_model

from infer_compile.codegen.engine import LIBRARY, PROGRAM, WEIGHTS
from infer_compile.codegen.generate import SOURCE, generate
from infer_compile.codegen.repack import repack
from infer_compile.codegen.toolchain import find
from infer_compile.graph.build import build, build_heads
from infer_compile.graph.heads import Heads
from infer_compile.lower.assemble import assemble
from infer_compile.lower.lower import telling
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.heads import joined
from infer_compile.quantize.read import reference_loader
from infer_compile.quantize.write import write
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import CacheLayout, uniform
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import BF16, weight_format
from infer_compile.runtime.step import SequenceStep, StepResult

CONFIG = config_of(vocab_size=150)
MODEL = build(CONFIG)
LAYERS = (1, 2, 3)
TOKENS = 40
RNG = np.random.default_rng(5)
NOTHING = np.full(4, -1, np.int32)
PAGES = np.arange(4, dtype=np.int32)


def program_of(graph: Any, form: Any = BF16) -> Program:
    attends = bool(graph.attention)
    size = graph.head_dim if attends else 64
    layout = CacheLayout(
        level="bf16",
        page_tokens=32,
        sink_pages=0,
        recent_pages=0,
        kv_heads=graph.kv_heads if attends else 1,
        head_dim=size,
        layers=uniform("bf16", graph.cache_layers, size),
    )
    pages = 4 if attends else 0
    limits = Limits(max_context=128, max_sequences=3, max_batch_tokens=64, exact_pages=pages, packed_pages=0)
    return assemble(graph, form, layout, limits)


class Built:
    """A checkpoint of heads beside its model, as a program and as the weights that a bundle has."""

    def __init__(self, folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors
        save_model(folder / "model", CONFIG, random_tensors(CONFIG))
        random_heads.save(folder / "heads", config, tensors)
        heads = build_heads(config, MODEL)
        assert heads is not None
        self.heads: Heads = heads
        self.program = program_of(heads.graph(3))
        own, model = Checkpoint.open(folder / "heads"), Checkpoint.open(folder / "model")
        self.folder = folder / "written"
        write(joined(own, model, self.program, heads.names), self.program, self.folder, config=config)
        self.embedding = np.asarray(model.read("model.embed_tokens.weight"), np.float32)

    def reference(self, exact: str = "f32") -> ReferenceEngine:
        return ReferenceEngine(self.program, reference_loader(self.folder), exact_dtype=exact)  # type: ignore[arg-type]


def compiled(program: Program, weights: Path, folder: Path) -> CpuEngine:
    (folder / "kernels").mkdir(parents=True)
    (folder / PROGRAM).write_text(program.to_json())
    for name, text in generate(program).items():
        (folder / name).write_text(text)
    repack(program, weights, folder / WEIGHTS)
    find("x86-64").compile(folder / SOURCE, folder / LIBRARY, "portable", extra=("-O0",))
    return CpuEngine(folder, threads=1)


@pytest.fixture(scope="module")
def eagle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("eagle3"), *random_heads.eagle3(CONFIG, LAYERS))


@pytest.fixture(scope="module")
def medusa(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("medusa"), *random_heads.medusa(CONFIG, blocks=2))


def chain(tokens: np.ndarray, start: int, features: np.ndarray | None, outputs: int) -> SequenceStep:
    count = len(tokens)
    return SequenceStep(tokens, start, count, 0, PAGES, NOTHING, outputs=outputs, features=features)


def fed(width: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


def eagle_by_torch(
    built: Built, tokens: np.ndarray, fused: np.ndarray, states: np.ndarray, before: bool
) -> Any:
    """The layer as its authors' code runs it: the states behind it and the logits, of all tokens at once.
    Rows of ``states`` that are not zero are fed back; of the others ``fused`` goes through ``fc``."""
    double = {
        name: torch.from_numpy(np.asarray(values, np.float32)).double()
        for name, values in built.tensors.items()
        if name not in ("d2t", "t2d")
    }

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + 1e-5) * double[name]

    def weight(name: str) -> torch.Tensor:
        return double[f"midlayer.{name}.weight"]

    def turned(heads: torch.Tensor) -> torch.Tensor:
        size = heads.shape[-1]
        angles = torch.outer(
            torch.arange(len(tokens)).double(), 10000.0 ** (-torch.arange(0, size, 2).double() / size)
        )
        cosine, sine = (torch.cat([f(angles)] * 2, dim=-1)[:, None] for f in (torch.cos, torch.sin))
        halves = torch.cat([-heads[..., size // 2 :], heads[..., : size // 2]], dim=-1)
        return heads * cosine + halves * sine

    given = torch.from_numpy(states).double()
    back = given.abs().sum(-1, keepdim=True) > 0
    hidden = torch.where(back, given, torch.from_numpy(fused).double() @ double["fc.weight"].T)
    embedded = torch.from_numpy(built.embedding[tokens]).double()
    normed = norm(hidden, "midlayer.hidden_norm.weight")
    both = torch.cat([norm(embedded, "midlayer.input_layernorm.weight"), normed], -1)
    hidden = normed if before else hidden
    count = len(tokens)
    queries, keys, values = (
        (both @ weight(f"self_attn.{name}_proj").T).view(count, -1, 64) for name in "qkv"
    )
    queries, keys = turned(queries), turned(keys)
    keys, values = (each.repeat_interleave(2, dim=1) for each in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", queries, keys) / 8
    scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
    attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).reshape(count, -1)
    hidden = hidden + attended @ weight("self_attn.o_proj").T
    inner = norm(hidden, "midlayer.post_attention_layernorm.weight")
    gate = torch.nn.functional.silu(inner @ weight("mlp.gate_proj").T)
    hidden = hidden + (gate * (inner @ weight("mlp.up_proj").T)) @ weight("mlp.down_proj").T
    return hidden.float().numpy(), (norm(hidden, "norm.weight") @ double["lm_head.weight"].T).float().numpy()


@pytest.mark.parametrize("before", [False, True])
def test_the_eagle3_layer_is_what_its_authors_code_computes(
    eagle: Built, tmp_path: Path, before: bool
) -> None:
    if before:
        eagle = Built(tmp_path, *random_heads.eagle3(CONFIG, LAYERS, norm_before_residual=True))
    width = CONFIG["hidden_size"]
    tokens = RNG.integers(0, 150, TOKENS).astype(np.int32)
    fused, states = fed(3 * width, TOKENS, 1), fed(width, TOKENS, 2)
    fused[-5:], states[:-5] = 0, 0
    expected, logits = eagle_by_torch(eagle, tokens, fused, states, before)
    engine, features = eagle.reference(), np.concatenate([fused, states], axis=1)
    found, start = [], 0
    for count in (17, 18, 1, 1, 1, 1, 1):
        rows = slice(start, start + count)
        found.append(
            engine.step([chain(tokens[rows], start, features[rows], count)], logits=True, hidden=True)
        )
        start += count
    assert np.allclose(np.concatenate([one.hidden for one in found]), expected, atol=2e-4)
    assert np.allclose(np.concatenate([one.logits for one in found]), logits, atol=2e-4)
    assert logits.shape == (TOKENS, 96)


def test_medusa_heads_are_what_their_authors_code_computes(medusa: Built) -> None:
    states = fed(CONFIG["hidden_size"], 3, 4)
    result = medusa.reference().step(
        [chain(np.zeros(1, np.int32), 0, row[None], 1) for row in states], logits=True
    )
    assert result.logits is not None and result.logits.shape == (3, 2 * 160 + 150)
    double = {
        name: torch.from_numpy(np.asarray(v, np.float32)).double() for name, v in medusa.tensors.items()
    }
    for head in range(3):
        x = torch.from_numpy(states).double()
        for block in range(2):
            name = f"{head}.{block}.linear"
            x = x + torch.nn.functional.silu(x @ double[f"{name}.weight"].T + double[f"{name}.bias"])
        expected = (x @ double[f"{head}.2.weight"].T).float().numpy()
        assert np.allclose(result.logits[:, 160 * head :][:, :150], expected, atol=1e-4)


def agree(one: StepResult, other: StepResult) -> None:
    assert one.logits is not None and other.logits is not None
    assert one.hidden is not None and other.hidden is not None
    for mine, its in ((one.logits, other.logits), (one.hidden, other.hidden)):
        assert mine.shape == its.shape
        assert np.allclose(mine, its, atol=2e-2 * np.abs(its).max(initial=0))


@pytest.mark.parametrize("kind", ["eagle", "medusa"])
def test_the_generated_engine_agrees_with_the_reference(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    built: Built = request.getfixturevalue(kind)
    engine, reference = compiled(built.program, built.folder, tmp_path), built.reference("bf16")
    width = built.program.features
    batches = [
        [chain(np.array([row], np.int32), 0, fed(width, 1, row), 1) for row in range(3)]
        if kind == "medusa"
        else [chain(np.array([1, 2, 3], np.int32), 0, fed(width, 3, 6), 2)],
        [chain(np.array([7], np.int32), 3 if kind == "eagle" else 0, fed(width, 1, 7), 1)],
    ]
    for batch in batches:
        agree(*(each.step(batch, logits=True, hidden=True) for each in (engine, reference)))
    for wrong in (None, fed(width + 1, 1, 8)):
        for each in (engine, reference):
            with pytest.raises(InferCompileError, match="IC521"):
                each.step([chain(np.array([7], np.int32), 0, wrong, 1)])
    engine.close()


def test_a_model_tells_what_goes_into_its_layers(tmp_path: Path) -> None:
    """Of every token of a step, also where no logits are asked for, in both engines; the last is what its
    final norm reads."""
    save_model(tmp_path / "model", CONFIG, random_tensors(CONFIG))
    plain = program_of(MODEL, weight_format("int8", 64))
    program = telling(plain, (0, 2, 3))
    assert program.tells_tokens and not plain.tells_tokens
    assert telling(plain, ()) == plain
    write(Checkpoint.open(tmp_path / "model"), program, tmp_path / "written", config=CONFIG)
    reference = ReferenceEngine(program, reference_loader(tmp_path / "written"))
    engine = compiled(program, tmp_path / "written", tmp_path / "engine")
    tokens = RNG.integers(0, 150, 9).astype(np.int32)
    for first, outputs in ((0, 0), (5, 2)):
        step = chain(tokens[first : first + 5], first, None, outputs)
        results = [each.step([step], logits=True, hidden=True) for each in (engine, reference)]
        assert results[0].hidden is not None and results[0].hidden.shape[1] == 3 * 128
        assert len(results[0].hidden) == len(step.tokens)
        agree(*results)
    embedding = np.asarray(Checkpoint.open(tmp_path / "model").read("model.embed_tokens.weight"), np.float32)
    assert np.array_equal(results[0].hidden[:, :128], embedding[tokens[5:]])
    with pytest.raises(InferCompileError, match="IC521"):
        engine.step([chain(tokens[:1], 0, np.zeros((1, 4), np.float32), 1)])
    engine.close()
