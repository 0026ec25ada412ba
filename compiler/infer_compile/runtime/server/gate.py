"""What every request passes: its id, its key, whether the server stops, its size, its line in the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..journal import Line
from .keys import Keys
from .refusal import ApiError, error_response
from .service import Service

log = logging.getLogger(__name__)

PROBES = frozenset({"/health", "/ready"})
"""Open to everybody."""
QUIET = PROBES | {"/metrics"}
"""Answered while the server drains, and not worth a line in the log."""
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Gate:
    """``app`` behind the gate. A handler finds ``request_id`` and ``notes``, a dict for the log, in its
    request's state."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys, open_metrics: bool) -> None:
        self._app = app
        self._service = service
        self._keys = keys
        self._open = PROBES | ({"/metrics"} if open_metrics else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, began = Headers(scope=scope), time.monotonic()
        given = headers.get("x-request-id", "")
        id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        notes: dict[str, Any] = {"status": 499}
        scope.setdefault("state", {}).update(request_id=id, notes=notes)

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id
            await send(message)

        try:
            if (refusal := self._refusal(scope["path"], headers)) is not None:
                notes["error"] = str(refusal)
                self._service.metrics.refused(refusal.status)
                await error_response(refusal.status, refusal.body, refusal.headers)(scope, receive, told)
            elif scope["path"] in QUIET:
                await self._app(scope, receive, told)
            else:
                with self._service.drain.counted():
                    await self._app(scope, self._bounded(receive), told)
        finally:
            if scope["path"] not in QUIET or notes["status"] >= 400:
                seconds = round(time.monotonic() - began, 4)
                line = {"id": id, "method": scope["method"], "path": scope["path"]} | notes
                log.info(Line("request", line | {"seconds": seconds}))
                if self._service.traces is not None:
                    self._service.traces.ended(scope["path"], id, headers.items(), seconds, notes)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        if path not in self._open and not self._keys.allow(headers.get("authorization", "")):
            message = "this server needs an API key: Authorization: Bearer KEY"
            return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
        if self._service.drain.begun and path not in QUIET:
            return ApiError(503, "the server is stopping", code="IC507", headers={"retry-after": "1"})
        if sum(len(name) + len(value) for name, value in headers.raw) > self._service.limits.header_bytes:
            message = f"the headers have more than {self._service.limits.header_bytes} bytes"
            return ApiError(431, message, code="headers_too_large", headers={"connection": "close"})
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._service.limits.body_bytes:
            return ApiError(413, self._too_large(), code="body_too_large", headers={"connection": "close"})
        return None

    def _bounded(self, receive: Receive) -> Receive:
        """Bodies without a length are counted as they come."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._service.limits.body_bytes:
                raise HTTPException(413, self._too_large(), {"connection": "close"})
            return message

        return bounded

    def _too_large(self) -> str:
        return f"the body is larger than the {self._service.limits.body_bytes} bytes that this server takes"
