"""Round to nearest, against the formula written out for one group at a time."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_compile.quantize.pack import pack, unpack
from infer_compile.quantize.rtn import NotFinite, Quantized, quantize
from infer_compile.runtime.formats.weights import BF16, FP8, GROUPS, weight_format

FORMATS = [weight_format(name, group) for name in ("int8", "int4-rtn") for group in GROUPS]
TOP = {8: 127, 4: 7}
LOW = {8: -127, 4: -8}


def naive(group: np.ndarray, bits: int, part: float) -> tuple[np.ndarray, float, float]:
    """Codes, scale and squared error of one group, in double precision but for the stated roundings."""
    largest = float(np.abs(group).max())
    scale = float(ml_dtypes.bfloat16(np.float32(largest) / np.float32(TOP[bits] / part))) or 1.0
    codes = [min(TOP[bits], max(LOW[bits], round(float(np.float32(w) / np.float32(scale))))) for w in group]
    error = sum((float(w) - code * scale) ** 2 for w, code in zip(group, codes, strict=True))
    return np.array(codes), scale, error


def groups_of(weights: np.ndarray, quantized: Quantized, size: int):
    codes = quantized.values.reshape(-1, size)
    scales = quantized.scales.astype(np.float64).reshape(-1)
    yield from zip(weights.reshape(-1, size), codes, scales, strict=True)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: f"{format.name}-{format.group}")
def test_codes_and_scales_are_those_of_the_formula(format) -> None:
    weights = np.random.default_rng(0).standard_normal((6, 384)).astype(np.float32)
    weights[2] *= 1e-3
    result = quantize(weights, format)
    assert result.values.dtype == np.int8 and result.values.shape == weights.shape
    assert result.scales.dtype == ml_dtypes.bfloat16 and result.scales.shape == (6, 384 // format.group)
    parts = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85)}[format.bits]
    for group, codes, scale in groups_of(weights, result, format.group):
        tried = [naive(group, format.bits, part) for part in parts]
        chosen = [item for item in tried if item[1] == scale]
        assert chosen and np.array_equal(chosen[0][0], codes)
        assert chosen[0][2] <= min(item[2] for item in tried) * (1 + 1e-5)


def test_fp8_has_a_scale_for_each_row_and_the_nearest_numbers_of_e4m3() -> None:
    weights = np.random.default_rng(6).standard_normal((5, 40)).astype(np.float32)
    weights[1] *= 1e-4
    weights[2, :4] = [448, 17, 19, -21]
    weights[2, 4:] /= 100
    weights[3] = 0
    result = quantize(weights, FP8)
    assert result.values.dtype == ml_dtypes.float8_e4m3fn and result.scales.shape == (5, 1)
    scales = (np.abs(weights).max(1) / np.float32(448)).astype(ml_dtypes.bfloat16)
    scales[3] = 1
    assert result.scales.tobytes() == scales.tobytes()
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    found = result.values.astype(np.float64)
    for row, scale in enumerate(scales.astype(np.float64)):
        exact = np.clip(weights[row] / scale, -448, 448)
        nearest = np.abs(numbers[None, :] - exact[:, None]).min(1)
        assert np.all(np.abs(found[row] - exact) <= nearest * (1 + 1e-6) + 1e-6)
    # Between 16 and 32 numbers are two apart; halfway goes to the one whose last bit is 0.
    assert found[2, :4].tolist() == [448, 16, 20, -20]
    assert not found[3].any()


def test_a_code_halfway_goes_to_the_even_one() -> None:
    weights = np.zeros((1, 32), np.float32)
    weights[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    assert quantize(weights, weight_format("int8", 32)).values[0, :6].tolist() == [127, 0, 2, 2, 0, -2]


def test_int8_leaves_out_the_lowest_code_and_int4_uses_it() -> None:
    weights = np.random.default_rng(1).standard_normal((64, 256)).astype(np.float32)
    int8 = quantize(weights, weight_format("int8", 64)).values
    int4 = quantize(weights, weight_format("int4-rtn", 64)).values
    assert (int8.min(), int8.max()) == (-127, 127)
    assert (int4.min(), int4.max()) == (-8, 7)


def test_shrinking_the_scale_takes_a_tenth_off_the_error_of_int4() -> None:
    weights = np.random.default_rng(2).standard_normal((64, 1024)).astype(np.float32)
    format = weight_format("int4-rtn", 128)
    error = ((quantize(weights, format).dequantize() - weights) ** 2).sum()
    plain = sum(naive(group, 4, 1.0)[2] for group in weights.reshape(-1, 128))
    assert error < 0.9 * plain


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_error_of_a_weight_is_at_most_half_a_step_or_what_was_clipped(data: st.DataObject) -> None:
    format = data.draw(st.sampled_from(FORMATS))
    dtype = data.draw(st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]))
    seed = data.draw(st.integers(0, 2**16))
    size = data.draw(st.sampled_from([1e-30, 1e-6, 1.0, 1e4]))
    weights = (np.random.default_rng(seed).standard_cauchy((3, 256)) * size).clip(-6e4, 6e4).astype(dtype)
    result = quantize(weights, format)
    exact = weights.astype(np.float64)
    step = np.repeat(result.scales.astype(np.float64), format.group, axis=1)
    reach = np.clip(exact, LOW[format.bits] * step, TOP[format.bits] * step)
    error = np.abs(result.values * step - exact)
    assert (error <= step / 2 * (1 + 1e-6) + np.abs(exact - reach) + 1e-45).all()


def test_zeros_and_the_smallest_numbers() -> None:
    weights = np.zeros((2, 64), np.float32)
    weights[1, 3] = 1e-44
    result = quantize(weights, weight_format("int4-rtn", 32))
    assert not result.values.any()
    assert result.scales.astype(np.float32).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    weights = np.ones((4, 64), np.float32)
    weights[3, 60] = bad
    for name in ("int8", "int4-rtn"):
        with pytest.raises(NotFinite):
            quantize(weights, weight_format(name, 32))


def test_groups_that_do_not_fit_are_refused() -> None:
    for format in (BF16, weight_format("int8", 64)):
        with pytest.raises(ValueError, match="does not fit"):
            quantize(np.ones((4, 96), np.float32), format)


def test_threads_and_blocks_do_not_change_the_result() -> None:
    weights = np.random.default_rng(4).standard_normal((1500, 512)).astype(np.float32)
    format = weight_format("int4-rtn", 64)
    whole, threaded = quantize(weights, format), quantize(weights, format, threads=3)
    rows = [quantize(weights[row : row + 1], format) for row in (0, 511, 512, 1499)]
    assert np.array_equal(whole.values, threaded.values)
    assert whole.scales.tobytes() == threaded.scales.tobytes()
    for row, alone in zip((0, 511, 512, 1499), rows, strict=True):
        assert np.array_equal(whole.values[row], alone.values[0])


def test_dequantizing_is_exact_in_float32() -> None:
    weights = np.random.default_rng(5).standard_normal((8, 128)).astype(np.float32)
    result = quantize(weights, weight_format("int8", 32))
    exact = result.values.astype(np.float64) * np.repeat(result.scales.astype(np.float64), 32, axis=1)
    found = result.dequantize()
    assert found.dtype == np.float32 and np.array_equal(found.astype(np.float64), exact)


def test_a_word_holds_its_codes_from_the_lowest_bits_up() -> None:
    nibbles = np.array([[-8, -7, 0, 7, 1, 2, 3, -1]], np.int8)
    assert pack(nibbles, 4).view(np.uint32)[0, 0] == 0x7BA9F810
    octets = np.array([[-128, -127, 0, 127]], np.int8)
    assert pack(octets, 8).view(np.uint32)[0, 0] == 0xFF800100


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code_comes_back(bits: int) -> None:
    half = 1 << (bits - 1)
    codes = np.arange(-half, half, dtype=np.int8)
    values = np.stack([np.tile(codes, 4), np.tile(codes[::-1], 4)])
    words = pack(values, bits)
    assert words.dtype == np.int32 and words.shape == (2, values.shape[1] * bits // 32)
    assert np.array_equal(unpack(words, bits), values)


def test_a_row_that_does_not_fill_its_words_is_refused() -> None:
    with pytest.raises(ValueError, match="whole words"):
        pack(np.zeros((1, 12), np.int8), 4)
