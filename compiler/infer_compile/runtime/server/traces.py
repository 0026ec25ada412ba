"""A span for each request, by OpenTelemetry: named and described as vLLM's, and by the GenAI conventions.

Where spans go, and which of them, is the SDK's affair and told by its environment: OTEL_SERVICE_NAME,
OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER. No text of a prompt or an answer is in them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import InferCompileError, Problem

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NAME = "llm_request"
OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
NOTES = {
    "prompt_tokens": ("gen_ai.usage.prompt_tokens", "gen_ai.usage.input_tokens"),
    "generated_tokens": ("gen_ai.usage.completion_tokens", "gen_ai.usage.output_tokens"),
    "cached_tokens": ("gen_ai.usage.cache_read.input_tokens",),
    "queue_s": ("gen_ai.latency.time_in_queue",),
    "ttft_s": ("gen_ai.latency.time_to_first_token",),
    "prefill_s": ("gen_ai.latency.time_in_model_prefill",),
    "decode_s": ("gen_ai.latency.time_in_model_decode",),
    "status": ("http.response.status_code",),
}
"""What the log says of a request, under vLLM's names and those of the conventions, seconds and tokens."""


@dataclass(frozen=True, slots=True)
class Traces:
    """Of the server of ``model``; ``close`` sends what is left."""

    model: str
    tracer: Tracer
    close: Callable[[], None]

    def ended(
        self, path: str, id: str, headers: Iterable[tuple[str, str]], seconds: float, notes: Mapping[str, Any]
    ) -> None:
        """A request has ended just now, after ``seconds``; its ``traceparent`` makes it part of a trace."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        end = time.time_ns()
        known = {name: notes[note] for note in NOTES for name in NOTES[note] if notes.get(note) is not None}
        if path in OPERATIONS:
            known |= {"gen_ai.operation.name": OPERATIONS[path], "gen_ai.request.model": self.model}
        if finish := notes.get("finish"):
            known["gen_ai.response.finish_reasons"] = finish.split("+")
        span = self.tracer.start_span(
            NAME,
            context=TraceContextTextMapPropagator().extract(dict(headers)),
            kind=SpanKind.SERVER,
            start_time=end - round(seconds * 1e9),
            attributes=known | {"gen_ai.request.id": id, "gen_ai.latency.e2e": seconds, "url.path": path},
        )
        # A stream that fails has begun with 200; what a client does wrong is no error of the server.
        if notes["status"] >= 500 or (notes["status"] < 400 and "error" in notes):
            span.set_status(Status(StatusCode.ERROR, notes.get("error")))
        span.end(end)


def open_traces(model: str, version: str, asked: bool) -> Traces | None:
    """The spans of the server of ``model``: where they are ``asked`` for, or the environment names who takes
    them. Raises InferCompileError IC513 where OpenTelemetry is not installed."""
    if not asked and not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InferCompileError(
            Problem(
                "IC513",
                "requests cannot be traced",
                because=f"OpenTelemetry is not installed: {error}",
                fix="python -m pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, or "
                f"unset {ENDPOINTS[0]}",
            )
        ) from error
    named = Resource.create({SERVICE_NAME: model}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=named, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Traces(model, provider.get_tracer("infer-compile", version), provider.shutdown)
