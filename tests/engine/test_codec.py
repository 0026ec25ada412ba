"""The codec against theory: distortion, slope, packing; each would miss a wrong table or scale."""

import hashlib

import numpy as np
import pytest

from infer_compile.runtime.formats.codebook import boundaries, centroids
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.kv.codec import Codec, hadamard, pack3, unpack3, unpack_signs


def layout(head_dim: int) -> CacheLayout:
    signs = hashlib.shake_256(b"signs").hexdigest(head_dim // 8)
    return CacheLayout(
        level="tq3",
        page_tokens=32,
        sink_pages=1,
        recent_pages=4,
        kv_heads=1,
        head_dim=head_dim,
        layers=1,
        signs=signs,
    )


@pytest.mark.parametrize(("head_dim", "expected"), [(128, 0.0340), (256, 0.03426)])
def test_distortion_is_what_theory_says(head_dim: int, expected: float) -> None:
    """Expected: numerical optimum for the density of one coordinate on the sphere."""
    vectors = np.random.default_rng(0).standard_normal((8000, head_dim), dtype=np.float32) * 37
    codec = Codec(layout(head_dim))
    decoded = codec.decode(codec.encode(vectors))
    error = np.sum((vectors - decoded) ** 2, axis=1) / np.sum(vectors**2, axis=1)
    assert np.mean(error) == pytest.approx(expected, rel=0.01)


def test_norm_is_kept_and_slope_is_the_corrected_one() -> None:
    vectors = np.random.default_rng(1).standard_normal((8000, 128), dtype=np.float32)
    codec = Codec(layout(128))
    decoded = codec.decode(codec.encode(vectors))
    norms = np.linalg.norm(decoded, axis=1) / np.linalg.norm(vectors, axis=1)
    assert np.allclose(norms, 1, atol=1e-3)
    slope = np.sum(vectors * decoded, axis=1) / np.sum(vectors * vectors, axis=1)
    assert np.mean(slope) == pytest.approx(0.983, rel=0.005)


def test_one_large_channel_is_spread_by_the_rotation() -> None:
    vectors = np.random.default_rng(2).standard_normal((2000, 128), dtype=np.float32)
    vectors[:, 5] += 40
    codec = Codec(layout(128))
    decoded = codec.decode(codec.encode(vectors))
    error = np.sum((vectors - decoded) ** 2) / np.sum(vectors**2)
    assert error < 0.08


def test_packing_round_trips_every_code_in_every_place() -> None:
    rng = np.random.default_rng(3)
    random = rng.integers(0, 8, (500, 128), dtype=np.uint8)
    single = np.zeros((32 * 8, 32), np.uint8)
    for place in range(32):
        for code in range(8):
            single[place * 8 + code, place] = code
    for codes in (random, single, np.full((1, 64), 7, np.uint8)):
        packed = pack3(codes)
        assert packed.shape[-1] * 8 == codes.shape[-1] * 3
        assert np.array_equal(unpack3(packed), codes)


def test_every_stored_byte_matters() -> None:
    codec = Codec(layout(128))
    stored = codec.encode(np.random.default_rng(4).standard_normal((1, 128), dtype=np.float32))
    decoded = codec.decode(stored)
    for place in range(codec.vector_bytes):
        changed = stored.copy()
        changed[0, place] ^= 1
        assert not np.array_equal(codec.decode(changed), decoded)


def test_zero_vector_stays_zero() -> None:
    codec = Codec(layout(64))
    with np.errstate(all="raise"):
        assert not np.any(codec.decode(codec.encode(np.zeros((2, 64), np.float32))))


def test_codebook_meets_its_own_optimality_conditions() -> None:
    samples = np.sort(np.random.default_rng(5).standard_normal(2_000_000))
    cells = np.split(samples, np.searchsorted(samples, boundaries(3)))
    means = np.array([cell.mean() for cell in cells])
    assert np.allclose(means, centroids(3), atol=5e-3)


def test_hadamard_is_its_own_inverse_and_signs_are_read_bit_by_bit() -> None:
    vectors = np.random.default_rng(6).standard_normal((3, 64), dtype=np.float32)
    assert np.allclose(hadamard(hadamard(vectors)), vectors, atol=1e-5)
    assert unpack_signs("0180", 16).tolist() == [-1] + [1] * 14 + [-1]
