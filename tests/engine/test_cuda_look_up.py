"""The instructions that Triton's interpreter does not know, on every code; what they replace is tested
there."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from ptx import run

from infer_compile.catalog.resources import folder
from infer_compile.codegen.cuda_look_up import instructions
from infer_compile.codegen.cuda_pages import excess
from infer_compile.runtime.formats.codebook import integers


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_code_finds_its_integer(bits: int) -> None:
    rng = np.random.default_rng(bits)
    words = [np.arange(8) % 2**bits, np.full(8, 2**bits - 1), *rng.integers(0, 2**bits, (200, 8))]
    for codes in words:
        word = sum(int(code) << 4 * index for index, code in enumerate(codes))
        found = np.array(run(instructions(bits), [word], 8), np.uint16).view(np.float16)
        assert np.array_equal(found, integers(bits)[codes]), codes


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_integers_are_odd_numbers_and_what_they_exceed_them_by(bits: int) -> None:
    half = [2 * index + 1 + (excess(bits) >> 3 * index & 7) for index in range(2 ** (bits - 1))]
    assert half == integers(bits)[2 ** (bits - 1) :].tolist()


def test_every_float8_becomes_its_float16() -> None:
    source = (folder("kernels") / "cuda" / "codes.py").read_text()
    found = re.search(r'OPEN_FP8 = tl.constexpr\(\s*"""(.*?)"""', source, re.DOTALL)
    assert found is not None
    stored = np.array([byte for byte in range(256) if byte & 0x7F != 0x7F], np.uint8)
    for four in np.resize(stored, (64, 4)):
        words = run(found[1], four.view("<u4").tolist(), 2)
        halves = np.array(words, "<u4").view(np.float16).astype(np.float32)
        assert np.array_equal(halves * 256, four.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
