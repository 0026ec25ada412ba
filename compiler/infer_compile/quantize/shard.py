"""One safetensors file: its checked header, its tensors by memory map, and the header of a new one.

The format (github.com/huggingface/safetensors): eight bytes of little-endian header length, a JSON object of
``name: {dtype, shape, data_offsets}`` (and ``__metadata__``), then the bytes of the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..runtime.errors import InferCompileError, Problem

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES: Mapping[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_LENGTH = struct.Struct("<Q")
# The reference reader refuses longer headers too; without a limit a damaged length asks for any memory.
_MAX_HEADER = 100_000_000
_PIECE = 1 << 22
_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "fetch the file again; compare its size and sha256 with the publisher's"


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored tensor: bytes ``[begin, end)`` after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Shard:
    """A checked safetensors file of ``size`` bytes, whose tensors start at byte ``data``."""

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data: int
    size: int

    def read(self, name: str) -> np.ndarray:
        """The tensor ``name``, read-only and memory-mapped: its pages are given back when the array goes.

        Raises InferCompileError: IC125 the file changed its size since it was opened, IC137 unreadable.
        """
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        if entry.begin == entry.end:
            return np.empty(entry.shape, dtype)
        start = self.data + entry.begin
        skipped = start % mmap.ALLOCATIONGRANULARITY
        length = entry.end - entry.begin + skipped
        try:
            with self.path.open("rb") as file:
                # Reading a map beyond the end of its file kills the process, so look at the size again.
                if file.seek(0, 2) != self.size:
                    raise _damaged(self.path, "its size changed while it was read")
                view = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start - skipped)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        flat = np.frombuffer(view, dtype, count=math.prod(entry.shape), offset=skipped)
        return flat.reshape(entry.shape)

    def sha256(self, name: str) -> str:
        """Digest of the tensor's bytes, read in small pieces. Raises IC137."""
        entry = self.entries[name]
        try:
            with self.path.open("rb") as file:
                return digest(file.fileno(), self.data + entry.begin, entry.end - entry.begin)
        except OSError as error:
            raise _unreadable(self.path, error) from error


def open_shard(path: Path) -> Shard:
    """Check the header of ``path`` against the format and the size of the file.

    Raises InferCompileError: IC125 truncated, damaged or a Git LFS pointer, IC137 missing or unreadable.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(len(_LFS_POINTER))
            if start == _LFS_POINTER:
                pointer = "the file is a Git LFS pointer, not weights"
                raise InferCompileError(Problem("IC125", pointer, str(path), fix="git lfs pull"))
            if size < _LENGTH.size:
                raise _damaged(path, f"it holds {size} bytes, less than the smallest header")
            (length,) = _LENGTH.unpack(start[: _LENGTH.size])
            if length > min(size - _LENGTH.size, _MAX_HEADER):
                raise _damaged(path, f"its header should take {length} bytes; the file holds {size}")
            file.seek(_LENGTH.size)
            text = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    entries, metadata = _parse(path, text)
    data = _LENGTH.size + length
    expected = data + max((entry.end for entry in entries.values()), default=0)
    if size != expected:
        state = "truncated" if size < expected else "longer than its header says"
        raise _damaged(path, f"it is {state}: {size} of {expected} bytes")
    return Shard(path, entries, metadata, data, size)


def digest(descriptor: int, begin: int, length: int) -> str:
    """sha256, in hex, of ``length`` bytes of an open file from ``begin`` on. Raises OSError."""
    result = hashlib.sha256()
    for position in range(begin, begin + length, _PIECE):
        result.update(os.pread(descriptor, min(_PIECE, begin + length - position), position))
    return result.hexdigest()


def encode_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the data starts on a multiple of eight."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return _LENGTH.pack(len(text)) + text


def arrange(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Places for tensors given as (name, dtype, shape): widest dtype first, then by name, so that every
    tensor starts at a multiple of its item size."""
    entries: dict[str, Entry] = {}
    begin = 0
    for name, dtype, shape in sorted(tensors, key=lambda item: (-DTYPES[item[1]].itemsize, item[0])):
        end = begin + math.prod(shape) * DTYPES[dtype].itemsize
        entries[name] = Entry(dtype, shape, begin, end)
        begin = end
    return entries


def _parse(path: Path, text: bytes) -> tuple[dict[str, Entry], dict[str, str]]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise _damaged(path, f"its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _damaged(path, "its metadata is not a JSON object")
    entries = {name: _entry(path, name, fields) for name, fields in header.items()}
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise _damaged(path, f"tensor {name!r} starts at byte {entry.begin} instead of {position}")
        position = entry.end
    return entries, {str(key): str(value) for key, value in metadata.items()}


def _entry(path: Path, name: str, fields: object) -> Entry:
    if not isinstance(fields, dict):
        raise _damaged(path, f"the header of tensor {name!r} is not a JSON object")
    dtype = fields.get("dtype")
    shape, offsets = _naturals(fields.get("shape")), _naturals(fields.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2 or not isinstance(dtype, str):
        raise _damaged(path, f"the header of tensor {name!r} lacks its dtype, shape or offsets")
    begin, end = offsets
    known = DTYPES.get(dtype)
    if known is not None and end - begin != math.prod(shape) * known.itemsize:
        raise _damaged(path, f"tensor {name!r} of {dtype} {list(shape)} cannot take {end - begin} bytes")
    return Entry(dtype, shape, begin, end)


def _naturals(value: object) -> tuple[int, ...] | None:
    fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
    return tuple(value) if fits and isinstance(value, list) else None


def _unreadable(path: Path, error: OSError) -> InferCompileError:
    cause = error.strerror or str(error)
    return InferCompileError(Problem("IC137", "a file of the checkpoint cannot be read", str(path), cause))


def _damaged(path: Path, because: str) -> InferCompileError:
    return InferCompileError(Problem("IC125", "the safetensors file is damaged", str(path), because, _AGAIN))
