"""Bodies become requests of the engine's loop, or refusals that name the parameter."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..chat import TemplateRefusal
from ..grammar import GrammarRefusal
from ..rule import Rule
from ..sampling import Controls
from ..sequence import Request
from ..step import Int32
from .messages import Message, Tool
from .protocol import MOST_STOPS, ChatBody, Common, CompletionBody
from .refusal import ApiError
from .service import Service
from .structured import Asked, asked
from .tools import ToolUse, tool_use

COMPLETION_TOKENS = 16
"""Of a completion that names no limit, as in OpenAI's API; a chat goes on to the end of the context."""
SEEDS = 2**63


@dataclass(frozen=True, slots=True)
class Work:
    """What one body asks for: ``choices`` requests for each prompt, in order."""

    requests: list[Request]
    choices: int
    tools: ToolUse | None = None
    echo: tuple[str, ...] = ()
    """The texts of the requests' prompts, where they come before the answers."""


class Requests:
    """May take a while (templates, tokens, grammars), so it runs outside the event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def chat(self, body: ChatBody) -> Work:
        self.check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise _wrong("top_logprobs", "'top_logprobs' needs logprobs: true")
        asked_for, limit = body.max_completion_tokens, body.max_tokens
        if asked_for is not None and limit is not None and asked_for != limit:
            raise _wrong("max_tokens", "'max_tokens' and 'max_completion_tokens' differ")
        limit = asked_for if asked_for is not None else limit
        tools = self._tools(body)
        prompt = self.render(body.messages, body.tools if tools else None, body.chat_template_kwargs)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        request = self._request(body, "messages", prompt, limit, logprobs, tools)
        return Work(self._choices(body, [request]), body.n or 1, tools)

    def completion(self, body: CompletionBody) -> Work:
        self.check_model(body.model)
        scored = bool(body.echo) and body.logprobs is not None
        if scored and body.stream:
            raise _wrong("stream", "'echo' with logprobs is not streamed", "unsupported_parameter")
        prompts = self._tokens(body)
        limit = body.max_tokens
        if limit is None:
            room = self._service.engine.answer_tokens(max(map(len, prompts), default=0))
            limit = max(1, min(COMPLETION_TOKENS, room))
        requests = [self._request(body, "prompt", tokens, limit, body.logprobs) for tokens in prompts]
        if scored:
            requests = [self._scored(request) for request in requests]
        decode = self._service.tokenizer.decode
        echo = tuple(decode(request.prompt.tolist()) for request in requests) if body.echo else ()
        return Work(self._choices(body, requests), body.n or 1, echo=echo)

    def _scored(self, request: Request) -> Request:
        """``request`` with log-probabilities of its prompt: all but the first token become tokens that the
        answer has to begin with."""
        first, rest = request.prompt[:1], request.prompt[1:]
        return replace(request, prompt=first, forced=rest, max_tokens=request.max_tokens + len(rest))

    def check_model(self, model: str | None) -> None:
        own = self._service.name
        if model is not None and model != own:
            message = f"the model {model!r} does not exist; this server serves {own!r}"
            raise ApiError(404, message, param="model", code="model_not_found")

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None,
        variables: dict[str, Any] | None,
        *,
        answer: bool = True,
        special: bool = False,
    ) -> Int32:
        """The tokens of a conversation; ``special`` adds those that the template is expected to hold."""
        template = self._service.template
        if template is None:
            message = "the model has no chat template; use /v1/completions"
            raise ApiError(400, message, param="messages", code="no_chat_template")
        said = [message.for_template(f"messages[{index}]") for index, message in enumerate(messages)]
        offered = [tool.for_template() for tool in tools] if tools else None
        try:
            text = template.render(said, offered, answer=answer, variables=variables or {})
        except TemplateRefusal as refusal:
            raise _wrong(
                "messages", f"the model's chat template does not take these messages: {refusal}"
            ) from refusal
        return self._service.tokenizer.encode(text, special=special)

    def ids(self, tokens: list[int], param: str) -> Int32:
        vocabulary = self._service.vocabulary
        for token in tokens:
            if not 0 <= token < vocabulary:
                raise _wrong(param, f"the token {token} is not in the vocabulary of {vocabulary}")
        return np.array(tokens, np.int32)

    def _tools(self, body: ChatBody) -> ToolUse | None:
        if not body.tools:
            if body.tool_choice not in (None, "none", "auto"):
                raise _wrong("tool_choice", "'tool_choice' needs tools")
            return None
        if body.tool_choice == "none":
            return None
        form = self._service.form
        if form is None:
            message = (
                "'tools' are not supported: the model's chat template takes none that this server can read"
            )
            raise _wrong("tools", message, "unsupported_parameter")
        parallel = body.parallel_tool_calls is not False
        return tool_use(form, body.tools, body.tool_choice, parallel, self._quoted)

    def _quoted(self, tag: str) -> str:
        """``tag`` as grammars write it: a special token has no text."""
        id = self._service.tokenizer.special_id(tag)
        return json.dumps(tag) if id is None else f"<[{id}]>"

    def _tokens(self, body: CompletionBody) -> list[Int32]:
        encode, prompt = self._service.tokenizer.encode, body.prompt
        if isinstance(prompt, str):
            return [encode(prompt, special=True)]
        if all(isinstance(token, int) for token in prompt):
            return [self.ids([token for token in prompt if isinstance(token, int)], "prompt")]
        return [
            self.ids(part, "prompt") if isinstance(part, list) else encode(str(part), special=True)
            for part in prompt
        ]

    def _request(
        self,
        body: Common,
        param: str,
        tokens: Int32,
        limit: int | None,
        logprobs: int | None,
        tools: ToolUse | None = None,
    ) -> Request:
        """The request for one prompt; refuses what is empty or does not fit."""
        service = self._service
        self._check_length(param, tokens, limit)
        if body.stream_options is not None and not body.stream:
            raise _wrong("stream_options", "'stream_options' needs stream: true")
        rule = self._rule(body, tools)
        ends = frozenset[int]() if body.ignore_eos else service.tokenizer.end_ids
        ends |= frozenset(self.ids(body.stop_token_ids or [], "stop_token_ids").tolist())
        special = tools is not None and service.tokenizer.special_id(tools.form.opening) is not None
        return Request(
            prompt=tokens,
            max_tokens=limit if limit is not None else service.engine.answer_tokens(len(tokens)),
            controls=_controls(body, service.vocabulary),
            stop=_stops(body.stop),
            stop_ids=frozenset(id for id in ends if id < service.vocabulary),
            logprobs=logprobs,
            rule=rule,
            keep_stop=bool(body.include_stop_str_in_output),
            keep_special=special or body.skip_special_tokens is False,
            priority=body.priority or 0,
            deadline=None if body.timeout is None else time.monotonic() + body.timeout,
            salt=body.cache_salt or "",
        )

    def _check_length(self, param: str, tokens: Int32, limit: int | None) -> None:
        engine, most = self._service.engine, self._service.limits.prompt_tokens
        if not len(tokens):
            raise _wrong(param, f"{param!r} holds no tokens")
        if len(tokens) + (limit or 1) > engine.longest:
            message = (
                f"this model's context holds {engine.longest} tokens, but the prompt has {len(tokens)}"
                + (f" and {limit} more are asked for" if limit else "")
            )
            raise _wrong(param, message, "context_length_exceeded")
        if most is not None and len(tokens) > most:
            message = f"this server takes prompts of up to {most} tokens, and this one has {len(tokens)}"
            raise _wrong(param, message, "context_length_exceeded")
        if int(tokens.max()) >= self._service.vocabulary:
            raise _wrong(param, f"the text holds a token that the model does not have ({int(tokens.max())})")

    def _rule(self, body: Common, tools: ToolUse | None) -> Rule | None:
        wanted = asked(body)
        if tools is not None:
            if wanted is not None:
                raise _wrong(
                    wanted.param, f"{wanted.param!r} and tools exclude each other; tool_choice: none"
                )
            wanted = None if tools.grammar is None else Asked("tools", "lark", tools.grammar)
        if wanted is None:
            return None
        if body.ignore_eos:
            raise _wrong("ignore_eos", f"'ignore_eos' and {wanted.param!r} exclude each other")
        try:
            return self._service.grammars.compile(wanted.kind, wanted.text)
        except GrammarRefusal as refusal:
            raise _wrong(wanted.param, f"{wanted.param!r}: {refusal}") from refusal

    def _choices(self, body: Common, requests: list[Request]) -> list[Request]:
        """Each request ``n`` times, with seeds of their own."""
        scheduler = self._service.engine.scheduler
        count, n = len(requests), body.n or 1
        most = min(self._service.limits.choices, scheduler.most_running + scheduler.queue)
        if count * n > most:
            param = "n" if n > 1 else "prompt"
            raise _wrong(param, f"{count * n} choices are asked for, and one request may have {most}")
        return [
            replace(request, controls=replace(request.controls, seed=(request.controls.seed + index) % SEEDS))
            for request in requests
            for index in range(n)
        ]


def _wrong(param: str, message: str, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, param=param, code=code)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(stops) > MOST_STOPS or "" in stops:
        raise _wrong("stop", f"'stop' takes up to {MOST_STOPS} texts, none of them empty")
    return stops


def _controls(body: Common, vocabulary: int) -> Controls:
    """The body's sampling parameters; what is left out takes OpenAI's default, the seed a random one."""
    bias: dict[int, float] = {}
    for key, value in (body.logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocabulary):
            raise _wrong("logit_bias", f"'logit_bias': {key!r} is not the id of a token")
        bias[int(key)] = value
    default = Controls()
    given = {
        "temperature": body.temperature,
        "top_k": None if body.top_k == -1 else body.top_k,
        "top_p": body.top_p,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "min_tokens": body.min_tokens,
    }
    values: dict[str, Any] = {
        name: getattr(default, name) if value is None else value for name, value in given.items()
    }
    seed = secrets.randbelow(SEEDS) if body.seed is None else body.seed % SEEDS
    return Controls(**values, seed=seed, logit_bias=bias)
