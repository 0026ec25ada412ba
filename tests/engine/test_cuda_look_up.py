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
    codes = [np.arange(8) % 2**bits, np.full(8, 2**bits - 1), *rng.integers(0, 2**bits, (200, 8))]
    words = np.stack(codes) @ (1 << 4 * np.arange(8))
    found = run(instructions(bits), words.astype(np.uint32)[:, None], [16] * 8)
    for index, halves in enumerate(found):
        expected = integers(bits)[np.stack(codes)[:, index]]
        assert np.array_equal(halves.astype(np.uint16).view(np.float16), expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_integers_are_odd_numbers_and_what_they_exceed_them_by(bits: int) -> None:
    half = [2 * index + 1 + (excess(bits) >> 3 * index & 7) for index in range(2 ** (bits - 1))]
    assert half == integers(bits)[2 ** (bits - 1) :].tolist()


def test_every_float8_becomes_its_float16() -> None:
    source = (folder("kernels") / "cuda" / "codes.py").read_text()
    found = re.search(r'OPEN_FP8 = tl.constexpr\(\s*"""(.*?)"""', source, re.DOTALL)
    assert found is not None
    stored = np.array([byte for byte in range(256) if byte & 0x7F != 0x7F], np.uint8)
    four = np.resize(stored, (64, 4))
    words = np.stack(run(found[1], four.view("<u4"), [32, 32]), axis=1).astype("<u4")
    halves = words.view(np.float16).astype(np.float32)
    assert np.array_equal(halves * 256, four.view(ml_dtypes.float8_e4m3fn).astype(np.float32))
