"""Spans of requests, as a collector gets them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program

from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.server.traces import ENDPOINTS, open_traces

collector_pb2 = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="NOT TESTED: OpenTelemetry is not installed",
)
pytest.importorskip("opentelemetry.sdk.trace")
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SERVER = 2
ERROR = 2


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        taken: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                found = collector_pb2.ExportTraceServiceRequest.FromString(body)
                taken.append((self.path, found))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.taken = taken
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[Any]:
        return [
            span
            for _, found in self.taken
            for resource in found.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv(ENDPOINTS[0], collector.url)
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        kind = value.WhichOneof("value")
        found = getattr(value, kind)
        return [plain(each) for each in found.values] if kind == "array_value" else found

    return {each.key: plain(each.value) for each in span.attributes}


def ask(running: Running, **headers: str) -> None:
    body = {"prompt": "abcdef", "max_tokens": 5, "ignore_eos": True}
    assert running.http.post("/v1/completions", json=body, headers=headers).status_code == 200


def test_a_request_is_a_span_of_the_callers_trace(model_dir: Path, collector: Collector) -> None:
    traces = open_traces("tiny", "1", False)
    assert traces is not None
    before = time.time_ns()
    with serving(FakeEngine(tiny_program()), model_dir, traces=traces) as running:
        ask(running, traceparent=f"00-{TRACE}-{PARENT}-01", **{"x-request-id": "mine"})
        ask(running)
        running.http.get("/metrics")
        running.http.post("/v1/completions", json={"prompt": 5})
    traces.close()
    assert {path for path, _ in collector.taken} == {"/v1/traces"}
    (named,) = {
        each.value.string_value
        for _, found in collector.taken
        for resource in found.resource_spans
        for each in resource.resource.attributes
        if each.key == "service.name"
    }
    assert named == "tiny"
    mine, alone, refused = collector.spans
    assert (mine.name, mine.kind) == ("llm_request", SERVER)
    assert (mine.trace_id.hex(), mine.parent_span_id.hex()) == (TRACE, PARENT)
    assert alone.trace_id.hex() != TRACE and not alone.parent_span_id
    found = attributes(mine)
    for name, expected in {
        "gen_ai.request.id": "mine",
        "gen_ai.request.model": "tiny",
        "gen_ai.operation.name": "text_completion",
        "gen_ai.usage.prompt_tokens": 6,
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ["length"],
        "http.response.status_code": 200,
        "url.path": "/v1/completions",
    }.items():
        assert found[name] == expected, name
    parts = [found[f"gen_ai.latency.time_in_{part}"] for part in ("queue", "model_prefill", "model_decode")]
    assert all(part >= 0 for part in parts)
    whole = found["gen_ai.latency.e2e"]
    assert sum(parts) <= whole + 0.001
    assert found["gen_ai.latency.time_to_first_token"] == pytest.approx(sum(parts[:2]), abs=2e-4)
    assert before <= mine.start_time_unix_nano < mine.end_time_unix_nano <= time.time_ns()
    assert mine.end_time_unix_nano - mine.start_time_unix_nano == pytest.approx(whole * 1e9)
    assert "abcdef" not in str(collector.spans)
    assert attributes(refused)["http.response.status_code"] == 400
    assert (mine.status.code, refused.status.code) == (0, 0)


def test_what_fails_is_an_error(model_dir: Path, collector: Collector) -> None:
    traces = open_traces("tiny", "1", False)
    engine = FakeEngine(tiny_program())
    with serving(engine, model_dir, traces=traces) as running:
        engine.failure = MemoryError()
        assert running.http.post("/v1/completions", json={"prompt": "a"}).status_code >= 500
    traces.close()
    (span,) = collector.spans
    assert (span.status.code, span.status.message) == (ERROR, "IC506")


def test_it_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    assert open_traces("tiny", "1", False) is None
    for name in ENDPOINTS:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        traces = open_traces("tiny", "1", False)
        assert traces is not None
        traces.close()
        monkeypatch.delenv(name)
    asked = open_traces("tiny", "1", True)
    assert asked is not None
    asked.close()


def test_asked_for_and_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(InferCompileError) as refused:
        open_traces("tiny", "1", True)
    (problem,) = refused.value.problems
    assert problem.code == "IC513"
    assert "opentelemetry" in problem.fix
