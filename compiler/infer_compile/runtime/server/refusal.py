"""The one error that clients see, in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from ..errors import Problem

KINDS = {404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    """The field of the body that is meant, with its place inside."""
    code: str | None


class Refused(BaseModel):
    """Every answer of status 400 and above."""

    error: Error


class ApiError(Exception):
    """Answered with ``status`` and an error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = error_object(status, message, param, code)
        self.headers = headers
        super().__init__(message)


def error_object(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return Refused(error=Error(message=message, type=kind, param=param, code=code)).model_dump()


STATUS = {"IC507": 503, "IC511": 408, "IC533": 400}
"""Of failures that are not the server's fault, by code."""


def failed(problem: Problem) -> tuple[int, dict[str, Any]]:
    """The status and the error object for what kept an answer from its end."""
    status = STATUS.get(problem.code, 500)
    return status, error_object(status, problem.message, code=problem.code)


def error_response(status: int, body: object, headers: Mapping[str, str] | None = None) -> Response:
    # Escaped, since a message may quote a lone surrogate of the request, which has no UTF-8 form.
    return Response(json.dumps(body), status, dict(headers or {}), "application/json")
