"""Codes of up to 4 bits to float16 in a few instructions, eight at once, for kernels/cuda/look_up.py.

A byte permute takes four nibbles for selectors of a table of eight bytes: the upper bytes of the integers as
float16. Their lower bytes are zero, but for codes of 4 bits, which have a second table. Tables of these hold
the positive integers; codes of negative ones select from them with all bits turned over."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..runtime.formats.codebook import integers

_TABLE = 8


def instructions(bits: int) -> str:
    """PTX from a word of nibbles, ``$8``, to the numbers of their codes, ``$0`` to ``$7``."""
    points = integers(bits)[-_TABLE:].astype(np.float16).view(np.uint16)
    table: NDArray[np.uint16] = np.resize(points, _TABLE)
    upper, lower = _words(table >> np.uint16(8)), _words(table & np.uint16(0xFF))
    lines = [".reg .b32 word, rest, sign, up, low, first, second;"]
    if bits * 2 < _TABLE:
        if np.any(table & 0xFF):
            raise ValueError(f"integers of {bits} bits need both bytes of a float16")
        lines += ["mov.b32 low, 0;", *_permute("up", upper, "$8"), *_pairs(0)]
        lines += ["shr.u32 rest, $8, 16;", *_permute("up", upper, "rest"), *_pairs(4)]
    else:
        lines += [
            # The upper bit of a nibble is clear where the integer is negative; then 7 is taken from its rest.
            "not.b32 word, $8;",
            "and.b32 word, word, 0x88888888;",
            "shr.u32 rest, word, 3;",
            "sub.u32 word, word, rest;",
            "xor.b32 word, word, $8;",
            "and.b32 word, word, 0x77777777;",
            "shr.u32 sign, $8, 1;",
            "and.b32 sign, sign, 0x44444444;",
        ]
        for out in (0, 4):
            if out:
                lines += ["shr.u32 word, word, 16;", "shr.u32 sign, sign, 16;"]
            lines += [*_permute("up", upper, "word"), *_permute("low", lower, "word")]
            lines += [*_permute("first", ("0x80808080", "0x00000000"), "sign"), "or.b32 up, up, first;"]
            lines += _pairs(out)
    return "{\n" + "\n".join(lines) + "\n}"


def _words(table: NDArray[np.uint16]) -> tuple[str, str]:
    first, second = table.astype(np.uint8).view("<u4").tolist()
    return f"{first:#010x}", f"{second:#010x}"


def _permute(out: str, table: tuple[str, str], selectors: str) -> list[str]:
    return [
        f"mov.b32 first, {table[0]};",
        f"mov.b32 second, {table[1]};",
        f"prmt.b32 {out}, first, second, {selectors};",
    ]


def _pairs(out: int) -> list[str]:
    """Four numbers from ``out`` on, of their upper and their lower bytes."""
    return [
        "prmt.b32 first, low, up, 0x5140;",
        "prmt.b32 second, low, up, 0x7362;",
        f"mov.b32 {{${out}, ${out + 1}}}, first;",
        f"mov.b32 {{${out + 2}, ${out + 3}}}, second;",
    ]
