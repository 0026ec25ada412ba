"""Rotary frequencies where theory fixes them, and how configs spell them."""

from __future__ import annotations

import math

import pytest

from infer_compile.graph.build import build
from infer_compile.graph.operations import Rotary
from infer_compile.graph.rotary import LinearScaling, Llama3Scaling, Rotation, YarnScaling, rotation

LLAMA31 = Llama3Scaling(8.0, 1.0, 4.0, 8192)


def test_plain_and_linear() -> None:
    plain = rotation(128, 10000.0)
    assert plain.frequencies[0] == 1 and plain.scale == 1 and len(plain.frequencies) == 64
    assert plain.frequencies[32] == pytest.approx(0.01)
    linear = rotation(128, 10000.0, LinearScaling(4.0))
    assert linear.frequencies == pytest.approx([frequency / 4 for frequency in plain.frequencies])


def test_llama3_keeps_fast_pairs_and_divides_slow_ones() -> None:
    plain, scaled = rotation(128, 500_000.0).frequencies, rotation(128, 500_000.0, LLAMA31).frequencies
    turns = [8192 * frequency / (2 * math.pi) for frequency in plain]
    kinds = {"fast": 0, "slow": 0, "between": 0}
    for before, after, turn in zip(plain, scaled, turns, strict=True):
        if turn >= 4:
            assert after == before
            kinds["fast"] += 1
        elif turn <= 1:
            assert after == pytest.approx(before / 8)
            kinds["slow"] += 1
        else:
            assert before / 8 < after < before
            kinds["between"] += 1
    assert all(kinds.values())


def test_yarn() -> None:
    plain = rotation(128, 1e6).frequencies
    scaled = rotation(128, 1e6, YarnScaling(4.0, 32768))
    assert scaled.scale == pytest.approx(0.1 * math.log(4) + 1)
    assert scaled.frequencies[0] == plain[0] and scaled.frequencies[-1] == pytest.approx(plain[-1] / 4)
    ratios = [after / before for before, after in zip(plain, scaled.frequencies, strict=True)]
    assert ratios == sorted(ratios, reverse=True) and len(set(ratios)) > 5
    assert rotation(128, 1e6, YarnScaling(4.0, 32768, attention_factor=1.5)).scale == 1.5
    both = YarnScaling(4.0, 32768, mscale=1.0, mscale_all=1.0)
    assert rotation(128, 1e6, both).scale == 1
    assert rotation(128, 1e6, YarnScaling(1.0, 32768)).scale == 1


def turned(**fields: object) -> tuple[Rotation, int]:
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 128,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "max_position_embeddings": 1000,
    }
    graph = build(shape | fields)
    return next(op for op in graph.operations if isinstance(op, Rotary)).rotation, graph.max_context


def test_old_and_new_spelling_agree() -> None:
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 8192}
    expected = (rotation(128, 5e5, LLAMA31), 1000)
    assert turned(rope_theta=5e5, rope_scaling=llama3 | {"type": "llama3"}) == expected
    assert turned(rope_theta=5e5, rope_scaling=llama3 | {"rope_type": "llama3"}) == expected
    assert turned(rope_parameters=llama3 | {"rope_type": "llama3", "rope_theta": 5e5}) == expected
    assert turned(rope_theta=5e5, rope_scaling=None) == (rotation(128, 5e5), 1000)
    assert turned() == turned(rope_parameters={"rope_type": "default"}) == (rotation(128, 1e4), 1000)


def test_yarn_stretches_the_context() -> None:
    yarn = {"type": "yarn", "factor": 4.0}
    given = turned(rope_scaling=yarn | {"original_max_position_embeddings": 500})
    assert given == (rotation(128, 1e4, YarnScaling(4.0, 500)), 2000)
    assert turned(rope_scaling=yarn) == (rotation(128, 1e4, YarnScaling(4.0, 1000)), 4000)
    beside = turned(rope_scaling=yarn, original_max_position_embeddings=250)
    assert beside == (rotation(128, 1e4, YarnScaling(4.0, 250)), 1000)
    implied = turned(rope_scaling={"type": "yarn", "factor": None, "original_max_position_embeddings": 250})
    assert implied == (rotation(128, 1e4, YarnScaling(4.0, 250)), 1000)
    assert turned(rope_scaling={"type": "linear", "factor": 4.0})[1] == 1000
