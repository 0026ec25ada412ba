"""What the shadow check finds on the trained quickstart model, whose cache really loses something."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import families
import pytest
import torch

from infer_compile.graph.build import build
from infer_compile.quantize.read import reference_loader
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.kv import LevelName
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.shadow import Shadow, drift_percent
from infer_compile.runtime.tokenizer import Tokenizer

SPECS = Path(__file__).resolve().parents[2] / "specs"
FOLDER = SPECS / "models" / "quickstart"
PROMPT, ANSWER = 72, 24
torch.set_num_threads(1)


class Drift:
    """Over all answers."""

    def __init__(self) -> None:
        self.tokens, self.nats = 0, 0.0

    def checked(self, tokens: int, nats: float) -> None:
        self.tokens += tokens
        self.nats += nats

    def unchecked(self, why: str) -> None:
        raise AssertionError(why)

    @property
    def percent(self) -> float:
        return drift_percent(self.nats, self.tokens)


@cache
def drift(level: LevelName, temperature: float = 1.0, **windows: int) -> float:
    graph = build(json.loads((FOLDER / "config.json").read_text()))
    program = families.program(graph, level=level, page_tokens=16, pages=7, **windows)
    limits = program.limits.model_copy(update={"max_context": 96, "checked_tokens": 96})
    engine = ReferenceEngine(program.model_copy(update={"limits": limits}), reference_loader(FOLDER))
    tokenizer, found = Tokenizer(FOLDER), Drift()
    loop = EngineLoop(engine, tokenizer, 8, shadow=Shadow(engine, 1.0, found))
    text = (SPECS / "texts" / "evaluation.txt").read_text()[: 10 * PROMPT]
    prompt = tokenizer.encode(text, special=True)[:PROMPT]
    controls = Controls(temperature=temperature, seed=1)
    loop.submit([(Request(prompt, ANSWER, controls), lambda piece: None)])
    while not loop._resting:
        loop.advance()
    assert found.tokens == ANSWER
    return found.percent


def test_an_exact_cache_does_not_drift() -> None:
    assert drift("bf16") == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_coarse_cache_without_windows_does(temperature: float) -> None:
    """Also where the likeliest tokens are taken, which are no sample of what the model would say."""
    assert drift("tq2", temperature, sink_pages=0, recent_pages=0) > 0.3


def test_a_window_takes_away_what_it_hides() -> None:
    coarse = drift("tq2", 1.0, sink_pages=0, recent_pages=0)
    assert 0 < drift("tq2", 1.0, sink_pages=1, recent_pages=1) < coarse / 2
