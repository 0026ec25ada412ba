"""Sequences that outgrow their context: what goes, what stays, and who is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import serving
from fake_engine import FakeEngine, tiny_program
from test_scheduler import request, run, submit

from infer_compile.runtime import sampling, sequence
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.kv import CacheLayout
from infer_compile.runtime.loop import MOST_POSITIONS, EngineLoop
from infer_compile.runtime.pages import Pages
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.step import SequenceStep
from infer_compile.runtime.tokenizer import Tokenizer

LAYOUTS = [
    {"context": 24, "sink": 1, "recent": 1},
    {"context": 27, "sink": 2, "recent": 3},  # a context of whole pages and a bit
    {"context": 16, "sink": 2, "recent": 2},  # the smallest: what is recent exactly is evicted too
    {"context": 24, "sink": 1, "recent": 0, "level": "bf16"},
    {"context": 24, "sink": 0, "recent": 1},
    {"context": 24, "sink": 2, "window": 15},  # sinks are gone before anything is evicted
    {"context": 24, "sink": 2, "window": 21},  # the second sink page is seen again once the gap closes
    {"context": 24, "sink": 2, "window": 100},
]


class Recording(FakeEngine):
    """Remembers which slots the queries of each page saw, and the first of these queries."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.seen: list[tuple[int, list[int]]] = []

    def _visible(self, step: SequenceStep, query_page: int, tokens: int) -> np.ndarray:
        slots = super()._visible(step, query_page, tokens)
        size = self.program.cache.page_tokens
        if tokens > step.start:
            self.seen.append((max(step.start, query_page * size), slots["position"].tolist()))
        return slots


