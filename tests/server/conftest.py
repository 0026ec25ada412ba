from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest
import toy_model
import uvicorn
from fake_engine import FakeEngine

from infer_compile.runtime.chat import ChatTemplate
from infer_compile.runtime.grammar import Grammars
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.measure import measure
from infer_compile.runtime.server.api import create_app
from infer_compile.runtime.server.keys import Keys
from infer_compile.runtime.server.metrics import Metrics
from infer_compile.runtime.server.run import bind, url
from infer_compile.runtime.server.service import Limits, Service
from infer_compile.runtime.server.traces import Traces
from infer_compile.runtime.shadow import Shadow
from infer_compile.runtime.step import Engine
from infer_compile.runtime.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


@dataclass
class Running:
    """A server on a port of its own."""

    url: str
    engine: FakeEngine
    loop: EngineLoop
    service: Service
    http: httpx.Client
    """One client for all: to make one takes longer than to ask."""

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, http_client=self.http)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that carry ``labels``."""
        text = self.http.get("/metrics").text
        lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if all(label in line for label in wanted))

    def wait(self, condition: Callable[[], bool], seconds: float = 5) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "this did not happen in time"
            time.sleep(0.005)

    def wait_idle(self) -> None:
        self.wait(lambda: self.loop.scheduler.idle)


@contextmanager
def serving(
    engine: Engine,
    model_dir: Path,
    queue: int = 16,
    keys: Keys | None = None,
    limits: Limits | None = None,
    shadow: float = 0.0,
    traces: Traces | None = None,
) -> Iterator[Running]:
    """Serves ``engine`` with the real server; at the end every page must be back and the thread alive."""
    tokenizer = Tokenizer(model_dir)
    metrics = Metrics("tiny")
    measured = measure(engine)
    checks = Shadow(engine, shadow, metrics) if shadow else None
    loop = EngineLoop(engine, tokenizer, queue, metrics, shadow=checks)
    metrics.watch(loop, measured)
    has_template = ChatTemplate.exists(model_dir, tokenizer)
    template = ChatTemplate(model_dir, tokenizer) if has_template else None
    grammars = Grammars(model_dir, engine.program.vocabulary, tokenizer.end_ids)
    parts = (loop, tokenizer, template, grammars, metrics, measured, limits or Limits(), traces)
    service = Service("tiny", "0123456789ab", {"version": "0"}, *parts)
    bound = bind("127.0.0.1", 0)
    address = url(bound)
    config = uvicorn.Config(
        create_app(service, keys), log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    loop.start()
    thread.start()
    running = Running(address, engine, loop, service, httpx.Client(base_url=address, timeout=30))
    try:
        running.wait(lambda: server.started)
        yield running
    finally:
        running.http.close()
        if isinstance(engine, FakeEngine):
            engine.gate.set()
        server.should_exit = True
        thread.join()
        alive = loop.alive
        loop.close()
    assert alive, "the engine's thread ended"
    loop.pages.check()
    assert (loop.pages.exact.used, loop.pages.packed.used) == (0, 0)
