"""64 clients at once, some of whom leave and some of whom send nonsense (benchmarks/serving_load.py), on
pools that are too small for their batch."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from urllib.parse import urlsplit

from conftest import serving
from fake_engine import FakeEngine, tiny_program

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from crowd import COMPLETIONS, Ask, Crowd, asks

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "specs" / "texts" / "evaluation.txt").read_text(encoding="ascii", errors="ignore")
CLIENTS, REQUESTS = 64, 4


def crowd(url: str, wanted: list[Ask]) -> Crowd:
    where = urlsplit(url)
    return Crowd(where.hostname, where.port, wanted)


def test_nothing_is_lost_garbled_or_leaked_under_load(model_dir: Path) -> None:
    program = tiny_program(sequences=16, batch_tokens=48, exact_pages=90, packed_pages=150)
    wanted = asks(TEXT, 100, 24, random.Random(0))
    with serving(FakeEngine(program, delay=0.002), model_dir, queue=24) as running:
        found = crowd(running.url, wanted)

        async def everything() -> None:
            await found.learn()
            await found.load(CLIENTS, 0, seconds=300, most=REQUESTS)
            await found.settle()
            await found.learn()

        asyncio.run(everything())
        findings = found.findings
        assert findings.faults == []
        # It happened at all: more clients than places, prompts in common, pages that ran out.
        counts = findings.counts
        assert counts["finished"] > CLIENTS * REQUESTS / 2
        assert min(counts["left"], counts["malformed"]) > 10
        assert counts["told to come back"] > 0
        assert running.metric("infer_num_preemptions_total") > 0
        assert running.metric("infer_prefix_cache_hits_total") > 0
        assert running.metric("infer_request_unfinished_total", reason="error") == 0
    assert {status for status in findings.statuses if status >= 500} == set()


def test_a_wrong_answer_is_found(model_dir: Path) -> None:
    """The measure itself: an engine that says something else under way, and one that fails a step."""
    ask = Ask("greedy", COMPLETIONS, b'{"prompt": "abc", "max_tokens": 8, "stream": true, "temperature": 0}')
    engine = FakeEngine(tiny_program())
    with serving(engine, model_dir) as running:
        found = crowd(running.url, [ask])
        logits = engine.logits

        async def everything() -> None:
            await found.learn()
            engine.logits = lambda tokens, chain: -logits(tokens, chain)
            await found.load(2, 0, seconds=20, most=3)
            await found.settle()

        asyncio.run(everything())
        assert any("another answer than alone" in fault for fault in found.findings.faults)
