"""Tool calls in the text of an answer, found while it comes in.

Two forms are known, each by the chat template that asks the model for it: Hermes', where every call stands in
``<tool_call>`` tags as {"name": ..., "arguments": {...}}, and Llama 3's, where the whole answer is
{"name": ..., "parameters": {...}}, several divided by semicolons.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Form:
    """``opening`` and ``closing`` stand around each call; without them a call is the whole answer."""

    name: str
    arguments: str
    opening: str = ""
    closing: str = ""
    mark: str = ""
    """May stand before the first call and says nothing."""


HERMES = Form("hermes", "arguments", "<tool_call>", "</tool_call>")
LLAMA = Form("llama", "parameters", mark="<|python_tag|>")
BLANK = " \n\r\t"


def form_of(template: str) -> Form | None:
    """The form that a chat template asks for; None if it knows no tools, or another form."""
    if "tools" not in template:
        return None
    if HERMES.opening in template:
        return HERMES
    return LLAMA if re.search(r"[\"']parameters\\?[\"']:", template) else None


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """More of the JSON of a call's arguments."""

    index: int
    text: str


Piece = str | Called | Argued
"""A text is content."""


class _Body:
    """The JSON object of one call, as far as it is known. ``whole`` when its last brace has come."""

    def __init__(self, form: Form) -> None:
        self.text = ""
        self.whole = False
        self.begun = False
        self._header = re.compile(
            r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"' + form.arguments + r'"\s*:\s*(?=\{)'
        )
        self._form = form
        self._keys = ("name", "type", form.arguments)
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._told = 0
        self._end = 0

    def push(self, text: str) -> str:
        """Takes of ``text`` what belongs to the object and returns the rest."""
        for at, letter in enumerate(text):
            self._step(letter)
            if self._depth == 0 and letter == "}" and not self._quoted:
                self.text += text[: at + 1]
                self.whole = True
                return text[at + 1 :]
            if self._depth == 1 and letter == "}" and not self._quoted and self.begun and not self._end:
                self._end = len(self.text) + at + 1
        self.text += text
        return ""

    def _step(self, letter: str) -> None:
        if self._escaped:
            self._escaped = False
        elif self._quoted:
            self._escaped = letter == "\\"
            self._quoted = letter != '"'
        elif letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1

    @property
    def other(self) -> bool:
        """Whether it is known to be no call: another value than an object, or one with another first key."""
        start = self.text.lstrip(BLANK)
        key = re.match(r'\{\s*"([^"]*)"', start)
        return bool(start) and (start[0] != "{" or (key is not None and key[1] not in self._keys))

    def begin(self, known: frozenset[str]) -> str | None:
        """The name, when it and the beginning of the arguments are there."""
        found = self._header.match(self.text)
        if found is None:
            return None
        name = str(json.loads(found[1], strict=False))
        if name not in known:
            return None
        self.begun = True
        self._told = found.end()
        self._end = self._end_of_arguments()
        return name

    def _end_of_arguments(self) -> int:
        inner = _Body(self._form)
        rest = inner.push(self.text[self._told :])
        return len(self.text) - len(rest) if inner.whole else 0

    def more(self) -> str:
        """Arguments that have not been told yet."""
        text = self.text[self._told : self._end or len(self.text)]
        self._told += len(text)
        return text

    def parsed(self, known: frozenset[str]) -> tuple[str, str] | None:
        """Name and arguments of a whole call with its keys in another order; None if it is none."""
        try:
            value: Any = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        name, arguments = value.get("name"), value.get(self._form.arguments)
        if name not in known or not isinstance(arguments, dict | str):
            return None
        return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


class Calls:
    """Divides the text of one answer into content and calls of the functions ``known``.

    What looks like a call and is none, for its JSON is broken or its function unknown, is content.
    """

    def __init__(self, form: Form, known: frozenset[str], most: int | None = None) -> None:
        self._form = form
        self._known = known
        self._most = most
        """Calls that are told; those beyond are content. None: all."""
        self._held = ""
        self._body: _Body | None = None
        self._closing = False
        self._plain = False
        """Nothing that follows can be a call."""
        self.count = 0

    def push(self, text: str) -> list[Piece]:
        self._held += text
        return _joined(self._pieces(False))

    def flush(self) -> list[Piece]:
        """What is held back when the answer ends."""
        pieces = [*self._pieces(True)]
        if self._body is not None and not self._body.begun:
            pieces.append(self._form.opening + self._body.text)
            self._body = None
        return _joined([*pieces, "" if self._closing else self._take(len(self._held))])

    def _pieces(self, last: bool) -> Iterator[Piece]:
        while True:
            before = (len(self._held), self._body is None, self._closing)
            if self._body is not None:
                yield from self._in_body(self._body)
            elif self._closing:
                self._after()
            elif self._plain:
                yield self._take(len(self._held))
            elif self._form.opening:
                yield from self._outside(last)
            else:
                yield from self._bare()
            if before == (len(self._held), self._body is None, self._closing):
                return

    def _take(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _outside(self, last: bool) -> Iterator[Piece]:
        opening = self._form.opening
        at = self._held.find(opening)
        if at >= 0:
            # Line breaks between calls are the form's, not the answer's.
            before = self._take(at)
            yield before if before.strip(BLANK) else ""
            self._take(len(opening))
            self._body = _Body(self._form)
            return
        if last:
            return
        overlap = next(
            size for size in range(len(opening) - 1, -1, -1) if self._held.endswith(opening[:size])
        )
        certain = self._held[: len(self._held) - overlap]
        yield self._take(len(certain.rstrip(BLANK) if self.count else certain))

    def _bare(self) -> Iterator[Piece]:
        text = self._held.lstrip(BLANK + (";" if self.count else ""))
        if text.startswith(self._form.mark):
            text = text[len(self._form.mark) :].lstrip(BLANK)
        if not text or self._form.mark.startswith(text):
            return
        if text.startswith("{"):
            self._held = text
            self._body = _Body(self._form)
        else:
            self._plain = True
        yield ""

    def _in_body(self, body: _Body) -> Iterator[Piece]:
        self._held = body.push(self._held)
        full = self._most is not None and self.count >= self._most
        if body.other or (body.whole and full):
            yield from self._give_up(body)
            return
        if not body.begun and not full:
            name = body.begin(self._known)
            if name is not None:
                yield Called(self.count, name)
        if body.begun:
            yield Argued(self.count, body.more())
        if not body.whole:
            return
        if not body.begun:
            parsed = body.parsed(self._known)
            if parsed is None:
                yield from self._give_up(body)
                return
            yield Called(self.count, parsed[0])
            yield Argued(self.count, parsed[1])
        self.count += 1
        self._body = None
        self._closing = bool(self._form.closing)

    def _give_up(self, body: _Body) -> Iterator[Piece]:
        self._body = None
        self._plain = not self._form.opening
        yield self._form.opening + body.text

    def _after(self) -> None:
        text = self._held.lstrip(BLANK)
        closing = self._form.closing
        if text.startswith(closing):
            self._held = text[len(closing) :]
            self._closing = False
        elif text and not closing.startswith(text):
            self._closing = False


def _joined(pieces: list[Piece] | Iterator[Piece]) -> list[Piece]:
    """Without empty ones, neighbours of a kind put together."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, str) and isinstance(last, str):
            joined[-1] = last + piece
        elif isinstance(piece, Argued) and isinstance(last, Argued) and piece.index == last.index:
            joined[-1] = Argued(piece.index, last.text + piece.text)
        elif piece and not (isinstance(piece, Argued) and not piece.text):
            joined.append(piece)
    return joined
