"""What a sequence leaves behind, on a compiled engine: streams, and pages that others go on from."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from levels import draw_layer
from shapes import Build, compile_engine, reference_of, write_model
from tree import Tree

from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.lower.signs import signs
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.formats.weights import BF16
from infer_compile.runtime.step import Engine, SequenceStep

CONFIG: dict[str, object] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "vocab_size": 120,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.2},
    "use_sliding_window": True,
    "sliding_window": 180,
    "max_window_layers": 1,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}
PAGE, CONTEXT = 32, 200
"""Six whole pages. The second layer's window reaches the sinks, but not always all of them."""
STREAM = np.random.default_rng(2).integers(0, 120, 700).tolist()
SPAN_PAGES = 16
"""Pages that the kernel sums at once; the gap outgrows it."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Engine]:
    folder = tmp_path_factory.mktemp("streams")
    rng = np.random.default_rng(4)
    graph = build(CONFIG, "streams")
    layout = CacheLayout(
        level="ct3",
        page_tokens=PAGE,
        sink_pages=2,
        recent_pages=1,
        kv_heads=graph.kv_heads,
        head_dim=graph.head_dim,
        layers=(draw_layer(rng, "ct3", 64), draw_layer(rng, "tq4", 64)),
        signs=signs(64),
    )
    limits = Limits(
        max_context=CONTEXT,
        max_sequences=12,
        max_batch_tokens=96,
        exact_pages=24,
        packed_pages=24,
        overflow="evict",
    )
    program: Program = assemble(graph, BF16, layout, limits)
    model = write_model(rng, CONFIG, program, folder)
    compiled = compile_engine(program, model, folder / "engine", Build("portable"))
    exact = program.model_copy(update={"cache": layout.unpacked})
    return {
        "reference": reference_of(program, model),
        "cpu": CpuEngine(compiled, 2),
        "exact": reference_of(exact, model),
    }


def answers(engine: Engine, chunk: int, count: int = len(STREAM)) -> np.ndarray:
    tree = Tree(engine)
    branch = tree.open()
    rows = tree.feed(branch, STREAM[:count], chunk, rows=True)
    tree.pages.close(branch.table)
    return rows


def test_a_stream_agrees_with_the_reference(engines: Mapping[str, Engine]) -> None:
    found, expected = answers(engines["cpu"], 96), answers(engines["reference"], 96)
    spread = (expected - expected.mean(axis=1, keepdims=True)).std(axis=1)
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=1)) / spread
    # As in test_cpu_engine.py: here and there a sum rounds to another code.
    assert errors.max() < 0.03
    assert np.median(errors[CONTEXT:]) < 1e-4
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.98


def test_its_bits_do_not_depend_on_how_it_is_cut(engines: Mapping[str, Engine]) -> None:
    expected = answers(engines["cpu"], 96, 400)
    for chunk in (1, 13):
        np.testing.assert_array_equal(answers(engines["cpu"], chunk, 400), expected)


def test_whole_pages_are_shared_through_the_pools(engines: Mapping[str, Engine]) -> None:
    expected = answers(engines["cpu"], 96, 300)[128:]
    tree = Tree(engines["cpu"])
    trunk = tree.open(STREAM[:150])
    tree.feed(trunk, STREAM[:150])
    tree.pages.close(trunk.table)
    for _ in range(2):
        branch, other = tree.open(STREAM[:150]), tree.open(STREAM[:150])
        assert len(branch.tokens) == len(other.tokens) == 128
        # What another writes behind the pages that both hold must not show.
        tree.feed(other, [7] * 10)
        np.testing.assert_array_equal(tree.feed(branch, STREAM[128:300], 50, rows=True), expected)
        tree.pages.close(branch.table)
        tree.pages.close(other.table)


def unpacked_rows(engine: Engine, count: int) -> np.ndarray:
    """Logits of a sequence of which nothing is compressed."""
    rows = []
    pages = np.random.default_rng(5).permutation(24)[: -(-count // PAGE)].astype(np.int32)
    for start in range(0, count, 50):
        tokens = np.array(STREAM[start : min(start + 50, count)], np.int32)
        step = SequenceStep(tokens, start, len(tokens), start // PAGE, pages, None, outputs=len(tokens))
        rows.append(engine.step([step], logits=True).logits)
    return np.concatenate(rows)


def test_without_packed_pages_all_is_seen_exact(engines: Mapping[str, Engine]) -> None:
    """On the engine of a compressed cache, whose exact pages lack what calibration takes away, as on that of
    an exact one."""
    expected = unpacked_rows(engines["exact"], CONTEXT)
    packed = answers(engines["reference"], 96, CONTEXT)
    spread = (expected - expected.mean(axis=1, keepdims=True)).std(axis=1)
    for name in ("cpu", "reference"):
        engines[name].pool("packed")[:] = 0x5A
        found = unpacked_rows(engines[name], CONTEXT)
        assert (engines[name].pool("packed") == 0x5A).all()
        errors, apart = (
            np.sqrt(np.mean((rows - expected) ** 2, axis=1)) / spread for rows in (found, packed)
        )
        assert errors.max() < 0.03
        assert apart.max() > 5 * errors.max()


@pytest.mark.parametrize(
    ("evicted", "because"), [(0, "outside the context"), (40, "not whole pages"), (192, "not whole pages")]
)
def test_a_step_that_evicts_otherwise_is_refused(
    engines: Mapping[str, Engine], evicted: int, because: str
) -> None:
    tree = Tree(engines["cpu"])
    branch = tree.open()
    tree.feed(branch, STREAM[:224])
    branch.table.evicted = evicted
    pages = tree.pages
    pages.evict = lambda *_: 0  # type: ignore[method-assign]
    with pytest.raises(InferCompileError, match=because):
        tree.feed(branch, STREAM[224:230])
