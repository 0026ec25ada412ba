"""Grammars that an answer must follow, as masks over the vocabulary.

The work is llguidance's: a parser of context-free grammars over a lexer of derivatives of regular
expressions.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
from llguidance import LLMatcher, LLTokenizer, grammar_from
from numpy.typing import NDArray

from .errors import InferCompileError, Problem

Kind = Literal["json", "regex", "choice", "grammar", "lark"]
MOST_COMPILED = 64
"""Compiled grammars that are kept for the next request that asks for the same."""
MOST_LETTERS = 2**17
"""Of a grammar."""
BLANKS = r"\x20|\n\x20{0,12}|\n\t{0,6}"
"""White space where JSON allows it: a weak model goes on with what has no bound to the end of the answer."""


class GrammarRefusal(ValueError):
    """The grammar is none, or one that is not served; the message says why."""


class Matcher:
    """The grammar of one sequence and how far the answer has come. ``mask`` [words of 32 ids] holds the
    tokens that may come next; when nothing may, those that end the text."""

    def __init__(self, state: LLMatcher, words: int) -> None:
        self._state = state
        self._words = words
        self.mask = self._next()

    def push(self, token: int) -> None:
        """``token`` was drawn. Raises IC533 if the grammar cannot be followed any further."""
        if not self._state.is_stopped() and not self._state.consume_token(token):
            raise self._lost()
        self.mask = self._next()

    def _next(self) -> NDArray[np.uint32]:
        # A new array each time: the engine may still read the last one.
        mask = np.zeros(self._words, np.uint32)
        self._state.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._state.is_error():
            raise self._lost()
        return mask

    def _lost(self) -> InferCompileError:
        because = self._state.get_error().splitlines()[0][:200] if self._state.is_error() else ""
        fix = "simplify the grammar or schema"
        return InferCompileError(
            Problem("IC533", "the grammar of the answer cannot be followed further", "", because, fix)
        )


class Grammar:
    """A compiled grammar, to be followed by any number of sequences."""

    def __init__(self, start: LLMatcher, words: int) -> None:
        self._start = start
        self._words = words

    def matcher(self) -> Matcher:
        return Matcher(self._start.deep_copy(), self._words)


class Grammars:
    """Compiles grammars for the tokenizer in ``folder`` and a model of ``vocabulary`` tokens, of which
    ``ends`` end a text. Safe to use from several threads."""

    def __init__(self, folder: Path, vocabulary: int, ends: frozenset[int]) -> None:
        self._words = (vocabulary + 31) // 32
        self._compiled: OrderedDict[tuple[Kind, str], Grammar] = OrderedDict()
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None
        self._because = "the model names no token that ends a text"
        if not ends:
            return
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
            self._tokenizer = LLTokenizer(text, n_vocab=vocabulary, eos_token=sorted(ends))
        except (OSError, ValueError) as error:
            self._because = str(error)

    def compile(self, kind: Kind, text: str) -> Grammar:
        """The grammar that ``text`` states. Raises GrammarRefusal."""
        if len(text) > MOST_LETTERS:
            raise GrammarRefusal(f"it is longer than {MOST_LETTERS} letters")
        key = (kind, text)
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
        compiled = self._compile(kind, text)
        with self._lock:
            self._compiled[key] = compiled
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def _compile(self, kind: Kind, text: str) -> Grammar:
        if self._tokenizer is None:
            raise GrammarRefusal(f"this model's tokenizer cannot be bound to a grammar: {self._because}")
        try:
            state = LLMatcher(self._tokenizer, _grammar(kind, text), log_level=0)
        except ValueError as error:
            raise GrammarRefusal(_brief(str(error))) from error
        if state.is_error():
            raise GrammarRefusal(_brief(state.get_error()))
        grammar = Grammar(state, self._words)
        try:
            grammar.matcher()
        except InferCompileError as error:
            raise GrammarRefusal(error.problems[0].because) from error
        return grammar


def schema_text(schema: object) -> str:
    """The text of a JSON schema, the order of its properties kept: answers have them in that order."""
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def lark_choice(choices: Sequence[str]) -> str:
    """A grammar in Lark's syntax of exactly these texts."""
    return "start: " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)


def _grammar(kind: Kind, text: str) -> str:
    if kind == "json":
        return json_grammar(text)
    if kind == "choice":
        return str(LLMatcher.grammar_from_lark(lark_choice(json.loads(text))))
    return str(grammar_from(kind, text))


def json_grammar(text: str) -> str:
    overrides: Any = {"whitespace_pattern": BLANKS}
    return str(LLMatcher.grammar_from_json_schema(text, overrides=overrides))


def _brief(message: str) -> str:
    return message.strip().splitlines()[0][:300] if message.strip() else "it cannot be read"
