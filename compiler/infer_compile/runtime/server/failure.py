"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from ..errors import InferCompileError
from .metrics import Metrics
from .protocol import BODIES
from .refusal import ApiError, error_object, error_response, failed

BRANCHES = frozenset({"str", "int", "float", "bool", "NamedTool"})
"""What pydantic adds to an error's path for a branch of a union, beside names with brackets."""


def _place(location: Sequence[str | int]) -> str:
    """``("body", "messages", 0, "content", "str")`` to ``messages[0].content``."""
    place = ""
    for part in location[1:]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in BRANCHES and "[" not in part:
            place += f".{part}" if place else part
    return place


def _nearest(path: str, name: str) -> str:
    known = BODIES.get(path, [])
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def validation_error(path: str, errors: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The error object for a body that does not fit the schema: about the first parameter that does not."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return error_object(400, f"the body is not JSON: {first['ctx']['error']}")
    # Branches of a union fail together; the one that went deepest is the one that was meant.
    same = [error for error in errors if error["loc"][:2] == first["loc"][:2]]
    deepest = max(same, key=lambda error: len(error["loc"]))
    place = _place(deepest["loc"])
    if deepest["type"] == "extra_forbidden":
        message = f"unknown parameter {place!r}{_nearest(path, place)}"
        return error_object(400, message, place, "unknown_parameter")
    if deepest["type"] == "unsupported":
        return error_object(
            400, f"{place!r} is not supported: {deepest['msg']}", place, "unsupported_parameter"
        )
    if not place:
        return error_object(400, f"the body must be a JSON object: {deepest['msg']}")
    return error_object(400, f"{place!r}: {deepest['msg']}", place, "invalid_value")


def install(app: FastAPI, metrics: Metrics) -> None:
    """Every error of ``app`` leaves as an error object, with its message in the log's line of the request,
    and is counted in ``metrics``."""

    def respond(
        request: Request, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> Response:
        request.state.notes["error"] = body["error"]["message"]
        metrics.refused(status)
        return error_response(status, body, headers)

    async def refused(request: Request, error: ApiError) -> Response:
        return respond(request, error.status, error.body, error.headers)

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return respond(request, 400, validation_error(request.url.path, error.errors()))

    async def unroutable(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        status = error.status_code
        return respond(request, status, error_object(status, message), error.headers)

    async def coded(request: Request, error: InferCompileError) -> Response:
        return respond(request, *failed(error.problems[0]))

    async def defect(request: Request, error: Exception) -> Response:
        # Starlette raises the error again after this answer, so that the log shows where it came from.
        return respond(request, 500, error_object(500, f"a defect of the server: {type(error).__name__}"))

    app.exception_handler(ApiError)(refused)
    app.exception_handler(RequestValidationError)(invalid)
    app.exception_handler(HTTPException)(unroutable)
    app.exception_handler(InferCompileError)(coded)
    app.exception_handler(Exception)(defect)
