"""A GPU's bundle built, opened and asked over HTTP, its kernels run by Triton's interpreter in place of a device."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("engine", "unit")]

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
import copy
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gpu_bundle
import httpx
import numpy as np
import pytest
import uvicorn

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
from infer_compile.runtime.warmup import capture

CLOSE = 0.3
"""Of two logits: less of their row's spread, and either may be drawn."""


class Recorded(cuda.CudaEngine):
    """The engine on the interpreter, which keeps what it was asked and what it answered."""

    def __init__(self, engine_dir: Path) -> None:
        self.steps: list[tuple[list[SequenceStep], StepResult]] = []
        super().__init__(engine_dir, device="cpu")

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        asked = copy.deepcopy(list(batch))
        result = super().step(batch, logits=logits, hidden=hidden)
        self.steps.append((asked, result))
        return result


@dataclass(frozen=True)
class Served:
    bundle: Bundle
    engine: Recorded
    client: httpx.Client
    told: list[Line]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("line")
    told: list[Line] = []
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
        gpu_bundle.built(gpu_bundle.write(folder, "rtx-4090", **small), folder / "tiny")
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
            server = uvicorn.Server(uvicorn.Config(create_app(running, None), log_config=None, lifespan="off"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            with httpx.Client(base_url=url(bound), timeout=60) as client:
                yield Served(bundle, opened[0], client, told)
            server.should_exit = True
            thread.join()


def test_an_answer_over_http_has_the_tokens_of_the_reference_engine(served: Served) -> None:
    body = {"prompt": "It is so that", "max_tokens": 5, "temperature": 0, "ignore_eos": True}
    answer = served.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 5
    assert answer.json()["choices"][0]["finish_reason"] == "length"
    program, folder = served.bundle.program, served.bundle.model_dir
    reference = ReferenceEngine(program, reference_loader(folder))
    tokens = 0
    for batch, result in served.engine.steps:
        expected = reference.step(batch, logits=True)
        assert expected.logits is not None
        drawn = np.concatenate(result.tokens)
        best, mine = expected.logits.max(-1), expected.logits[np.arange(len(drawn)), drawn]
        assert np.all(best - mine <= CLOSE * expected.logits.std(-1))
        tokens += len(drawn)
    assert tokens >= 5


def test_the_log_tells_how_long_each_part_of_the_start_took(served: Served) -> None:
    events = {line.event: line.fields for line in served.told if isinstance(line, Line)}
    assert events["device"].keys() >= {"weights_s", "buffers_s", "seconds"}
    assert events["start"].keys() >= {"engine_s", "warm_up_s", "measure_s"}
    planned = served.bundle.program.cache.token_bytes
    assert events["cache"]["bytes_per_token"] == planned


def test_every_captured_step_is_made_before_anybody_waits(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of as many sequences as there can be, each size as often as it takes, greedy and drawn."""
    engine = served.engine
    assert capture(engine) == 0
    monkeypatch.setattr(Recorded, "captured", engine._table.captured)
    engine.steps.clear()
    assert capture(engine) == 2
    assert [len(batch) for batch, _ in engine.steps] == [2] * 4 + [1] * 4
    assert [batch[0].sampling.temperature for batch, _ in engine.steps] == [0, 0, 1, 1] * 2
