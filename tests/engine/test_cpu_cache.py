"""Attention of the CPU kernels alone beside the slow form: every level, shape and instruction set."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from levels import cache_alone, draw_layout, draw_tables
from numpy.typing import NDArray
from pages import codes_of, vectors_of
from probe import Probe, Shape, compile_probe
from shapes import EVERY
from test_cpu_engine import build_for

from infer_compile.runtime.engines.attention import Attention
from infer_compile.runtime.engines.pools import ExactPool, PackedPool
from infer_compile.runtime.engines.rows import rows_of
from infer_compile.runtime.formats.kv import SIDES
from infer_compile.runtime.formats.program import Attend, Limits
from infer_compile.runtime.step import SequenceStep

Float32 = NDArray[np.float32]
SHAPES = (
    Shape(layers=10, kv_heads=2, group=1, head_dim=64),
    Shape(layers=10, kv_heads=1, group=4, head_dim=128, sink_pages=0, recent_pages=2),
    Shape(layers=10, kv_heads=1, group=3, head_dim=96, page_tokens=64),
    Shape(layers=10, kv_heads=1, group=16, head_dim=64, page_tokens=96),
    Shape(layers=10, kv_heads=1, group=2, head_dim=256),
)
PATHS = {"avx2": (0, 1, 2, 3, 4), "avx512": (0, 1), "portable": (1, 2)}
"""Which of the shapes each instruction set is compiled for: what differs between them is no template."""
RUNS = [(path, index) for path, indices in PATHS.items() for index in indices]
PAGES = (40, 40)
# The tolerance of docs/numerics.md.
USUAL_ERROR, RARE_ERROR, RARE = 1e-5, 0.01, 0.15


class Case:
    """One shape with a layer of every level; what the slow form does with drawn steps."""

    def __init__(self, index: int) -> None:
        rng = np.random.default_rng(100 + index)
        self.shape = shape = SHAPES[index]
        self.layout = draw_layout(
            rng,
            list(EVERY),
            shape.kv_heads,
            shape.head_dim,
            shape.page_tokens,
            shape.sink_pages,
            shape.recent_pages,
        )
        self.tables = draw_tables(rng, self.layout)
        self.batches = list(self.draw_batches(rng))
        self.packed = PackedPool(self.layout, PAGES[1], self.tables)
        exact = ExactPool(self.layout, PAGES[0], self.tables)
        attention = Attention(self.layout, self.tables, exact, self.packed)
        limits = Limits(
            max_context=4096,
            max_sequences=8,
            max_batch_tokens=4096,
            exact_pages=PAGES[0],
            packed_pages=PAGES[1],
        )
        program = cache_alone(self.layout, limits)
        self.inputs, self.expected = [], []
        for batch, window in self.batches:
            rows = rows_of(program, batch)
            count = sum(len(step.tokens) for step in batch)
            inputs = self.draw_inputs(rng, count)
            outputs = [
                attention.run(self.operation(layer, window), inputs, rows) for layer in range(len(EVERY))
            ]
            self.inputs.append(inputs)
            self.expected.append(outputs)

    def operation(self, layer: int, window: int | None) -> Attend:
        return Attend(
            layer=layer,
            input="",
            output="",
            heads=self.shape.heads,
            kv_heads=self.shape.kv_heads,
            head_dim=self.shape.head_dim,
            scale=float(np.float32(self.shape.head_dim**-0.5)),
            window=window,
        )

    def draw_inputs(self, rng: np.random.Generator, rows: int) -> Float32:
        """Queries that find something; keys with a constant part and a wide channel, as models have them."""
        shape = self.shape
        heads = rng.standard_normal((rows, shape.heads + 2 * shape.kv_heads, shape.head_dim))
        heads[:, : shape.heads] *= 2
        keys = heads[:, shape.heads : -shape.kv_heads]
        keys[..., 3] += 5
        keys[..., 7] *= 4
        return heads.reshape(rows, -1).astype(np.float32)

    def draw_batches(self, rng: np.random.Generator):  # type: ignore[no-untyped-def]
        """Chunks that end at a page's border, before and behind it; chains and trees of 1 to 8; one token."""
        page = self.shape.page_tokens
        order = [rng.permutation(size).astype(np.int32) for size in PAGES]
        tables = [order[i].reshape(2, -1) for i in range(2)]
        starts, sealed = [0, 0], [0, 0]

        def feed(which: int, count: int, accepted: int | None = None, tree: bool = False) -> SequenceStep:
            accepted = count if accepted is None else accepted
            parents = np.array([int(rng.integers(-1, i)) if i else -1 for i in range(count)], np.int32)
            step = SequenceStep(
                tokens=np.zeros(count, np.int32),
                start=starts[which],
                accepted=accepted,
                sealed=sealed[which],
                exact=tables[0][which],
                packed=tables[1][which],
                parents=parents if tree else None,
            )
            starts[which] += accepted
            sealed[which] = starts[which] // page
            return step

        yield [feed(0, 1)], None
        yield [feed(1, 1), feed(0, page - 1)], None
        for count in range(1, 9):
            yield [feed(0, count, 0, tree=count % 2 == 0), feed(1, page - 2 if count == 1 else 1)], None
        yield [feed(0, 2 * page + 5), feed(1, page)], None
        yield [feed(0, 3), feed(1, 8, 0)], page + 7
        yield [feed(0, page - 8), feed(1, 5, 1, tree=False)], None
        yield [feed(0, 8, 0), feed(1, 8, 0, tree=True)], None
        yield [feed(0, 1), feed(1, 3 * page)], None
        yield [feed(0, 1), feed(1, 2)], 3


