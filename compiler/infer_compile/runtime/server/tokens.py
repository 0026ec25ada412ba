"""Text to tokens and back, by vLLM's bodies."""

from __future__ import annotations

import asyncio
from typing import Any

from ..step import Int32
from .protocol import DetokenizeBody, TokenizeBody
from .refusal import ApiError
from .requests import Requests
from .service import Service


class Tokens:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._requests = Requests(service)

    async def tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        return await asyncio.to_thread(self._tokenize, body)

    async def detokenize(self, body: DetokenizeBody) -> dict[str, Any]:
        return await asyncio.to_thread(self._detokenize, body)

    def _tokenize(self, body: TokenizeBody) -> dict[str, Any]:
        self._requests.check_model(body.model)
        tokens = self._tokens(body).tolist()
        told = {"count": len(tokens), "max_model_len": self._service.engine.context, "tokens": tokens}
        if body.return_token_strs:
            told["token_strs"] = [self._service.tokenizer.token(token)[0] for token in tokens]
        return told

    def _tokens(self, body: TokenizeBody) -> Int32:
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(
                400, "'prompt' or 'messages' is needed, one of them", param="prompt", code="invalid_value"
            )
        special = body.add_special_tokens
        if body.prompt is not None:
            return self._service.tokenizer.encode(body.prompt, special=special is not False)
        return self._requests.render(
            body.messages or [],
            body.tools,
            body.chat_template_kwargs,
            answer=body.add_generation_prompt,
            special=bool(special),
        )

    def _detokenize(self, body: DetokenizeBody) -> dict[str, Any]:
        self._requests.check_model(body.model)
        tokens = self._requests.ids(body.tokens, "tokens").tolist()
        return {"prompt": self._service.tokenizer.decode(tokens, special=True)}
