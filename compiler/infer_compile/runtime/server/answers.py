"""Bodies of answers, whole and in chunks."""

from __future__ import annotations

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from ..logprobs import TokenLogprobs
from ..sequence import Delta, Sequence
from ..tokenizer import Tokenizer
from .calls import Called, Calls, Piece
from .requests import Work


def usage(sequences: list[Sequence], choices: int) -> dict[str, Any]:
    """OpenAI's counts, and how many tokens were dropped from what the model saw, if any were. A prompt counts
    once, however many of the ``sequences``, ``choices`` for each, answer it."""
    prompts = sequences[::choices]
    prompt = sum(sequence.prompt_tokens + len(sequence.request.forced) for sequence in prompts)
    cached = sum(sequence.cached_tokens for sequence in prompts)
    completion = sum(sequence.answered for sequence in sequences)
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return counts | dropped(sum(sequence.evicted for sequence in sequences))


def dropped(tokens: int) -> dict[str, Any]:
    """What an answer says of tokens that were evicted from the context; nothing where none was."""
    return {"context_details": {"evicted_tokens": tokens}} if tokens else {}


class Choice:
    """One answer as far as it is known; ``calls`` finds calls of tools in its text."""

    def __init__(self, calls: Calls | None) -> None:
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish: str | None = None
        self.called: list[dict[str, Any]] = []
        """In OpenAI's form."""
        self._calls = calls

    def add(self, delta: Delta) -> list[Piece]:
        """What ``delta`` adds."""
        self.logprobs.extend(delta.logprobs)
        pieces: list[Piece] = [delta.text] if delta.text else []
        if self._calls is not None:
            pieces = self._calls.push(delta.text)
            if delta.finish is not None:
                pieces += self._calls.flush()
        for piece in pieces:
            if isinstance(piece, str):
                self.texts.append(piece)
            elif isinstance(piece, Called):
                self.called.append(_call(piece.name))
            else:
                self.called[piece.index]["function"]["arguments"] += piece.text
        self.finish = "tool_calls" if self.called and delta.finish == "stop" else delta.finish
        return pieces


def _call(name: str) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": ""},
    }


class Answer(ABC):
    """One response to ``work``, written as a whole or chunk by chunk."""

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(
        self, request_id: str, model: str, fingerprint: str, tokenizer: Tokenizer, work: Work
    ) -> None:
        self.id = f"{self.prefix}-{request_id}"
        tools = work.tools
        self.choices = [Choice(None if tools is None else tools.calls()) for _ in work.requests]
        self._common = {"created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
        self._tokenizer = tokenizer
        self._work = work
        self._wants_logprobs = work.requests[0].logprobs is not None

    def add(self, index: int, delta: Delta) -> None:
        self.choices[index].add(delta)

    def whole(self, sequences: list[Sequence]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "finish_reason": choice.finish,
                "logprobs": self._logprobs(choice.logprobs, index),
            }
            | self._content(index, choice)
            for index, choice in enumerate(self.choices)
        ]
        return self._body(self.whole_object, choices) | self.usage(sequences)

    def usage(self, sequences: list[Sequence]) -> dict[str, Any]:
        return {"usage": usage(sequences, self._work.choices)}

    def usage_chunk(self, sequences: list[Sequence]) -> dict[str, Any]:
        return self._body(self.chunk_object, []) | self.usage(sequences)

    def opening(self) -> Iterator[dict[str, Any]]:
        """Chunks before the first piece."""
        for index in range(len(self.choices)):
            if (first := self._first(index)) is not None:
                choice = {"index": index, "finish_reason": None, "logprobs": None} | first
                yield self._body(self.chunk_object, [choice])

    def chunk(self, index: int, delta: Delta) -> dict[str, Any] | None:
        """The chunk for a piece of choice ``index``; every piece is told once and in order. None for text
        that may yet turn out to be the beginning of a call."""
        choice = self.choices[index]
        pieces = choice.add(delta)
        if not (pieces or delta.logprobs or delta.finish):
            return None
        logprobs = self._logprobs(list(delta.logprobs), index)
        told = {"index": index, "finish_reason": choice.finish, "logprobs": logprobs}
        return self._body(self.chunk_object, [told | self._delta(choice, pieces)]) | dropped(delta.evicted)

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, **self._common, "choices": choices}

    def _logprobs(self, tokens: list[TokenLogprobs], index: int) -> dict[str, Any] | None:
        return self._told(tokens, index) if self._wants_logprobs else None

    @abstractmethod
    def _first(self, index: int) -> dict[str, Any] | None: ...

    @abstractmethod
    def _content(self, index: int, choice: Choice) -> dict[str, Any]: ...

    @abstractmethod
    def _delta(self, choice: Choice, pieces: list[Piece]) -> dict[str, Any]: ...

    @abstractmethod
    def _told(self, tokens: list[TokenLogprobs], index: int) -> dict[str, Any]: ...


class ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def _first(self, index: int) -> dict[str, Any]:
        return {"delta": {"role": "assistant", "content": ""}}

    def _content(self, index: int, choice: Choice) -> dict[str, Any]:
        text = "".join(choice.texts)
        message = {"role": "assistant", "content": text or None if choice.called else text, "refusal": None}
        return {"message": message | ({"tool_calls": choice.called} if choice.called else {})}

    def _delta(self, choice: Choice, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls: dict[int, dict[str, Any]] = {}
        for piece in pieces:
            if isinstance(piece, Called):
                begun = choice.called[piece.index]
                function = begun["function"] | {"arguments": ""}
                calls[piece.index] = {"index": piece.index} | begun | {"function": function}
            elif not isinstance(piece, str):
                call = calls.setdefault(piece.index, {"index": piece.index, "function": {"arguments": ""}})
                call["function"]["arguments"] += piece.text
        delta: dict[str, Any] = {"content": text} if text else {}
        return {"delta": delta | ({"tool_calls": list(calls.values())} if calls else {})}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text, raw = self._tokenizer.token(token)
        return {"token": text, "logprob": logprob, "bytes": None if raw is None else list(raw)}

    def _told(self, tokens: list[TokenLogprobs], index: int) -> dict[str, Any]:
        content = [
            self._token(told.token, told.logprob) | {"top_logprobs": [self._token(*top) for top in told.top]}
            for told in tokens
        ]
        return {"content": content, "refusal": None}


class CompletionAnswer(Answer):
    prefix = "cmpl"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._offsets = [0] * len(self.choices)

    def _echo(self, index: int) -> str:
        return self._work.echo[index // self._work.choices] if self._work.echo else ""

    def _first(self, index: int) -> dict[str, Any] | None:
        return {"text": self._echo(index)} if self._work.echo else None

    def _content(self, index: int, choice: Choice) -> dict[str, Any]:
        return {"text": self._echo(index) + "".join(choice.texts)}

    def _delta(self, choice: Choice, pieces: list[Piece]) -> dict[str, Any]:
        return {"text": "".join(piece for piece in pieces if isinstance(piece, str))}

    def _told(self, tokens: list[TokenLogprobs], index: int) -> dict[str, Any]:
        texts: list[str] = []
        offsets: list[int] = []
        tops: list[dict[str, float] | None] = []
        values: list[float | None] = []
        if self._work.echo:
            # Nothing comes before the first token that could make it likely.
            first = int(self._work.requests[index].prompt[0])
            texts, offsets, tops, values = [self._tokenizer.token(first)[0]], [0], [None], [None]
            self._offsets[index] = len(texts[0])
        for told in tokens:
            text, raw = self._tokenizer.token(told.token)
            texts.append(text)
            offsets.append(self._offsets[index])
            self._offsets[index] += len(raw.decode(errors="ignore")) if raw is not None else len(text)
            tops.append(
                {text: told.logprob} | {self._tokenizer.token(id)[0]: value for id, value in told.top}
            )
            values.append(told.logprob)
        return {
            "tokens": texts,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }
