"""The OpenAI-compatible endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from ..scheduler import QueueFull
from ..sequence import Failure, Sequence
from .answers import Answer, ChatAnswer, CompletionAnswer
from .failure import install
from .gate import Gate
from .generation import Generation
from .keys import Keys
from .protocol import ChatBody, Common, CompletionBody, StreamOptions
from .refusal import ApiError, Refused, error_response, failed
from .requests import Requests, Work
from .service import Service
from .status import Status
from .stream import DONE, EventStream, event, unless_gone
from .tokens import Tokens


class Api:
    """The routes that generate."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._requests = Requests(service)

    async def chat(self, body: ChatBody, request: Request) -> Response:
        work = await asyncio.to_thread(self._requests.chat, body)
        return await self._answer(ChatAnswer, body, work, request)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        work = await asyncio.to_thread(self._requests.completion, body)
        return await self._answer(CompletionAnswer, body, work, request)

    async def _answer(self, kind: type[Answer], body: Common, work: Work, request: Request) -> Response:
        service = self.service
        answer = kind(request.state.request_id, service.name, service.fingerprint, service.tokenizer, work)
        try:
            generation = Generation(service.engine, work.requests)
        except QueueFull:
            wait = str(service.engine.retry_after())
            message = "too many requests are waiting"
            raise ApiError(429, message, code="queue_full", headers={"retry-after": wait}) from None

        def close() -> None:
            request.state.notes.update(_notes(generation.sequences, work.choices))
            generation.cancel()

        if body.stream:
            options = body.stream_options or StreamOptions()
            return EventStream(self._events(answer, generation, options, request.state.notes), close, {})
        try:
            response = await unless_gone(request.receive, self._whole(answer, generation, request))
        finally:
            close()
        # Nobody reads the answer to a client that has gone.
        return response or Response(status_code=499)

    async def _whole(self, answer: Answer, generation: Generation, request: Request) -> Response:
        async for index, piece in generation.pieces():
            if isinstance(piece, Failure):
                status, body = failed(piece.problem)
                request.state.notes["error"] = str(piece.problem.code)
                self.service.metrics.refused(status)
                return error_response(status, body)
            answer.add(index, piece)
        return JSONResponse(answer.whole(generation.sequences))

    async def _events(
        self, answer: Answer, generation: Generation, options: StreamOptions, notes: dict[str, Any]
    ) -> AsyncIterator[bytes]:
        usage = answer.usage if options.continuous_usage_stats else lambda _: {}
        for body in answer.opening():
            yield event(body | usage(generation.sequences))
        wants_usage = options.include_usage
        async for index, piece in generation.pieces():
            if isinstance(piece, Failure):
                wants_usage = False
                notes["error"] = piece.problem.code
                yield event(failed(piece.problem)[1])
            elif (chunk := answer.chunk(index, piece)) is not None:
                yield event(chunk | usage(generation.sequences))
        if wants_usage:
            yield event(answer.usage_chunk(generation.sequences))
        yield DONE


def _notes(sequences: list[Sequence], choices: int) -> dict[str, Any]:
    """What the log says of an answer. Times in seconds from the arrival."""
    times = [sequence.times for sequence in sequences]
    began = [time for time in times if time.first]
    first = [time.first - time.arrived for time in began]
    admitted = [time.admitted - time.arrived for time in times if time.admitted]
    evicted = sum(sequence.evicted for sequence in sequences)
    return {
        "prompt_tokens": sum(
            sequence.prompt_tokens + len(sequence.request.forced) for sequence in sequences[::choices]
        ),
        "cached_tokens": sum(sequence.cached_tokens for sequence in sequences[::choices]),
        "generated_tokens": sum(sequence.answered for sequence in sequences),
        "evicted_tokens": evicted or None,
        "queue_s": round(min(admitted), 4) if admitted else None,
        "ttft_s": round(min(first), 4) if first else None,
        "prefill_s": round(min(first) - min(admitted), 4) if first else None,
        "decode_s": round(max(time.last for time in times) - min(time.first for time in began), 4)
        if began
        else None,
        "finish": "+".join(sorted({sequence.ending or "cancelled" for sequence in sequences})),
    }


def create_app(service: Service, keys: Keys | None = None, *, open_metrics: bool = False) -> ASGIApp:
    """The ASGI application of ``service``, whose engine the caller starts and closes."""
    refused: dict[int | str, dict[str, Any]] = {kind: {"model": Refused} for kind in ("4XX", "5XX")}
    app = FastAPI(title=service.name, docs_url=None, redoc_url=None, responses=refused)
    api, status, tokens = Api(service), Status(service), Tokens(service)
    app.add_api_route("/v1/chat/completions", api.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", api.complete, methods=["POST"], response_model=None)
    app.add_api_route("/v1/embeddings", status.embeddings, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", status.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", status.model, methods=["GET"])
    app.add_api_route("/tokenize", tokens.tokenize, methods=["POST"])
    app.add_api_route("/detokenize", tokens.detokenize, methods=["POST"])
    app.add_api_route("/health", status.health, methods=["GET"], response_model=None)
    app.add_api_route("/ready", status.ready, methods=["GET"], response_model=None)
    app.add_api_route("/metrics", status.metrics, methods=["GET"], response_model=None)
    app.add_api_route("/version", status.version, methods=["GET"])
    install(app, service.metrics)
    return Gate(app, service, keys or Keys(), open_metrics)
