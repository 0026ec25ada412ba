"""The scheduler on real engines: a tiny random model on the reference and on its compiled CPU engine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import serving
from test_scheduler import Answer, run, submit

from infer_compile.codegen.engine import LIBRARY, PROGRAM, WEIGHTS
from infer_compile.codegen.generate import SOURCE, generate
from infer_compile.codegen.repack import repack
from infer_compile.codegen.toolchain import find
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.lower.signs import signs
from infer_compile.probe.cpu import host_architecture
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.read import reference_loader
from infer_compile.quantize.write import write
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.formats.kv import CacheLayout, uniform
from infer_compile.runtime.formats.program import Limits
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.measure import Measured, measure
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.step import Engine
from infer_compile.runtime.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from random_model import config_of, random_tensors, save_model


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Engine]:
    folder = tmp_path_factory.mktemp("engines")
    config = config_of(vocab_size=262, num_hidden_layers=1, max_position_embeddings=512)
    save_model(folder / "checkpoint", config, random_tensors(config))
    graph = build(config)
    layout = CacheLayout(
        level="tq3",
        page_tokens=32,
        sink_pages=1,
        recent_pages=1,
        kv_heads=graph.kv_heads,
        head_dim=graph.head_dim,
        layers=uniform("tq3", graph.cache_layers, graph.head_dim),
        signs=signs(graph.head_dim),
    )
    limits = Limits(max_context=256, max_sequences=4, max_batch_tokens=48, exact_pages=14, packed_pages=16)
    program = assemble(graph, weight_format("int8", 32), layout, limits)
    model = folder / "model"
    write(Checkpoint.open(folder / "checkpoint"), program, model, config=config)
    engine = folder / "engine"
    (engine / "kernels").mkdir(parents=True)
    (engine / PROGRAM).write_text(program.to_json())
    for name, text in generate(program).items():
        (engine / name).write_text(text)
    repack(program, model, engine / WEIGHTS)
    find(host_architecture()).compile(engine / SOURCE, engine / LIBRARY, "portable", extra=("-O0",))
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    from infer_compile.runtime.engines.reference import ReferenceEngine

    reference = ReferenceEngine(program, reference_loader(model))
    return {"reference": reference, "cpu": CpuEngine(engine, 2)}


KINDS = pytest.mark.parametrize("kind", ["reference", "cpu"])


@KINDS
def test_the_measured_bytes_are_the_layouts(engines: dict[str, Engine], kind: str) -> None:
    layout = engines[kind].program.cache
    assert measure(engines[kind]) == Measured("tq3", layout.token_bytes, layout.exact_token_bytes)
    assert (layout.token_bytes, layout.exact_token_bytes) == (4 * 26, 4 * 128)


def requests() -> list[Request]:
    """Greedy and sampled, some of them long enough to be compressed."""
    random = np.random.default_rng(1)
    lengths = [3, 120, 40, 70, 1, 33]
    return [
        Request(
            random.integers(0, 256, length).astype(np.int32),
            10,
            Controls(
                temperature=float(index % 2), seed=index, top_p=0.9, frequency_penalty=0.1 * (index == 5)
            ),
            logprobs=2 if index == 3 else None,
        )
        for index, length in enumerate(lengths)
    ]


def tokens(answers: list[Answer]) -> list[list[int]]:
    return [answer.sequence._tokens[answer.sequence.prompt_tokens :].tolist() for answer in answers]


@KINDS
def test_together_they_answer_as_alone(engines: dict[str, Engine], tokenizer: Tokenizer, kind: str) -> None:
    loop = EngineLoop(engines[kind], tokenizer, 100)
    together = submit(loop, *requests())
    run(loop)
    alone = []
    for request in requests():
        alone += submit(loop, request)
        run(loop)
    assert tokens(together) == tokens(alone)
    told = [piece.logprobs for piece in together[3].pieces]
    assert all(len(token.top) == 2 and token.logprob <= token.top[0][1] for step in told for token in step)
    loop.pages.check()
    assert loop.pages.usage == 0


def told(answers: list[Answer]) -> list[list[tuple[int, float]]]:
    """Tokens and their log-probabilities, to the bit."""
    return [
        [(token.token, token.logprob) for piece in answer.pieces for token in piece.logprobs]
        for answer in answers
    ]


@KINDS
def test_what_is_found_in_the_cache_or_computed_again_changes_no_bit(
    engines: dict[str, Engine], tokenizer: Tokenizer, kind: str
) -> None:
    random = np.random.default_rng(3)
    shared = random.integers(0, 256, 100)
    asked = [
        Request(np.concatenate([shared, own]).astype(np.int32), 40, Controls(seed=index), logprobs=0)
        for index, own in enumerate(random.integers(0, 256, (3, 58)))
    ]
    cold = []
    for request in asked:
        cold += submit(loop := EngineLoop(engines[kind], tokenizer, 100), request)
        run(loop)
    watching = Watching()
    loop = EngineLoop(engines[kind], tokenizer, 100, watching)
    warm = []
    for request in asked:
        warm += submit(loop, request)
        run(loop)
    # The second request shows where they part.
    assert [answer.sequence.cached_tokens for answer in warm] == [0, 32, 96]
    # Few pages: whoever comes last gives way.
    taken = [loop.pages.packed.take() for _ in range(8)]
    together = submit(loop, *asked[::-1])
    run(loop)
    assert watching.preemptions
    assert told(cold) == told(warm) == told(together[::-1])
    for place in taken:
        loop.pages.packed.give(place)
    loop.pages.check()


class Watching:
    preemptions = 0

    def preempted(self, sequences: int) -> None:
        self.preemptions += sequences

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_the_compiled_engine_answers_as_the_reference(
    engines: dict[str, Engine], tokenizer: Tokenizer
) -> None:
    answers = []
    for engine in engines.values():
        loop = EngineLoop(engine, tokenizer, 100)
        answers.append(submit(loop, *(request for request in requests() if not request.controls.temperature)))
        run(loop)
    assert tokens(answers[0]) == tokens(answers[1])


def test_the_client_gets_the_engines_answers(engines: dict[str, Engine], model_dir: Path) -> None:
    with serving(engines["cpu"], model_dir) as running:
        create = running.client.completions.create
        settings = {"model": "tiny", "max_tokens": 20, "temperature": 0}
        whole = create(prompt="some words", **settings).choices[0].text
        pieces = [chunk.choices[0].text for chunk in create(prompt="some words", stream=True, **settings)]
        assert "".join(pieces) == whole
        assert running.http.get("/ready").json()["cache"]["bytes_per_token"] == 104
