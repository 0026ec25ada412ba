"""The codec against theory: distortion, slope, packing, sizes; each would miss a wrong table or scale."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from infer_compile.lower.signs import signs
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.codebook import boundaries, error, integers, unit
from infer_compile.runtime.formats.kv import (
    HEAD_DIMS,
    LEVELS,
    SIDES,
    CacheLayout,
    LevelName,
    Plane,
    Segment,
    layer_cache,
    uniform,
)
from infer_compile.runtime.kv.codec import FP8_MOST, Codec
from infer_compile.runtime.kv.rotation import hadamard, unpack_signs
from infer_compile.runtime.kv.transform import Diagonal, Rotation, transform_of

Vectors = NDArray[np.float32]
DATA_FREE: tuple[LevelName, ...] = ("bf16", "fp8", "int8", "k8v4", "tq4", "tq3", "tq2")
# Relative error and slope of random unit vectors of 128 dimensions under the optimal tables, norm kept:
# found by Monte Carlo of the definition (Lloyd's centroids, scale |x| / |c|).
PUBLISHED = {2: (0.1189, 0.940), 3: (0.0338, 0.983), 4: (0.00918, 0.995)}


def rotated(bits: int, head_dim: int) -> Codec:
    segment = Segment(bits=bits, columns=head_dim)
    plane = Plane(kind="codes", transform="hadamard", segments=(segment,), scale_bytes=2)
    return Codec(plane, head_dim, Rotation(signs(head_dim), head_dim))


def plain(*segments: tuple[int, int]) -> Codec:
    """Codes of ``(bits, columns)`` of columns as they come: scales of one."""
    parts = tuple(Segment(bits=bits, columns=columns) for bits, columns in segments)
    plane = Plane(kind="codes", transform="diagonal", segments=parts)
    scale = np.ones((1, plane.columns), np.float32)
    return Codec(plane, plane.columns, Diagonal(scale, plane.columns))


def codecs(level: LevelName, head_dim: int) -> dict[str, Codec]:
    """Both sides of a data-free level."""
    layout = CacheLayout(
        level=level,
        page_tokens=32,
        sink_pages=1,
        recent_pages=4,
        kv_heads=1,
        head_dim=head_dim,
        layers=uniform(level, 1, head_dim),
        signs=signs(head_dim),
    )
    return {
        side: Codec(layout.layers[0].plane(side), head_dim, transform_of(layout, 0, side, {}))
        for side in SIDES
    }


def draw(count: int, head_dim: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((1, count, head_dim), dtype=np.float32)


def relative(vectors: Vectors, decoded: Vectors) -> float:
    """Mean of |x - x'|^2 / |x|^2."""
    return float(np.mean(np.sum((vectors - decoded) ** 2, -1) / np.sum(vectors**2, -1)))


def slope(vectors: Vectors, decoded: Vectors) -> float:
    return float(np.mean(np.sum(vectors * decoded, -1) / np.sum(vectors**2, -1)))


