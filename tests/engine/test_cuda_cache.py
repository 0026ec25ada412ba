"""The CUDA kernels of the cache beside the slow form, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton
import numpy as np
import pytest
import torch
from cuda_case import Case, Past, Shape
from cuda_opened import open_side
from numpy.typing import NDArray

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.runtime.engines import attention
from infer_compile.runtime.formats.kv import LEVELS, SIDES, LevelName
from infer_compile.runtime.formats.program import Rotary

Float32 = NDArray[np.float32]
EVERY = tuple(LEVELS.values())
# Outputs and, of values in bf16, softmax weights are rounded to 8 bits.
USUAL_ERROR, RARE_ERROR = 3e-3, 0.012
CHAIN = Tiling(tokens=8, block=32, exact_splits=1, packed_splits=2)


@pytest.fixture(autouse=True)
def _fine_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow form rounds the weights of a packed page to 1/204 of the largest; the kernels to float16."""
    monkeypatch.setattr(attention, "MOST_WEIGHT", 1 << 20)


def hold(found: Float32, expected: Float32, what: object = "") -> None:
    """Of each head's output the root mean square difference, over that of all outputs."""
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=-1) / np.mean(expected**2))
    worst = np.unravel_index(np.argmax(errors), errors.shape)
    said = f"{what}: row {worst[0]}, head {worst[1]}: {found[worst][:5]} for {expected[worst][:5]}"
    assert errors.max() < RARE_ERROR, said
    assert np.median(errors) < USUAL_ERROR, said


def test_every_level() -> None:
    case = Case(Shape(EVERY, kv_heads=2), [Past(60, 3)])
    for layer, level in enumerate(EVERY):
        hold(*case.run(layer, CHAIN), level)


def test_without_compression() -> None:
    case = Case(Shape(("bf16",), kv_heads=2), [Past(40, 1), Past(0, 1), Past(16, 1)])
    hold(*case.run(0, Tiling(1, 16, 3, 0)))


SHAPES = [
    (Shape(("tq3", "int8"), group=4, head_dim=128, page_tokens=32, recent_pages=2), Past(150, 1), 64),
    (Shape(("tq3", "fp8"), group=3, head_dim=96, page_tokens=64, sink_pages=0), Past(200, 2), 64),
    (Shape(("tq4", "tq3"), group=1, head_dim=256), Past(70, 4), 32),
    (Shape(("tq3", "int8"), group=16, page_tokens=128, recent_pages=0), Past(300, 1), 128),
    (Shape(("ct3", "k8v4"), group=7, head_dim=96, page_tokens=32), Past(150, 5), 32),
    (Shape(("tq3",), kv_heads=3, group=5, page_tokens=16, sink_pages=2), Past(111, 8), 64),
]


@pytest.mark.parametrize(("shape", "past", "block"), SHAPES)
def test_shapes(shape: Shape, past: Past, block: int) -> None:
    case = Case(shape, [past], seed=shape.head_dim)
    for layer, level in enumerate(shape.levels):
        hold(*case.run(layer, Tiling(past.count, block, 2, 2)), level)


def test_ragged_batches() -> None:
    """Empty caches, one token, both sides of page borders, where the first page is sealed and seen so."""
    starts = (0, 1, 15, 16, 17, 48, 49, 64)
    case = Case(Shape(("tq3",), sink_pages=0), [Past(start, 1 + start % 3) for start in starts])
    hold(*case.run(0, Tiling(4, 16, 1, 3)))


@pytest.mark.parametrize("count", [1, 4, 8])
def test_trees_see_their_ancestors_alone(count: int) -> None:
    case = Case(Shape(("tq3",)), [Past(61, count, tree=True), Past(3, 9 - count, tree=True)], seed=count)
    hold(*case.run(0, Tiling(8, 32, 1, 1, tree=True)))


@pytest.mark.parametrize("window", [1, 16, 37, 1000])
def test_windows(window: int) -> None:
    case = Case(Shape(("tq3",)), [Past(90, 3), Past(20, 2)], seed=window)
    hold(*case.run(0, CHAIN, window))


def test_a_window_over_a_tree() -> None:
    case = Case(Shape(("fp8",)), [Past(75, 8, tree=True)])
    hold(*case.run(0, Tiling(8, 32, 1, 1, tree=True), 20))


def test_trees_of_many_tokens() -> None:
    """More than a word has bits, in tiles of 32."""
    case = Case(Shape(("bf16",), group=1), [Past(9, 64, tree=True)])
    hold(*case.run(0, Tiling(32, 32, 1, 0, tree=True)))


TURN = Rotary(
    buffer="", first_head=0, heads=2, head_dim=64, frequencies=tuple(10000.0 ** -(np.arange(32) / 32))
)


