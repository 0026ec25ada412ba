"""What the server says of itself."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from .metrics import CONTENT_TYPE
from .refusal import ApiError
from .service import Service


class Status:
    """The routes that ask for no work."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        if name != self._service.name:
            raise ApiError(404, f"the model {name!r} does not exist", param="model", code="model_not_found")
        return self._model()

    def _model(self) -> dict[str, Any]:
        return {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "infer-compile",
            "max_model_len": self._service.engine.context,
        }

    async def embeddings(self) -> Response:
        message = f"the model {self._service.name!r} generates text; it serves no /v1/embeddings"
        raise ApiError(404, message, param="model", code="unsupported_endpoint")

    async def health(self) -> Response:
        """Alive: the engine runs, though the server may be stopping."""
        alive = self._service.engine.alive
        return JSONResponse({"status": "ok" if alive else "the engine stopped"}, 200 if alive else 503)

    async def ready(self) -> Response:
        """The port opens when the cache is measured, so what answers is ready until it stops."""
        service, measured = self._service, self._service.measured
        status = "ready" if service.engine.alive else "the engine stopped"
        status = "stopping" if service.drain.begun else status
        cache = {
            "level": measured.level,
            "bytes_per_token": measured.token_bytes,
            "exact_bytes_per_token": measured.exact_token_bytes,
        }
        return JSONResponse({"status": status, "cache": cache}, 200 if status == "ready" else 503)

    async def metrics(self) -> Response:
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE)

    async def version(self) -> dict[str, Any]:
        return self._service.version
