"""Codes of 4 or 8 bits in int32 words, in the order of compressed-tensors' ``pack-quantized`` format.

A code is stored with half its range added (0..15 or 0..255), the first of a word in its lowest bits; words
are little-endian. So a row is its nibbles, or bytes, in their own order.
"""

from __future__ import annotations

import numpy as np


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """int8 [rows, cols] to int32 [rows, cols * bits / 32]; cols must fill whole words (ValueError)."""
    rows, cols = values.shape
    if cols * bits % 32:
        raise ValueError(f"{cols} codes of {bits} bits do not fill whole words")
    stored = (values.view(np.uint8) + np.uint8(1 << (bits - 1))) & np.uint8((1 << bits) - 1)
    if bits == 4:
        stored = stored[:, 0::2] | (stored[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(stored).view("<i4").reshape(rows, cols * bits // 32)


def unpack(words: np.ndarray, bits: int) -> np.ndarray:
    """The int8 codes back: int32 [rows, words] to int8 [rows, words * 32 / bits]."""
    rows, count = words.shape
    stored = np.ascontiguousarray(words).view(np.uint8).reshape(rows, count * 4)
    if bits == 4:
        nibbles = np.empty((rows, count * 8), np.uint8)
        np.bitwise_and(stored, np.uint8(15), out=nibbles[:, 0::2])
        np.right_shift(stored, np.uint8(4), out=nibbles[:, 1::2])
        stored = nibbles
    return (stored - np.uint8(1 << (bits - 1))).view(np.int8)