@pytest.mark.parametrize("level", ["bf16", "tq3", "ct3"])
def test_sinks_are_seen_as_if_what_was_evicted_had_never_been(level: LevelName) -> None:
    """Beside a sequence that evicted nothing, and one that evicts more; without a rotation too."""
    pasts = [Past(110, 1, evicted=48), Past(40, 2), Past(170, 1, evicted=128), Past(130, 3, True, 80)]
    case = Case(Shape((level,), sink_pages=2), pasts, seed=7)
    tiling = Tiling(4, 32, 2, 2 if level != "bf16" else 0, tree=True)
    hold(*case.run(0, tiling, turn=TURN))
    hold(*case.run(0, tiling))


@pytest.mark.parametrize("window", [2, 30, 70, 110])
def test_windows_of_what_is_left(window: int) -> None:
    """They end among the new tokens of a tree, in what was kept, or in the sinks."""
    pasts = [Past(150, 1, evicted=64), Past(160, 6, tree=True, evicted=96)]
    case = Case(Shape(("tq3",), sink_pages=2), pasts, seed=2)
    hold(*case.run(0, Tiling(8, 16, 1, 2, tree=True), window, TURN))


def test_a_chunk_that_goes_on_behind_a_gap() -> None:
    case = Case(Shape(("tq4",), sink_pages=1, recent_pages=0), [Past(120, 40, evicted=64)], seed=5)
    hold(*case.run(0, Tiling(16, 32, 1, 1), turn=TURN))


def test_sequences_that_compress_nothing_see_every_page_exactly() -> None:
    """Beside one that compresses, whatever lies in the packed pool."""
    case = Case(Shape(("ct3",)), [Past(60, 3, True, whole=True), Past(70, 1)], seed=3)
    hold(*case.run(0, Tiling(4, 32, 2, 2, tree=True)))
    case = Case(Shape(("tq3",)), [Past(80, 2, evicted=48, whole=True)], seed=3)
    case.cache.packed.fill_(0x5A)
    hold(*case.run(0, Tiling(4, 32, 2, 2), turn=TURN))


def test_a_chunk_of_a_prompt() -> None:
    """Queries of several pages, which see one page in different forms, in tiles that end within pages."""
    case = Case(Shape(("tq3", "int8"), recent_pages=0), [Past(37, 5)])
    for layer in range(2):
        hold(*case.run(layer, Tiling(3, 32, 1, 1)))
    case = Case(Shape(("tq4",), page_tokens=16), [Past(64, 40), Past(30, 2)])
    hold(*case.run(0, Tiling(16, 32, 1, 2)))


def test_shares_of_the_pages_do_not_matter() -> None:
    case = Case(Shape(("tq3",), page_tokens=16), [Past(150, 1)])
    state = case.rng.bit_generator.state
    results = []
    for exact, packed, block in ((1, 1, 16), (4, 9, 16), (2, 3, 64)):
        case.rng.bit_generator.state = state
        results.append(case.run(0, Tiling(1, block, exact, packed))[0])
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], atol=2e-2 * np.abs(results[0]).max())