def cosine(bits: int, head_dim: int) -> float:
    """Of a random vector and its integers, by integration over one coordinate's density on the sphere of
    radius sqrt(head_dim)."""
    edge = np.sqrt(head_dim)
    places = np.linspace(-edge, edge, 400_001)[1:-1]
    density = (1 - places**2 / head_dim) ** ((head_dim - 3) / 2)
    points = integers(bits)[np.searchsorted(boundaries(bits) * unit(bits), places)].astype(float)
    weights = density / density.sum()
    return float(weights @ (points * places) / np.sqrt(weights @ points**2))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_distortion_and_slope_are_what_integration_says(bits: int, head_dim: int) -> None:
    """96 dimensions are three blocks of 32 under one norm, and lose no more."""
    vectors = draw(12_000, head_dim) * 37
    codec = rotated(bits, head_dim)
    decoded = codec.decode(codec.encode(vectors))
    expected = cosine(bits, head_dim)
    # With the norm kept, |x - x'|^2 is twice one less the cosine, and the slope is the cosine. A scale that
    # is fitted to each vector takes 1 to 2 of its head_dim degrees of freedom.
    error_expected = 2 * (1 - expected) * (1 - 1.5 / head_dim)
    assert relative(vectors, decoded) == pytest.approx(error_expected, rel=0.015)
    assert slope(vectors, decoded) == pytest.approx(expected, rel=0.002)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_distortion_is_close_to_the_best_table(bits: int) -> None:
    vectors = draw(12_000, 128)
    codec = rotated(bits, 128)
    decoded = codec.decode(codec.encode(vectors))
    best, best_slope = PUBLISHED[bits]
    assert relative(vectors, decoded) == pytest.approx(best, rel=0.025)
    assert slope(vectors, decoded) == pytest.approx(best_slope, rel=0.005)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_eight_bits_lose_a_step_of_the_largest(head_dim: int) -> None:
    """A uniform error over steps of 2 max|y| / 255."""
    vectors = draw(4_000, head_dim)
    codec = rotated(8, head_dim)
    columns = codec.transform.forward(vectors)
    steps = 2 * np.max(np.abs(columns), -1) / 255
    expected = np.mean(head_dim * steps**2 / 12 / np.sum(vectors**2, -1))
    decoded = codec.decode(codec.encode(vectors))
    assert relative(vectors, decoded) == pytest.approx(expected, rel=0.03)
    assert slope(vectors, decoded) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_norm_is_kept(bits: int, head_dim: int) -> None:
    """Of keys and values as large and as small as models have them, to the rounding of fp16."""
    for factor in (0.05, 1.0, 70.0):
        vectors = draw(500, head_dim) * np.float32(factor)
        codec = rotated(bits, head_dim)
        decoded = codec.decode(codec.encode(vectors))
        norms = np.linalg.norm(decoded, axis=-1) / np.linalg.norm(vectors, axis=-1)
        assert np.allclose(norms, 1, atol=6e-4)


@pytest.mark.parametrize("bits", range(1, 9))
def test_tables_have_the_errors_and_units_they_state(bits: int) -> None:
    places = np.linspace(-9, 9, 900_001)
    weights = np.exp(-(places**2) / 2)
    weights /= weights.sum()

    def loss(factor: float) -> float:
        points = integers(bits)[np.searchsorted(boundaries(bits) * factor, places)] * factor
        return float(weights @ (points - places) ** 2)

    found = loss(unit(bits))
    assert found == pytest.approx(error(bits), rel=0.003, abs=1e-6)
    assert found <= min(loss(unit(bits) * 0.99), loss(unit(bits) * 1.01)), "the unit is the best one"


def test_small_tables_are_nearly_the_best_there_are() -> None:
    optimum = {1: 0.363380, 2: 0.117482, 3: 0.034548, 4: 0.009501}
    for bits, least in optimum.items():
        assert least * 0.9999 <= error(bits) <= least * 1.02


def test_one_large_channel_is_spread_by_the_rotation() -> None:
    vectors = draw(2_000, 128)
    codec = rotated(3, 128)
    vectors[..., 5] += 40
    bound = 0.08
    decoded = codec.decode(codec.encode(vectors))
    spread = np.sum((vectors - decoded) ** 2) / np.sum(vectors**2)
    assert spread < bound
    unrotated = plain((3, 128))
    scale = np.float32(unit(3)) * np.sqrt(np.mean(vectors**2, -1, keepdims=True))
    kept = unrotated.decode(unrotated.encode(vectors / scale)) * scale
    assert np.sum((vectors - kept) ** 2) / np.sum(vectors**2) > 4 * bound


def test_a_constant_vector_is_spread_by_the_signs() -> None:
    """All of a constant lands in one coordinate of a transform without signs."""
    vectors = draw(2_000, 128) + 3
    codec = rotated(3, 128)
    assert relative(vectors, codec.decode(codec.encode(vectors))) < 0.05
    assert np.mean(np.abs(hadamard(vectors)[..., 0])) > 30


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_packing_gives_every_code_back(data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 5)), min_size=1, max_size=5))
    codec = plain(*((bits, 16 * granules) for bits, granules in parts))
    seed = data.draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    values = np.concatenate(
        [random.choice(integers(s.bits), (1, 9, s.columns)) for s in codec.plane.segments], axis=-1
    )
    stored = codec.encode(values.astype(np.float32))
    assert stored.shape == (1, 9, codec.plane.vector_bytes(codec.head_dim))
    assert np.array_equal(codec.decode(stored), values)


