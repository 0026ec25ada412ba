"""The ways to spread a model: all of them, none that heads, experts, layers or the engine forbid."""

from __future__ import annotations

import pytest
from planning import card

from infer_compile.catalog.engines import load_engines
from infer_compile.planner.parallelism import divisors, layouts
from infer_compile.planner.performance.shape import shape
from infer_compile.spec.pin import Parallelism

ENGINES = load_engines()
LLAMA, DEEPSEEK = shape(card("llama-3.1-8b")), shape(card("deepseek-v3"))


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)


def test_every_split_of_four_devices() -> None:
    assert layouts(LLAMA, ENGINES.of("vllm"), 4, 1) == (
        (1, 1, 1, 4),
        (1, 2, 1, 2),
        (1, 4, 1, 1),
        (2, 1, 1, 2),
        (2, 2, 1, 1),
        (4, 1, 1, 1),
    )


@pytest.mark.parametrize(
    ("engine", "expected"),
    [("native", ((4, 1, 1, 1),)), ("llama.cpp", ((1, 4, 1, 1),))],
)
def test_an_engine_splits_as_it_can(engine: str, expected: object) -> None:
    assert layouts(LLAMA, ENGINES.of(engine), 4, 1) == expected


def test_heads_have_to_divide() -> None:
    # 14 query heads and 2 key heads.
    qwen = shape(card("qwen2.5-0.5b"))
    assert {sizes[0] for sizes in layouts(qwen, ENGINES.of("vllm"), 28, 1)} == {1, 2, 14}
    assert layouts(qwen, ENGINES.of("native"), 4, 1) == ()


def test_stages_hold_a_layer_at_least() -> None:
    assert max(sizes[1] for sizes in layouts(LLAMA, ENGINES.of("vllm"), 64, 1)) == 32


def test_experts_are_dealt_evenly_and_as_the_engine_deals_them() -> None:
    found = layouts(DEEPSEEK, ENGINES.of("sglang"), 8, 2)
    assert {sizes[2] for sizes in found} == {1, 2, 4, 8, 16}
    assert all(256 % sizes[2] == 0 and (sizes[0] * sizes[3]) % sizes[2] == 0 for sizes in found)
    whole = layouts(DEEPSEEK, ENGINES.of("vllm"), 8, 2)
    assert all(sizes[2] in (1, sizes[0] * sizes[3]) for sizes in whole)
    alone = layouts(DEEPSEEK, ENGINES.of("tensorrt-llm"), 8, 1)
    assert all(sizes[2] == 1 or 1 in (sizes[0], sizes[3]) for sizes in alone)
    assert (2, 1, 1, 4) in alone and (1, 1, 8, 8) in alone
    assert all(sizes[2] == 1 for sizes in layouts(LLAMA, ENGINES.of("sglang"), 8, 1))
    assert len(set(found)) == len(found)
    assert all(sizes[0] * sizes[1] * sizes[3] == 16 for sizes in found)


def test_what_is_pinned_is_obeyed() -> None:
    pinned = Parallelism(tensor=2, expert=4)
    found = layouts(DEEPSEEK, ENGINES.of("sglang"), 8, 1, pinned)
    assert found and all(sizes[0] == 2 and sizes[2] == 4 for sizes in found)
    assert layouts(LLAMA, ENGINES.of("sglang"), 8, 1, pinned) == ()