def test_every_byte_counts() -> None:
    """The first, a middle and the last byte of keys, and of values, change what a query of that page sees."""
    levels = (LEVELS["fp8"], LEVELS["int8"], LEVELS["tq3"], LEVELS["ct3"])
    # Every token has about the same weight.
    case = Case(Shape(levels, group=1), [Past(49, 1)], scale=0.01)
    (step,), layout = case.steps, case.layout
    queries = torch.tensor(case.draw(1)[:, :1], dtype=torch.bfloat16)
    place = int(step.packed[layout.sink_pages]) * layout.packed_page_bytes
    for layer, level in enumerate(levels):

        def sums(layer: int = layer) -> torch.Tensor:
            own, logs = case.cache.shares(case.operation(layer), queries, case.batch, Tiling(1, 32, 1, 1))
            return torch.cat([own[:, :, 1], logs[:, :, 1:]], -1)

        before = sums()
        for side in SIDES:
            plane = layout.layers[layer].plane(side)
            size = layout.page_tokens * plane.vector_bytes(layout.head_dim)
            for byte in (0, size // 2, size - 1):
                case.cache.packed[place + byte] ^= 0x11
                assert not torch.equal(sums().nan_to_num(), before.nan_to_num()), (level, side, byte)
                case.cache.packed[place + byte] ^= 0x11
            place += size


def test_padding_is_left_out() -> None:
    """A tile without a sequence (in every test), and rows without a slot: zeros."""
    case = Case(Shape(("tq3",)), [Past(40, 2)])
    queries = torch.tensor(case.draw(2)[:, :2], dtype=torch.bfloat16)
    sums, logs = case.cache.shares(case.operation(0), queries, case.batch, CHAIN)
    whole = case.cache.merge(case.operation(0), sums, logs, [0, 0], CHAIN)
    sums[1], logs[1] = float("nan"), float("nan")
    padded = case.cache.merge(case.operation(0), sums, logs, [7, -1], CHAIN)
    assert torch.equal(padded[0], whole[0])
    assert torch.all(padded[1] == 0)


@pytest.mark.parametrize(
    ("level", "head_dim", "rounded"), [("tq3", 64, 32), ("bf16", 96, 32), ("ct3", 128, 64)]
)
def test_what_shares_make_is_rounded_for_its_reader(level: LevelName, head_dim: int, rounded: int) -> None:
    case = Case(Shape((level,), head_dim=head_dim), [Past(40, 2)])
    operation = case.operation(0)
    queries = torch.tensor(case.draw(2)[:, : operation.heads], dtype=torch.bfloat16)
    sums, logs = case.cache.shares(operation, queries, case.batch, CHAIN)
    exact = case.cache.merge(operation, sums, logs, [0, 0], CHAIN)
    found = case.cache.merge(operation, sums, logs, [0, -1], CHAIN, rounded)
    groups = exact[0].reshape(-1, rounded)
    step = groups.abs().amax(1, keepdim=True) / 127
    # Of what is compared with, bfloat16 has nine bits.
    assert bool(((found[0].reshape(-1, rounded) - groups).abs() <= 0.51 * step + groups.abs() / 256).all())
    assert found[0].abs().max() > 0 and not found[1].any()


def test_append_writes_the_slots_it_is_given() -> None:
    case = Case(Shape(("tq3", "ct3"), kv_heads=2), [Past(20, 3)])
    inputs = case.draw(4)
    drawn = torch.tensor(inputs, dtype=torch.bfloat16)
    for layer in range(2):
        case.cache.append(layer, drawn[:, 4:6], drawn[:, 6:], [*case.slots(), -1])
        for token, slot in enumerate(case.slots()):
            case.exact.write(layer, slot // 16, slot % 16, inputs[token, 4:6], inputs[token, 6:])
    assert np.array_equal(case.cache.exact.numpy(), case.exact.bytes)
    assert case.cache.broken.item() == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3.4e38])
def test_a_number_that_is_not_finite_is_noticed(bad: float) -> None:
    case = Case(Shape(("bf16",)), [Past(0, 1)])
    for place in (2, 3):
        drawn = torch.ones((1, 4, 64))
        drawn[0, place, 5] = bad
        case.cache.broken.zero_()
        case.cache.append(0, drawn[:, 2:3], drawn[:, 3:], case.slots())
        assert case.cache.broken.item() == 1


@pytest.mark.parametrize(("head_dim", "page_tokens"), [(64, 16), (96, 32), (128, 16)])
def test_sealed_pages_hold_the_codec_s_codes(head_dim: int, page_tokens: int) -> None:
    """But for columns that lie within the last bits of a boundary; and every byte of a page is written."""
    levels = EVERY if head_dim == 64 else ("int8", "tq3")
    shape = Shape(levels, kv_heads=2, head_dim=head_dim, page_tokens=page_tokens)
    case = Case(shape, [Past(3 * page_tokens + 1, 1)])
    layout, packed, (step,) = case.layout, case.packed, case.steps
    assert packed is not None
    pool = case.cache.packed.numpy().reshape(case.pages, -1)
    places = [int(step.packed[page]) for page in (1, 2)]
    for layer, level in enumerate(levels):
        for side in SIDES:
            codec, differ, count = packed.codecs[layer][side], 0, 0
            for place in places:
                stored = packed.read(layer, place, side)
                found, scales = open_side(layout, layer, side, pool[place])
                if codec.plane.kind != "codes":
                    assert np.array_equal(found, stored), level
                    continue
                expected, expected_scales = codec.unpack(stored)
                differ, count = differ + int(np.sum(found != expected)), count + found.size
                assert np.max(np.abs(found.astype(int) - expected)) <= 1, level
                if expected_scales is not None:
                    np.testing.assert_allclose(scales, expected_scales, rtol=2e-3, err_msg=level)
            assert differ <= max(1, 1e-3 * count), level


def test_sealing_writes_one_page_whole() -> None:
    """Whatever was there before, and nothing beside it."""
    case = Case(Shape(("tq3", "int8", "ct3"), kv_heads=2), [Past(33, 1)])
    (step,) = case.steps
    place, written = int(step.packed[1]), []
    for fill in (0x00, 0xFF):
        case.cache.packed.fill_(fill)
        for layer in range(3):
            case.cache.seal(layer, [(int(step.exact[1]), place), (-1, -1)])
        pool = case.cache.packed.numpy().reshape(case.pages, -1)
        assert np.all(np.delete(pool, place, axis=0) == fill)
        written.append(pool[place].copy())
    assert np.array_equal(*written)