@pytest.mark.parametrize("bits", range(1, 9))
def test_packing_keeps_every_code_in_every_place(bits: int) -> None:
    codec = plain((bits, 32))
    points = integers(bits)
    for place in range(32):
        values = np.full((1, len(points), 32), points[0], np.float32)
        values[0, :, place] = points
        stored = codec.encode(values)
        codes, scales = codec.unpack(stored)
        assert scales is None
        assert codes[0, :, place].tolist() == list(range(2**bits))
        assert not np.delete(codes, place, -1).any()


@pytest.mark.parametrize("bits", range(1, 9))
def test_strips_join_to_the_codes_of_their_segment(bits: int) -> None:
    """Whatever stands before and behind it."""
    codec = plain((2, 16), (bits, 32), (6, 16))
    codes = np.random.default_rng(1).integers(0, 4, (1, 50, 64), dtype=np.uint8)
    codes[..., 16:48] = np.random.default_rng(2).integers(0, 2**bits, (1, 50, 32), dtype=np.uint8)
    joined = np.zeros_like(codes)
    for strip in codec.plane.strips:
        assert 1 <= strip.bits <= 4
        own = slice(strip.first, strip.first + strip.columns)
        joined[..., own] |= (codes[..., own] >> strip.shift & 2**strip.bits - 1) << strip.shift
    assert np.array_equal(joined, codes)
    assert sum(strip.bits for strip in codec.plane.strips if strip.first == 16) == bits
    found = np.concatenate([points for _, _, points in codec.points(codes)], axis=-1)
    for own, width in ((slice(16), 2), (slice(16, 48), bits), (slice(48, 64), 6)):
        assert np.array_equal(found[..., own], integers(width)[codes[..., own]])


BYTES = {
    # What a key and a value of one head take at 64, 96, 128 and 256 dimensions.
    "bf16": (256, 384, 512, 1024),
    "fp8": (128, 192, 256, 512),
    "int8": (132, 196, 260, 516),
    "k8v4": (98, 146, 194, 386),
    "tq4": (68, 100, 132, 260),
    "tq3": (52, 76, 100, 196),
    "tq2": (36, 52, 68, 132),
    "ct4": (68, 100, 132, 260),
    "ct3": (52, 76, 100, 196),
    "ct2": (36, 52, 68, 132),
}


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("level", LEVELS)
def test_the_byte_formula(level: LevelName, head_dim: int) -> None:
    expected = BYTES[level][HEAD_DIMS.index(head_dim)]
    layer = layer_cache(level, head_dim)
    assert layer.token_bytes(head_dim, 1) == expected
    assert layer.token_bytes(head_dim, 3) == 3 * expected
    assert layer.bits_per_element(head_dim) == 8 * expected / (2 * head_dim)
    assert set(BYTES) == set(LEVELS)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("level", DATA_FREE)
def test_as_many_bytes_are_written_as_the_formula_says_and_every_one_matters(
    level: LevelName, head_dim: int
) -> None:
    written = 0
    for codec in codecs(level, head_dim).values():
        stored = codec.encode(draw(1, head_dim, seed=4))
        assert stored.dtype == np.uint8
        written += stored.size
        decoded = codec.decode(stored)
        for place in range(stored.shape[-1]):
            changed = stored.copy()
            changed[..., place] ^= 1
            assert not np.array_equal(codec.decode(changed), decoded)
    assert written == layer_cache(level, head_dim).token_bytes(head_dim, 1)


@pytest.mark.parametrize("level", DATA_FREE)
def test_zero_vectors_stay_zero(level: LevelName) -> None:
    for codec in codecs(level, 96).values():
        with np.errstate(all="raise"):
            assert not np.any(codec.decode(codec.encode(np.zeros((1, 2, 96), np.float32))))


