"""API keys: where they come from, and whether a request bears one."""

from __future__ import annotations

import hmac
import os
from hashlib import sha256
from pathlib import Path

from ..errors import Exit, InferCompileError, Problem

VARIABLE = "INFER_COMPILE_API_KEYS"
"""Keys, divided by commas or line breaks."""


class Keys:
    """Only digests are kept and compared, each with every key, so that time tells nothing of them."""

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        self._digests = [sha256(key.encode()).digest() for key in sorted(keys)]

    @property
    def asked_for(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: str) -> bool:
        """Whether the header, its bytes read as Latin-1, holds one of the keys, or none is needed."""
        if not self._digests:
            return True
        # Bytes of UTF-8 in a header arrive as so many characters.
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode("latin-1", "replace")).digest()
        found = [hmac.compare_digest(given, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(found)


def load(file: Path | None) -> Keys:
    """Keys of ``file``, one in a line (``#`` begins a comment), and of the environment. Raises IC530."""
    keys = {key.strip() for key in os.environ.get(VARIABLE, "").replace("\n", ",").split(",")} - {""}
    if VARIABLE in os.environ and not keys:
        raise _unusable(VARIABLE, "it holds no key")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise _unusable(str(file), str(error)) from error
        listed = {line.strip() for line in lines if not line.lstrip().startswith("#")} - {""}
        if not listed:
            raise _unusable(str(file), "it holds no key")
        keys |= listed
    return Keys(frozenset(keys))


def _unusable(where: str, because: str) -> InferCompileError:
    fix = "write one key in a line, or leave keys out to serve without"
    return InferCompileError(Problem("IC530", "the API keys cannot be used", where, because, fix), Exit.USAGE)
