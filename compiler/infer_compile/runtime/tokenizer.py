"""Text to tokens and back, from the files of a model's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from .errors import InferCompileError, Problem
from .step import Int32

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
MOST_UNFINISHED = 16
"""Tokens after which bytes that form no character are given up on; a character has at most four."""
CONTEXT = 6
"""Prompt tokens decoded along with the first new ones: some decoders treat the beginning of a text apart."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``, empty if there is no such file; raises IC503 for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(value, dict):
        raise _unreadable(path, "it does not hold a JSON object")
    return value


def _unreadable(path: Path, because: str) -> InferCompileError:
    return InferCompileError(
        Problem("IC503", "the tokenizer cannot be read", str(path), because, "build the bundle again")
    )


def _content(token: object) -> str | None:
    """A special token is written as its text or as an object that holds it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


class Tokenizer:
    """The tokenizer of the model in ``folder``: tokenizer.json, tokenizer_config.json and the end-of-text ids
    of config.json and generation_config.json. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        path = folder / "tokenizer.json"
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(path, str(error)) from error
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises no narrower type for a file it cannot parse
            raise _unreadable(path, str(error)) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.config = read_json(folder / "tokenizer_config.json")
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        found = {name: _content(self.config.get(name)) for name in names}
        self.special = {name: token for name, token in found.items() if token is not None}
        self.end_ids = self._end_ids(folder)

    def _end_ids(self, folder: Path) -> frozenset[int]:
        ends: set[int] = set()
        for name in ("config.json", "generation_config.json"):
            value = read_json(folder / name).get("eos_token_id")
            ends.update(id for id in (value if isinstance(value, list) else [value]) if isinstance(id, int))
        if "eos_token" in self.special:
            id = self._tokenizer.token_to_id(self.special["eos_token"])
            if id is not None:
                ends.add(id)
        return frozenset(ends)

    def encode(self, text: str, *, special: bool) -> Int32:
        """The ids of ``text``; with ``special`` those are added that the model's own tokenizer adds around a
        text, which a rendered chat template holds already."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=special).ids, np.int32)

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """The text of ``ids``, special tokens left out unless ``special``."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=not special))

    def special_id(self, text: str) -> int | None:
        """The id of ``text`` if it is one special token, which decoding leaves out unless told otherwise."""
        id: int | None = self._tokenizer.token_to_id(text) if text else None
        return id if id is not None and self.decode([id]) == "" else None

    def token(self, id: int) -> tuple[str, bytes | None]:
        """One token's text, and its bytes where known; a part of a character reads ``bytes:\\xc3``."""
        text = self.decode([id], special=True)
        if UNFINISHED not in text:
            return text, text.encode()
        raw = _bytes_of(self._tokenizer.id_to_token(id) or "")
        return (text, None) if raw is None else ("bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), raw)


def _bytes_of(name: str) -> bytes | None:
    """The bytes behind a token's name in a vocabulary: ``<0xC3>``, or a letter of GPT-2's alphabet for each.

    In it the printable characters of Latin-1 stand for themselves, those from U+0100 on for the other bytes.
    """
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet |= {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return bytes(alphabet[letter] for letter in name) if alphabet.keys() >= set(name) else None


class Detokenizer:
    """Text of a growing sequence, given out as soon as it is certain: no character is ever cut."""

    def __init__(self, tokenizer: Tokenizer, prompt: Int32, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        """Whether special tokens have a text."""
        self._ids: list[int] = prompt[-CONTEXT:].tolist()
        # The first ids are given out already; they are decoded again so that what follows joins on.
        self._given = len(self._ids)

    def push(self, token: int) -> str:
        """The text that ``token`` makes certain, often empty."""
        self._ids.append(token)
        return self._next(len(self._ids) - self._given >= MOST_UNFINISHED)

    def flush(self) -> str:
        """What is left at the end, bytes of an unfinished character as U+FFFD."""
        return self._next(True)

    def _next(self, certain: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._given], special=self._special)
        text = self._tokenizer.decode(self._ids, special=self._special)
        if len(text) <= len(before) or (text.endswith(UNFINISHED) and not certain):
            return ""
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)
        return text[len(before) :]