def test_bf16_is_kept_and_fp8_saturates() -> None:
    vectors = draw(50, 64)
    (codec, _) = codecs("bf16", 64).values()
    assert np.array_equal(codec.decode(codec.encode(vectors)), vectors.astype(ml_dtypes.bfloat16))
    (codec, _) = codecs("fp8", 64).values()
    vectors[0, 0, :4] = [448, 449, 1e6, -1e30]
    decoded = codec.decode(codec.encode(vectors))
    assert decoded[0, 0, :4].tolist() == [FP8_MOST, FP8_MOST, FP8_MOST, -FP8_MOST]
    assert np.allclose(decoded[0, 1:], vectors[0, 1:], rtol=2**-4, atol=2**-10)


@pytest.mark.parametrize("level", DATA_FREE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_refused(level: LevelName, bad: float) -> None:
    for codec in codecs(level, 64).values():
        vectors = draw(3, 64)
        vectors[0, 1, 7] = bad
        with pytest.raises(InferCompileError, match="IC522"):
            codec.encode(vectors)


@pytest.mark.parametrize("level", DATA_FREE)
def test_what_is_decoded_is_finite(level: LevelName) -> None:
    """Of keys that are larger than any model's, too."""
    for codec in codecs(level, 128).values():
        assert np.isfinite(codec.decode(codec.encode(draw(4, 128) * np.float32(1e5)))).all()


def test_the_layout_of_a_vector_in_bytes() -> None:
    """Planes of bits, least significant first, then the scale: the order that other readers rely on."""
    codec = rotated(2, 64)
    stored = codec.encode(draw(1, 64, seed=9))[0, 0]
    codes, scales = codec.unpack(stored[None, None])
    assert scales is not None
    for plane in range(2):
        bits = np.unpackbits(stored[8 * plane : 8 * plane + 8], bitorder="little")
        assert np.array_equal(bits, codes[0, 0] >> plane & 1)
    assert stored[16:].view("<f2")[0] == scales[0, 0]


@pytest.mark.parametrize("of", [lambda v: v, lambda v: v[:, ::2], lambda v: v.swapaxes(0, 1).copy()])
def test_vectors_are_encoded_one_by_one(of: Callable[[Vectors], Vectors]) -> None:
    """Whatever comes with them, and however the array lies in memory."""
    chosen = of(draw(6, 64))
    for level in DATA_FREE:
        for codec in codecs(level, 64).values():
            together = codec.encode(chosen)
            for head in range(chosen.shape[0]):
                for token in range(chosen.shape[1]):
                    alone = codec.encode(np.ascontiguousarray(chosen[head, token])[None, None])
                    assert np.array_equal(alone[0, 0], together[head, token])


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_transform_is_its_own_inverse_and_an_isometry(head_dim: int) -> None:
    vectors = draw(3, head_dim)
    assert np.allclose(hadamard(hadamard(vectors)), vectors, atol=1e-5)
    turned = Rotation(signs(head_dim), head_dim)
    assert np.allclose(turned.restore(turned.forward(vectors)), vectors, atol=1e-5)
    other = draw(3, head_dim, seed=1)
    products = turned.query(other)[0] @ turned.forward(vectors)[0].T
    assert np.allclose(products, other[0] @ vectors[0].T, atol=1e-4)


def test_the_transform_of_known_vectors_and_signs_bit_by_bit() -> None:
    """Sylvester's matrix in natural order: row i, column j is -1 to the number of common bits."""
    matrix = [[(-1) ** bin(i & j).count("1") / 8 for j in range(64)] for i in range(64)]
    assert np.allclose(hadamard(np.eye(64, dtype=np.float32)), matrix)
    assert np.count_nonzero(hadamard(np.eye(96, dtype=np.float32))[0]) == 32, "blocks of 32"
    assert unpack_signs("0180", 16).tolist() == [-1] + [1] * 14 + [-1]
