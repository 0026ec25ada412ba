"""Evidence on losses: complete, ordered, and nothing where nothing is rounded."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from planning import card, tiny
from pydantic import ValidationError

from infer_compile.catalog.engines import Engine, load_engines
from infer_compile.catalog.quality import Loss, Quality
from infer_compile.planner.quality import Expected, cache_loss, weights_loss
from infer_compile.runtime.formats.kv import LEVELS

SIZES = tuple(int(billions * 1e9) for billions in (0.0001, 0.05, 0.5, 3, 5.9, 6, 8, 14, 20, 70, 405, 1000))


@pytest.fixture(scope="module")
def quality() -> Quality:
    path = Path(__file__).resolve().parents[2] / "compiler/infer_compile/catalog/quality.yaml"
    return Quality.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("engine", load_engines().engines, ids=lambda engine: engine.name)
def test_every_format_and_level_that_an_engine_serves_is_known_for_every_size(
    quality: Quality, engine: Engine
) -> None:
    for parameters in SIZES:
        for name in set(engine.weights) - {"bf16"}:
            assert quality.of_weights(name, parameters, engine.name).high > 0
        for name in set(engine.kv) - {"bf16"}:
            assert quality.of_kv(name, parameters).high > 0


def test_sizes_of_an_entry_do_not_overlap(quality: Quality) -> None:
    for part in (quality.weights, quality.kv):
        for loss in part:
            kind = (loss.name, loss.engines, loss.architectures)
            same = [one for one in part if (one.name, one.engines, one.architectures) == kind]
            ordered = sorted(one.parameters_b for one in same)
            assert ordered[0][0] == 0
            assert all(before[1] == after[0] for before, after in pairwise(ordered))


@pytest.mark.parametrize("parameters", SIZES)
def test_fewer_bits_lose_more(quality: Quality, parameters: int) -> None:
    ladder = ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs", "q4_0", "q3_k_m", "q2_k")
    expected = [quality.of_weights(name, parameters).expected for name in ladder]
    assert expected == sorted(expected)
    loss = {
        name: quality.of_weights(name, parameters, "vllm").expected for name in ("fp8", "int8", "int4-rtn")
    }
    assert loss["fp8"] < loss["int8"] < loss["int4-rtn"]
    assert quality.of_weights("int4-awq", parameters).expected < loss["int4-rtn"]


@pytest.mark.parametrize("parameters", SIZES)
def test_levels_with_fewer_bits_lose_more_and_calibrated_ones_less(quality: Quality, parameters: int) -> None:
    loss = {name: quality.of_kv(name, parameters) for name in LEVELS if name != "bf16"}
    for ladder in (("tq4", "tq3", "tq2"), ("ct4", "ct3", "ct2"), ("int8", "fp8", "k8v4", "tq4")):
        expected = [loss[name].expected for name in ladder]
        assert expected == sorted(expected)
    for bits in (4, 3, 2):
        fitted, rotated = loss[f"ct{bits}"], loss[f"tq{bits}"]
        assert fitted.expected < rotated.expected
        # Where nothing of ours was measured on models of that size, calibration is at worst of no use.
        assert fitted.basis == "measurement" or fitted.high == rotated.high


def test_a_rotation_does_not_mend_keys_with_a_large_constant_part(quality: Quality) -> None:
    llama, qwen = card("llama-3.1-8b"), card("qwen2.5-7b")
    for level in ("tq4", "tq3", "tq2"):
        assert cache_loss(qwen, level, quality).expected > 10 * cache_loss(llama, level, quality).expected
    for level in ("fp8", "int8", "k8v4", "ct4", "ct3"):
        assert cache_loss(qwen, level, quality) == cache_loss(llama, level, quality)


# Published by llama.cpp (tools/perplexity/README.md): perplexity over the 16-bit model's, minus one, percent.
@pytest.mark.parametrize(
    ("name", "billions", "published"),
    [
        ("q8_0", 8, 0.04),
        ("q6_k", 8, 0.35),
        ("q5_k_m", 8, 0.91),
        ("q4_k_m", 8, 2.82),
        ("q4_0", 8, 7.5),
        ("q3_k_m", 8, 10.5),
        ("q2_k", 8, 56.5),
        ("q6_k", 69, 0.16),
        ("q5_k_m", 69, 0.40),
        ("q4_k_m", 69, 1.20),
        ("q4_0", 69, 3.61),
        ("q3_k_m", 69, 4.72),
        ("q2_k", 69, 8.82),
    ],
)
def test_ranges_hold_what_was_measured(
    quality: Quality, name: str, billions: float, published: float
) -> None:
    loss = quality.of_weights(name, int(billions * 1e9))
    assert loss.low <= published <= loss.high


def test_an_engine_that_stores_a_name_otherwise(quality: Quality) -> None:
    ours, theirs = (quality.of_weights("int8", 8 * 10**9, name) for name in ("native", "vllm"))
    assert ours.expected < 0.1 < theirs.expected
    assert quality.of_weights("int8", 8 * 10**9) == ours
    assert quality.of_weights("fp8", 8 * 10**9, "vllm") == quality.of_weights("fp8", 8 * 10**9)


def test_bf16_loses_nothing(quality: Quality) -> None:
    assert weights_loss(tiny(), "bf16", quality) == cache_loss(tiny(), "bf16", quality) == Expected()


def test_a_model_in_the_format_of_its_checkpoint_loses_nothing(quality: Quality) -> None:
    own = weights_loss(card("gpt-oss-20b"), "mxfp4", quality, "vllm")
    assert (own.low, own.expected, own.high, own.basis) == (0, 0, 0, "arithmetic")
    assert own.source == "the model's own checkpoint is in mxfp4: nothing is rounded again"
    assert weights_loss(card("kimi-k2.5"), "int4-rtn", quality, "vllm").high == 0
    assert weights_loss(card("deepseek-v3"), "fp8", quality, "sglang").high == 0
    assert weights_loss(card("deepseek-v3"), "int4-awq", quality, "vllm").expected > 1


def test_losses_add_up(quality: Quality) -> None:
    graph = card("llama-3.1-8b")
    weights, cache = weights_loss(graph, "fp8", quality, "vllm"), cache_loss(graph, "fp8", quality)
    both = weights + cache
    assert both.expected == pytest.approx(weights.expected + cache.expected)
    assert both.source == f"{weights.source}; {cache.source}"
    assert (weights + Expected()).source == weights.source


def test_what_is_not_known_is_not_guessed(quality: Quality) -> None:
    with pytest.raises(KeyError):
        weights_loss(tiny(), "int4-hqq", quality)
    with pytest.raises(ValidationError, match="have to rise"):
        fields = quality.weights[0].model_dump() | {"low": 3}
        Loss.model_validate(fields)
