"""Calibrated planes: tables in, vectors out; and attention that multiplies integers instead of decoding.

The tables are made here, from the covariance that the vectors were drawn with; what calibration finds is
tested with calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from infer_compile.lower.signs import signs
from infer_compile.runtime.engines.attention import Attention
from infer_compile.runtime.engines.pools import ExactPool, PackedPool
from infer_compile.runtime.engines.rows import Rows
from infer_compile.runtime.formats.codebook import error, unit
from infer_compile.runtime.formats.kv import (
    SIDES,
    CacheLayout,
    LayerCache,
    LevelName,
    Plane,
    Segment,
    Side,
    layer_cache,
)
from infer_compile.runtime.formats.program import Attend
from infer_compile.runtime.kv.codec import Codec
from infer_compile.runtime.kv.rounding import MOST_FACTOR, MOST_WEIGHT, MOST_WIDE, rounded
from infer_compile.runtime.kv.transform import Transform, transform_of
from infer_compile.runtime.step import SequenceStep

Float32 = NDArray[np.float32]
DIM, HEADS, GROUP, PAGE = 64, 2, 3, 16
WIDE = ((8, 64),)
"""As many bits as there are, for every column: next to no loss."""
SPREAD = ((7, 16), (4, 16), (2, 16))
"""A segment of each kind - wide, one of small integers, the narrowest - and columns without bits."""


@dataclass(frozen=True, slots=True)
class Source:
    """Vectors with a mean and a few strong directions, and the tables that fit them."""

    mean: Float32
    basis: Float32
    """[heads, dim, dim], rows orthonormal, strongest first."""
    spread: Float32
    """[dim] standard deviations along the basis."""

    def draw(self, count: int, seed: int) -> Float32:
        """``[heads, count, dim]``."""
        normal = np.random.default_rng(seed).standard_normal((HEADS, count, DIM), dtype=np.float32)
        return np.asarray(self.mean[:, None] + (normal * self.spread) @ self.basis, np.float32)

    def tables(self, prefix: str, plane: Plane) -> dict[str, Float32]:
        units = np.concatenate([np.full(s.columns, unit(s.bits)) for s in plane.segments])
        steps = (units * self.spread[: plane.columns]).astype(np.float32)
        rows = self.basis[:, : plane.columns]
        found = {f"{prefix}.mean": self.mean}
        if plane.transform == "dense":
            found[f"{prefix}.encode"] = rows / steps[:, None]
            found[f"{prefix}.decode"] = rows * steps[:, None]
        else:
            found[f"{prefix}.scale"] = np.tile(steps, (HEADS, 1))
        return found


def source(seed: int, turned: bool, mean: float = 3.0, condition: float = 60.0) -> Source:
    """``turned``: the strong directions lie across the dimensions, not along them."""
    random = np.random.default_rng(seed)
    basis = np.tile(np.eye(DIM), (HEADS, 1, 1))
    if turned:
        basis = np.linalg.qr(random.standard_normal((HEADS, DIM, DIM)))[0]
    spread = np.geomspace(condition, 1, DIM).astype(np.float32)
    means = mean * random.standard_normal((HEADS, DIM))
    return Source(means.astype(np.float32), basis.astype(np.float32), spread)


def plane(kind: str, parts: tuple[tuple[int, int], ...]) -> Plane:
    segments = tuple(Segment(bits=bits, columns=columns) for bits, columns in parts)
    return Plane(kind="codes", transform="dense" if kind == "dense" else "diagonal", segments=segments)


def layout_of(keys: Plane, values: Plane, level: LevelName = "ct3", sinks: int = 0) -> CacheLayout:
    return CacheLayout(
        level=level,
        page_tokens=PAGE,
        sink_pages=sinks,
        recent_pages=0,
        kv_heads=HEADS,
        head_dim=DIM,
        layers=(LayerCache(level=level, keys=keys, values=values),),
        signs=signs(DIM),
    )


def made(layout: CacheLayout, sources: Mapping[Side, Source]) -> dict[str, Float32]:
    layer = layout.layers[0]
    tables: dict[str, Float32] = {}
    for side in SIDES:
        if layer.plane(side).calibrated:
            tables |= sources[side].tables(f"layers.0.{side}", layer.plane(side))
    return tables


def codec_of(kind: str, parts: tuple[tuple[int, int], ...]) -> tuple[Codec, Transform, Source]:
    chosen = source(1, turned=kind == "dense")
    layout = layout_of(plane(kind, parts), plane(kind, parts))
    transform = transform_of(layout, 0, "keys", made(layout, {"keys": chosen, "values": chosen}))
    assert transform is not None
    return Codec(layout.layers[0].keys, DIM, transform), transform, chosen


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_eight_bits_give_the_vectors_back(kind: str) -> None:
    codec, _, chosen = codec_of(kind, WIDE)
    vectors = chosen.draw(4_000, 2) - chosen.mean[:, None]
    loss = np.mean((codec.decode(codec.encode(vectors)) - vectors) ** 2) / np.mean(vectors**2)
    assert loss == pytest.approx(error(8), rel=0.15)


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_each_segment_loses_what_its_bits_say_and_dropped_columns_all(kind: str) -> None:
    codec, _, chosen = codec_of(kind, SPREAD)
    vectors = chosen.draw(8_000, 3) - chosen.mean[:, None]
    lost = (codec.decode(codec.encode(vectors)) - vectors) @ chosen.basis.swapaxes(-1, -2)
    columns = np.mean(lost**2, axis=(0, 1)) / chosen.spread**2
    segments = np.mean(columns.reshape(4, 16), axis=-1)
    assert np.allclose(segments, [error(7), error(4), error(2), 1.0], rtol=0.04)


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_bytes_are_those_of_the_formula_and_each_matters(kind: str) -> None:
    codec, _, chosen = codec_of(kind, SPREAD)
    stored = codec.encode(chosen.draw(1, 4))
    assert stored.shape == (HEADS, 1, (7 + 4 + 2) * 16 // 8)
    decoded = codec.decode(stored)
    for place in range(stored.shape[-1]):
        changed = stored.copy()
        changed[..., place] ^= 1
        assert not np.array_equal(codec.decode(changed), decoded)


def test_tables_are_those_that_the_layout_lists() -> None:
    keys, values = plane("dense", SPREAD), plane("diagonal", SPREAD)
    layout = layout_of(keys, values)
    chosen = source(1, turned=True)
    tables = made(layout, {"keys": chosen, "values": chosen})
    assert {table.name: table.shape for table in layout.tables()} == {
        name: numbers.shape for name, numbers in tables.items()
    }
    assert sum(table.bytes for table in layout.tables()) == sum(n.nbytes for n in tables.values())


@pytest.mark.parametrize("kind", ["dense", "diagonal"])
def test_the_query_side_fits_the_keys(kind: str) -> None:
    """query(q) @ forward(x) is q @ x for what lies within the kept columns."""
    _, transform, chosen = codec_of(kind, SPREAD)
    kept = chosen.basis[:, : DIM - 16]
    vectors = np.random.default_rng(5).standard_normal((HEADS, 20, DIM - 16), dtype=np.float32) @ kept
    queries = np.random.default_rng(6).standard_normal((HEADS, 7, DIM), dtype=np.float32)
    found = transform.query(queries) @ transform.forward(vectors).swapaxes(-1, -2)
    assert np.allclose(found, queries @ vectors.swapaxes(-1, -2), atol=2e-4)
    assert np.allclose(transform.restore(transform.forward(vectors)), vectors, atol=1e-4)


def test_factors_are_rounded_to_the_nearest_and_the_largest_is_exact() -> None:
    values = np.random.default_rng(7).standard_normal((50, 40)).astype(np.float32)
    for most in (MOST_FACTOR, MOST_WEIGHT, MOST_WIDE):
        integers, step = rounded(values, most)
        assert np.max(np.abs(integers), axis=-1).tolist() == [most] * 50
        assert np.all(np.abs(integers * step - values) <= step * 0.501)
    integers, step = rounded(np.zeros((2, 3), np.float32), MOST_WEIGHT)
    assert not integers.any() and not step.any()


LAYERS: dict[str, LayerCache] = {
    "dense keys, diagonal values": LayerCache(
        level="ct3", keys=plane("dense", SPREAD), values=plane("diagonal", SPREAD)
    ),
    "dense values": LayerCache(level="ct3", keys=plane("dense", WIDE), values=plane("dense", SPREAD)),
    "tq2": layer_cache("tq2", DIM),
    "int8": layer_cache("int8", DIM),
    "k8v4": layer_cache("k8v4", DIM),
    "bf16 among compressed ones": layer_cache("bf16", DIM),
}


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 50])
@pytest.mark.parametrize("name", LAYERS)
def test_attention_is_close_to_attention_over_decoded_vectors(name: str, tokens: int) -> None:
    """The tolerance. A query's factors are rounded to 1/127 of the largest, so that a score is off by
    1/(127 sqrt(12)) of its own spread (2.6 here) times the largest factor over their root mean square
    (2 to 8, the more the unevener the columns): up to 0.02. Weights are rounded to 1/204 of a page's
    largest."""
    layer = LAYERS[name]
    layout = layout_of(layer.keys, layer.values, layer.level)
    sources: dict[Side, Source] = {"keys": source(8, turned=True), "values": source(9, turned=False)}
    if layer.values.transform == "dense":
        sources["values"] = source(9, turned=True)
    tables = made(layout, sources)
    keys, values = (sources[side].draw(tokens, 10 + at) for at, side in enumerate(SIDES))
    queries = np.random.default_rng(12).standard_normal((tokens, HEADS * GROUP, DIM)).astype(np.float32)
    count = HEADS * GROUP
    # One token per query page would read everything compressed; here a page's own tokens are exact.
    operation = Attend(layer=0, input="", output="", heads=count, kv_heads=HEADS, head_dim=DIM, scale=1 / DIM)
    exact, packed = ExactPool(layout, 4, tables, "f32"), PackedPool(layout, 4, tables)
    attention = Attention(layout, tables, exact, packed)
    inputs = np.concatenate([queries, keys.swapaxes(0, 1), values.swapaxes(0, 1)], axis=1)
    found = attention.run(operation, inputs.reshape(tokens, -1), [whole(tokens)])
    assert found.shape == (tokens, count * DIM)

    seen = {side: decoded(layout, side, tables, x) for side, x in zip(SIDES, (keys, values), strict=True)}
    plainly = {"keys": keys, "values": values}
    for token in range(tokens):
        forms = np.arange(token + 1) // PAGE < token // PAGE
        own: dict[str, Float32] = {
            side: np.where(forms[:, None], seen[side][:, : token + 1], plainly[side][:, : token + 1])
            for side in SIDES
        }
        for head in range(count):
            scores = own["keys"][head // GROUP].astype(float) @ queries[token, head] / DIM
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ own["values"][head // GROUP]
            at = found[token].reshape(count, DIM)[head]
            off = np.sqrt(np.mean((at - expected) ** 2) / np.mean(sources["values"].spread ** 2))
            assert off < 0.02, (token, head)


def whole(tokens: int) -> Rows:
    """One sequence in one step: every full page seals."""
    step = SequenceStep(
        tokens=np.zeros(tokens, np.int32),
        start=0,
        accepted=tokens,
        sealed=0,
        exact=np.arange(4, dtype=np.int32)[::-1].copy(),
        packed=np.arange(4, dtype=np.int32),
    )
    sees = np.tri(tokens, dtype=np.bool_)
    return Rows(step, 0, tokens, np.arange(tokens), sees, range(tokens // PAGE))


def decoded(layout: CacheLayout, side: Side, tables: Mapping[str, Float32], vectors: Float32) -> Float32:
    """As a packed page gives them back, the mean included."""
    used = layout.layers[0].plane(side)
    codec = Codec(used, DIM, transform_of(layout, 0, side, tables))
    mean = tables[f"layers.0.{side}.mean"][:, None] if used.calibrated else np.float32(0)
    return np.asarray(codec.decode(codec.encode(vectors - mean)) + mean, np.float32)


def test_a_mean_in_keys_changes_nothing_and_one_in_values_comes_back() -> None:
    """However large: keys' scores are all shifted alike, values' mean is added once."""
    layer = LAYERS["dense keys, diagonal values"]
    layout = layout_of(layer.keys, layer.values)
    results = []
    for size in (0.0, 500.0):
        sources: dict[Side, Source] = {
            "keys": source(8, turned=True, mean=size),
            "values": source(9, turned=False, mean=size / 100),
        }
        tables = made(layout, sources)
        keys, values = (sources[side].draw(50, 10 + at) for at, side in enumerate(SIDES))
        queries = np.random.default_rng(12).standard_normal((50, HEADS * GROUP, DIM)).astype(np.float32)
        operation = Attend(
            layer=0,
            input="",
            output="",
            heads=HEADS * GROUP,
            kv_heads=HEADS,
            head_dim=DIM,
            scale=1 / DIM,
        )
        attention = Attention(
            layout, tables, ExactPool(layout, 4, tables, "f32"), PackedPool(layout, 4, tables)
        )
        inputs = np.concatenate([queries, keys.swapaxes(0, 1), values.swapaxes(0, 1)], axis=1)
        found = attention.run(operation, inputs.reshape(50, -1), [whole(50)]).reshape(50, HEADS, GROUP, DIM)
        results.append(found - sources["values"].mean[:, None])
    # What differs is the rounding of the draw itself, at 500 to float32.
    assert np.allclose(results[0], results[1], atol=0.02 * np.abs(results[0]).max())
