"""The trained quickstart model, and the rotary settings of well-known ones, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import families
import numpy as np
import pytest
import torch
import transformers
from driver import Driver
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from infer_compile.catalog.model import card_names, load_card
from infer_compile.graph.build import ARCHITECTURES, build
from infer_compile.graph.operations import Rotary
from infer_compile.quantize.read import reference_loader
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.weights import BF16, WeightFormat, weight_format

FOLDER = Path(__file__).resolve().parents[2] / "specs" / "models" / "quickstart"
TEXT = "Once upon a time there was a little girl who lived near the sea. She liked to " * 6


def tokens() -> list[int]:
    ids: list[int] = transformers.AutoTokenizer.from_pretrained(FOLDER)(TEXT)["input_ids"]
    return ids[:120]


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    module = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: np.ndarray = module(torch.tensor([tokens()])).logits[0].numpy()
    return logits


def engine(level: str, weights: WeightFormat = BF16, **options: str) -> ReferenceEngine:
    graph = build(json.loads((FOLDER / "config.json").read_text()))
    program = families.program(graph, level=level, page_tokens=16, weights=weights)  # type: ignore[arg-type]
    return ReferenceEngine(program, reference_loader(FOLDER), **options)  # type: ignore[arg-type]


def test_logits_are_those_of_transformers(expected: np.ndarray) -> None:
    logits, _ = Driver(engine("bf16", exact_dtype="f32")).run(tokens(), [70, 50])
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("level", "weights", "bound"),
    [("bf16", BF16, 1e-4), ("tq3", BF16, 0.1), ("bf16", weight_format("int8", 64), 1e-2)],
    ids=["bf16-cache", "tq3-cache", "int8-activations"],
)
def test_rounding_costs_little(expected: np.ndarray, level: str, weights: WeightFormat, bound: float) -> None:
    """Mean divergence in nats from the unrounded model."""
    logits, _ = Driver(engine(level, weights)).run(tokens(), [120])
    ours, theirs = (torch.from_numpy(rows).log_softmax(-1) for rows in (logits, expected))
    divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
    assert 0 < divergence < bound


def test_frequencies_are_those_of_transformers() -> None:
    kinds = set()
    for card in map(load_card, card_names()):
        assert card is not None
        if card.config["architectures"][0] not in ARCHITECTURES:
            continue
        turn = next(op for op in build(card.config).operations if isinstance(op, Rotary)).rotation
        config = transformers.AutoConfig.for_model(**card.config)
        kind = config.rope_parameters["rope_type"]
        kinds.add(kind)
        if kind == "default":
            head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            powers = torch.arange(0, head_dim, 2).float() / head_dim
            frequencies, scale = 1 / config.rope_parameters["rope_theta"] ** powers, 1.0
        else:
            frequencies, scale = ROPE_INIT_FUNCTIONS[kind](config)
        np.testing.assert_allclose(turn.frequencies, frequencies.numpy(), rtol=1e-5, err_msg=card.id)
        assert turn.scale == pytest.approx(scale), card.id
    assert kinds >= {"default", "llama3"}