def expected(layout: CacheLayout, context_pages: int, first: int, last: int) -> list[int]:
    """The slots on pages of which queries from ``first`` to ``last`` see some, token by token."""
    size, query_page = layout.page_tokens, first // layout.page_tokens
    sinks = layout.sink_pages * size
    gap = max(0, query_page + 1 - context_pages) * size

    def sees(query: int, slot: int) -> bool:
        if sinks <= slot < sinks + gap:
            return False
        distance = query - slot - (gap if slot < sinks else 0)
        return distance >= 0 and (layout.window is None or distance < layout.window)

    seen = {slot // size for query in range(first, last + 1) for slot in range(last + 1) if sees(query, slot)}
    return [slot for slot in range(last + 1) if slot // size in seen]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prompt", [3, 60])
def test_sinks_and_the_last_tokens_stay(tokenizer: Tokenizer, layout: dict[str, object], prompt: int) -> None:
    engine = Recording(tiny_program(overflow="evict", **layout))
    cache = engine.program.cache
    loop = EngineLoop(engine, tokenizer, 1)
    (answer,) = submit(loop, request(prompt, 70))
    pages, room = loop.pages.context_pages, loop.pages.context_pages * cache.page_tokens
    assert pages == engine.program.limits.max_context // cache.page_tokens
    while not loop.scheduler.idle:
        loop.advance()
        loop.pages.check()
        if answer.sequence.computed > room and (table := answer.sequence.table) is not None:
            assert table.exact.held <= cache.exact_pages(room)
            assert table.packed.held <= cache.packed_pages(room)
    assert answer.finish == "length"
    assert engine.seen[-1][1][-1] == prompt + 70 - 2
    for first, seen in engine.seen:
        assert seen == expected(cache, pages, first, seen[-1])
    assert loop.pages.usage == 0


def test_what_was_evicted_is_counted(tokenizer: Tokenizer) -> None:
    told: list[int] = []

    class Watching:
        def stepped(self, tokens: int) -> None: ...
        def drew(self, sequence: object, since: float) -> None: ...
        def ended(self, sequence: object) -> None: ...
        def admitted(self, sequence: object) -> None: ...
        def preempted(self, sequences: int) -> None: ...
        def evicted(self, tokens: int) -> None:
            told.append(tokens)

    engine = FakeEngine(tiny_program(overflow="evict", context=24))
    loop = EngineLoop(engine, tokenizer, 1, Watching())
    (answer,) = submit(loop, request(10, 50))
    run(loop)
    # The last token drawn, the 60th, is never computed: the last query stands in page 58 // 4 = 14.
    assert answer.sequence.evicted == sum(told) == (14 + 1 - 6) * 4
    assert answer.pieces[-1].evicted == 36
    assert sum(piece.evicted for piece in answer.pieces) == 36


def test_a_program_that_does_not_evict_ends_as_ever(tokenizer: Tokenizer) -> None:
    loop = EngineLoop(FakeEngine(tiny_program(context=24)), tokenizer, 1)
    assert (loop.context, loop.longest, loop.answer_tokens(20)) == (24, 24, 4)
    (answer,) = submit(loop, request(10, 14))
    run(loop)
    assert (answer.finish, answer.sequence.evicted) == ("length", 0)


def test_an_answer_without_a_limit_is_not_endless(tokenizer: Tokenizer) -> None:
    loop = EngineLoop(FakeEngine(tiny_program(overflow="evict", context=24)), tokenizer, 1)
    assert (loop.context, loop.longest) == (24, MOST_POSITIONS)
    assert (loop.answer_tokens(20), loop.answer_tokens(1000)) == (24, 24)
    assert loop.answer_tokens(MOST_POSITIONS - 3) == 3


def test_a_stream_has_room_for_as_much_as_is_asked(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers of tokens, of page tables and of penalties grow with it, not with what it might become."""
    monkeypatch.setattr(sequence, "FIRST_ROOM", 8)
    monkeypatch.setattr(sampling, "FIRST_ROOM", 8)
    loop = EngineLoop(FakeEngine(tiny_program(overflow="evict", context=24)), tokenizer, 1)
    controls = Controls(temperature=0, frequency_penalty=0.1)
    (answer,) = submit(loop, Request(np.arange(5, dtype=np.int32), MOST_POSITIONS - 5, controls))
    drawn: list[int] = []
    for _ in range(300):
        loop.advance()
        drawn.append(int(answer.sequence._tokens[answer.sequence.length - 1]))
    assert answer.sequence.generated == 300
    assert answer.sequence._tokens[5:305].tolist() == drawn
    assert len(answer.sequence._tokens) < 2 * 305
    assert len(answer.sequence.table.exact.places) < 2 * 305 // 4
    told = answer.sequence._sampler.sampling()
    counts = np.bincount(drawn)
    assert dict(zip(told.ids.tolist(), np.round(told.bias / -0.1).astype(int).tolist(), strict=True)) == {
        token: int(counts[token]) for token in np.flatnonzero(counts).tolist()
    }
    loop.cancel([answer.sequence])
    loop.advance()
    assert loop.pages.usage == 0


@pytest.mark.parametrize(
    "layout", [{"sink": 2, "recent": 1, "context": 15}, {"context": 64, "exact_pages": 2}]
)
def test_a_context_of_little_more_than_sinks_is_refused(layout: dict[str, object]) -> None:
    layout = {"level": "bf16"} | layout
    program = tiny_program(overflow="evict", **layout)
    with pytest.raises(InferCompileError, match="IC510"):
        Pages(program.cache, program.limits)


def test_clients_are_told_what_was_dropped(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program(overflow="evict", context=32)), model_dir) as running:
        create = running.client.completions.create
        settings = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
        whole = create(prompt="some words", max_tokens=60, **settings)
        assert whole.usage.completion_tokens == 60
        assert whole.usage.context_details == {"evicted_tokens": 40}
        options = {"include_usage": True}
        chunks = list(
            create(prompt="some words", max_tokens=60, stream=True, stream_options=options, **settings)
        )
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
        finishing = next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason)
        assert finishing.context_details == {"evicted_tokens": 40}
        assert chunks[-1].usage.context_details == {"evicted_tokens": 40}
        short = create(prompt="some words", max_tokens=5, **settings)
        assert "context_details" not in json.loads(short.model_dump_json())["usage"]
        assert running.metric("infer_evicted_tokens_total") == 80
        # And a prompt beyond the context is read to its end.
        log = create(prompt="x" * 100, max_tokens=5, **settings)
        assert (log.usage.prompt_tokens, log.usage.context_details) == (100, {"evicted_tokens": 72})