def errors_of(result: Float32, expected: Float32, head_dim: int) -> NDArray[np.float64]:
    """Of each head's output the root mean square difference, over the root mean square of all outputs."""
    difference = (result - expected).reshape(-1, head_dim).astype(np.float64)
    return np.asarray(
        np.sqrt(np.mean(difference**2, axis=1)) / np.sqrt(np.mean(expected.astype(np.float64) ** 2))
    )


class Compiled:
    """A library for each instruction set, and the cases by shape: all are made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libraries: dict[str, ctypes.CDLL] = {}
        self._cases: dict[int, Case] = {}

    def case(self, index: int) -> Case:
        if index not in self._cases:
            self._cases[index] = Case(index)
        return self._cases[index]

    def probe(self, path: str, index: int, threads: int = 1) -> Probe:
        if path not in self._libraries:
            how, shapes = build_for(path), [SHAPES[own] for own in PATHS[path]]
            library = compile_probe(shapes, self._folder / path, how.isa, ("-Og", *how.extra))
            self._libraries[path] = library
        case, place = self.case(index), PATHS[path].index(index)
        return Probe(self._libraries[path], place, case.shape, case.layout, case.tables, PAGES, threads)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(tmp_path_factory.mktemp("probes"))


@pytest.mark.parametrize(("path", "index"), RUNS)
def test_attention_agrees_with_the_slow_form(compiled: Compiled, path: str, index: int) -> None:
    probe, case = compiled.probe(path, index, threads=1 + index % 2), compiled.case(index)
    worst: dict[str, list[float]] = {}
    for (batch, window), inputs, expected in zip(case.batches, case.inputs, case.expected, strict=True):
        for layer, level in enumerate(EVERY):
            scale = case.operation(layer, None).scale
            result, _ = probe.step(batch, inputs, layer=layer, window=window or 0, scale=scale)
            worst.setdefault(level, []).extend(errors_of(result, expected[layer], case.shape.head_dim))
    for level, errors in worst.items():
        assert np.max(errors) < RARE_ERROR, level
        assert np.mean(np.array(errors) > USUAL_ERROR) < RARE, level
    probe.close()


@pytest.mark.parametrize(("path", "index"), RUNS)
def test_sealed_pages_hold_the_codec_s_codes(compiled: Compiled, path: str, index: int) -> None:
    """But for columns that lie within the last bits of a boundary."""
    probe, case = compiled.probe(path, index), compiled.case(index)
    for (batch, window), inputs in zip(case.batches, case.inputs, strict=True):
        for layer in range(len(EVERY)):
            probe.step(batch, inputs, layer=layer, window=window or 0, scale=0.1)
    last = {step.packed.ctypes.data: step for batch, _ in case.batches for step in batch}
    pages = [
        int(step.packed[page])
        for step in last.values()
        for page in range((step.start + step.accepted) // case.shape.page_tokens)
        if case.layout.packs(page)
    ]
    assert len(pages) > 4
    pool = probe.pool("packed").reshape(PAGES[1], -1)
    for layer, level in enumerate(EVERY):
        for side in SIDES:
            codec = case.packed.codecs[layer][side]
            differ, count = 0, 0
            for page in pages:
                stored = case.packed.read(layer, page, side)
                if codec.plane.kind != "codes":
                    assert np.array_equal(vectors_of(case.layout, layer, side, pool[page]), stored), level
                    continue
                codes, scales = codes_of(case.layout, layer, side, pool[page])
                expected, expected_scales = codec.unpack(stored)
                differ += np.sum(codes != expected)
                count += codes.size
                assert np.max(np.abs(codes.astype(int) - expected)) <= 1, level
                if expected_scales is not None:
                    np.testing.assert_allclose(scales, expected_scales, rtol=2e-3, err_msg=level)
            assert differ <= max(1, 1e-3 * count), level
    probe.close()


@pytest.mark.parametrize(("path", "index"), [("avx2", 1), ("avx2", 2), ("avx512", 1), ("portable", 2)])
def test_every_byte_counts(compiled: Compiled, path: str, index: int) -> None:
    """The first, a middle and the last byte of keys, and of values, change what a query of that page sees."""
    probe, case, rng = compiled.probe(path, index), compiled.case(index), np.random.default_rng(0)
    layout, page_tokens = case.layout, case.shape.page_tokens
    tokens = (layout.sink_pages + layout.recent_pages + 2) * page_tokens
    pages = np.arange(40, dtype=np.int32)
    steps = [
        SequenceStep(np.zeros(count, np.int32), start, count, start // page_tokens, pages, pages)
        for start, count in ((0, tokens - 1), (tokens - 1, 1))
    ]
    inputs = [case.draw_inputs(rng, len(step.tokens)) for step in steps]
    place, pool = layout.sink_pages * layout.packed_page_bytes, probe.pool("packed")
    for layer, level in enumerate(EVERY):
        probe.step(steps[:1], inputs[0], layer=layer, scale=0.01)
        before, _ = probe.step(steps[1:], inputs[1], layer=layer, scale=0.01)
        for side in SIDES:
            size = page_tokens * layout.layers[layer].plane(side).vector_bytes(layout.head_dim)
            for byte in (0, size // 2, size - 1):
                pool[place + byte] ^= 0x11
                after, _ = probe.step(steps[1:], inputs[1], layer=layer, scale=0.01)
                assert not np.array_equal(before, after), (level, side, byte)
                pool[place + byte] ^= 0x11
            place += size
        place += (layout.kv_heads - 1) * page_tokens * layout.layers[layer].token_bytes(layout.head_dim, 1)
    probe.close()


@pytest.mark.parametrize("path", PATHS)
def test_no_bit_depends_on_chunks_threads_or_company(compiled: Compiled, path: str) -> None:
    index = 1
    case, rng = compiled.case(index), np.random.default_rng(1)
    page_tokens, tokens = case.shape.page_tokens, 300
    inputs, other = case.draw_inputs(rng, tokens), case.draw_inputs(rng, tokens)
    results = []
    for threads, chunks in ((1, [150, 150]), (2, [1] * 300), (3, [7, 100, 45, 1, 147])):
        probe = compiled.probe(path, index, threads)
        start, outputs = 0, []
        for chunk in chunks:
            batch, rows = [], []
            for which, own in enumerate((inputs, other)[: 1 + chunk % 2]):
                pages = np.arange(20 * which, 20 * which + 20, dtype=np.int32)
                sealed = 0 if which else start // page_tokens
                where = 0 if which else start
                batch.append(SequenceStep(np.zeros(chunk, np.int32), where, chunk, sealed, pages, pages))
                rows.append(own[where : where + chunk])
            layers = range(len(EVERY))
            both = np.concatenate(rows)
            outputs.append(
                np.stack([probe.step(batch, both, layer=layer, scale=0.1)[0][:chunk] for layer in layers])
            )
            start += chunk
        results.append(np.concatenate(outputs, axis=1))
        probe.close()
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def test_a_number_that_is_not_finite_is_refused(compiled: Compiled) -> None:
    probe, case = compiled.probe("avx2", 0), compiled.case(0)
    pages = np.arange(2, dtype=np.int32)
    step = SequenceStep(np.zeros(1, np.int32), 0, 1, 0, pages, pages)
    for bad in (np.nan, np.inf, -np.inf, 3.4e38):  # the last one rounds to an infinite bf16
        for place in (case.shape.heads, -1):
            inputs = np.ones((1, case.shape.heads + 2 * case.shape.kv_heads, case.shape.head_dim), np.float32)
            inputs[0, place, 5] = bad
            with pytest.raises(ValueError, match="not finite"):
                probe.step([step], inputs, scale=0.1)
    probe.close()
