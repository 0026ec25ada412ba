"""A GPU's bundle with a calibrated cache built, opened and asked over HTTP; Triton's interpreter runs its
kernels."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import interpreted  # noqa: F401  # before all that imports triton

# isort: split
import copy
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import deepseek
import gpu_bundle
import httpx
import numpy as np
import pytest
import uvicorn
from cuda_pair import ROW_ERROR
from fake_engine import FakeEngine, tiny_program
from test_cpu_engine import check_tokens, errors_of

from infer_compile.build import resolve
from infer_compile.catalog.facts import Facts, load_facts
from infer_compile.codegen import launches
from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.evaluate.speed.load import Load, Prompts, Track
from infer_compile.quantize.cache.calibrated import FILE, Calibrated
from infer_compile.quantize.read import reference_loader
from infer_compile.runtime.bundle import Bundle, open_bundle
from infer_compile.runtime.engines import cuda
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.journal import Line
from infer_compile.runtime.server.api import create_app
from infer_compile.runtime.server.run import Options, bind, service, url
from infer_compile.runtime.server.service import Limits
from infer_compile.runtime.step import SequenceStep, StepResult
from infer_compile.runtime.stopwatch import Stopwatch
from infer_compile.runtime.tokenizer import Tokenizer
from infer_compile.runtime.warmup import capture

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
CUTS = (Tiling(1, 32, 1, 1), Tiling(4, 32, 1, 1, tree=True), Tiling(16, 32, 1, 1, tree=True))
"""The interpreter runs one program after the other."""


def short_pages() -> Facts:
    """Of 16 tokens, all but the last of which are read compressed, so that few tokens see some."""
    facts = load_facts()
    cache, wanted = facts.choices.cache, {"page_tokens": 16, "sink_pages": 0, "recent_pages": 0}
    changed = {
        name: getattr(cache, name).model_copy(update={"value": value}) for name, value in wanted.items()
    }
    choices = facts.choices.model_copy(update={"cache": cache.model_copy(update=changed)})
    return facts.model_copy(update={"choices": choices})


class Recorded(cuda.CudaEngine):
    """The engine on the interpreter, which keeps what it was asked and what it answered."""

    def __init__(self, engine_dir: Path) -> None:
        self.steps: list[tuple[list[SequenceStep], StepResult]] = []
        super().__init__(engine_dir, device="cpu")

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        asked = copy.deepcopy(list(batch))
        result = super().step(batch, logits=True, hidden=hidden)
        self.steps.append((asked, result))
        return result


@dataclass(frozen=True)
class Served:
    bundle: Bundle
    engine: Recorded
    client: httpx.Client
    told: list[Line]


def heads(folder: Path) -> Path:
    """The spec of a Llama with a calibrated 3-bit cache."""
    spec = gpu_bundle.write(folder, "rtx-4090", **SMALL)
    spec.write_text(spec.read_text().replace("kv: tq3", "kv: ct3"))
    return spec


def latent(folder: Path) -> Path:
    """Of DeepSeek-V3's layers, one with experts, with latent vectors in fp8."""
    made = deepseek.model("V3", num_hidden_layers=1, first_k_dense_replace=0, num_attention_heads=1)
    return deepseek.write(folder, made, "rtx-4090", "weights: {format: int8, group: 32}, kv: fp8")


@pytest.fixture(scope="module", params=[heads, latent], ids=lambda spec: spec.__name__)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("line")
    told: list[Line] = []
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        patch.setattr(launches, "usual_tilings", lambda program: CUTS)
        patch.setattr(resolve, "load_facts", short_pages)
        spec = request.param(folder)
        spec.write_text(
            spec.read_text().replace("64, input_tokens: 24, output", "24, input_tokens: 16, output", 1)
        )
        gpu_bundle.built(spec, folder / "tiny")
        opened: list[Recorded] = []
        patch.setattr(cuda, "CudaEngine", lambda place: opened.append(Recorded(place)) or opened[0])
        for name in ("server.run", "engines.cuda"):
            log = logging.getLogger(f"infer_compile.runtime.{name}")
            patch.setattr(log, "info", lambda line, *rest: told.append(line))
        options = Options("127.0.0.1", 0, None, 4, 5, None, False, "infer", None, Limits())
        bundle, watch = open_bundle(folder / "tiny"), Stopwatch()
        with service(bundle, options, watch) as running:
            told.append(watch.line("start"))
            opened[0].steps.clear()
            bound = bind(options.host, 0)
            server = uvicorn.Server(
                uvicorn.Config(create_app(running, None), log_config=None, lifespan="off")
            )
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            with httpx.Client(base_url=url(bound), timeout=60) as client:
                yield Served(bundle, opened[0], client, told)
            server.should_exit = True
            thread.join()


def test_an_answer_over_http_has_the_tokens_of_the_reference_engine(served: Served) -> None:
    body = {
        "prompt": "It is that and this",
        "max_tokens": 4,
        "temperature": 0,
        "ignore_eos": True,
    }
    answer = served.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    program, folder = served.bundle.program, served.bundle.model_dir
    table_file = folder.parent / "engine" / FILE
    tables = Calibrated.load(table_file).tables if table_file.is_file() else {}
    reference = ReferenceEngine(program, reference_loader(folder), tables=tables)
    tokens = 0
    for batch, result in served.engine.steps:
        expected = reference.step(batch, logits=True)
        assert result.logits is not None and expected.logits is not None
        assert np.all(errors_of(result.logits, expected.logits) < ROW_ERROR)
        check_tokens(result, expected, batch)
        tokens += len(expected.logits)
    assert tokens == 4


def test_the_log_tells_how_long_each_part_of_the_start_took(served: Served) -> None:
    events = {line.event: line.fields for line in served.told if isinstance(line, Line)}
    assert events["device"].keys() >= {"weights_s", "buffers_s", "seconds"}
    assert events["start"].keys() >= {"engine_s", "warm_up_s", "measure_s"}
    planned = served.bundle.program.cache.token_bytes
    assert events["cache"]["bytes_per_token"] == planned


def test_a_load_is_measured_on_it_as_on_a_processors(served: Served) -> None:
    prompts = Prompts(np.arange(8, dtype=np.int32))
    run = Track(served.engine, Tokenizer(served.bundle.model_dir), prompts).run(Load(1, 3, 2), 1)
    assert [(step.sequences, step.decodes) for step in run.steps] == [(1, False), (1, True)]
    assert run.first[0] > 0 and len(run.between) == 1 and 0 < run.engine_share <= 1


class Capturing(FakeEngine):
    """Keeps steps of up to eight sequences."""

    captured = (1, 2, 4, 8)

    def __init__(self) -> None:
        super().__init__(tiny_program(sequences=3))
        self.seen: list[list[SequenceStep]] = []

    def step(self, batch: Sequence[SequenceStep], **asked: bool) -> StepResult:
        self.seen.append(list(batch))
        return super().step(batch, **asked)


def test_every_step_that_is_kept_is_made_before_anybody_waits() -> None:
    """Twice greedy and twice drawn, up to as many sequences as there can be."""
    engine = Capturing()
    assert capture(engine) == 3
    assert [len(batch) for batch in engine.seen] == [3] * 4 + [2] * 4 + [1] * 4
    assert [batch[0].sampling.temperature for batch in engine.seen] == [0, 0, 1, 1] * 3
    assert capture(FakeEngine(tiny_program())) == 0
