"""An engine without a model that holds its caller to the step contract.

A cached token is stored as its id, its position and a chain value that depends on every token before it, in
exact pages when written and in packed pages when they seal. Each step reads back, through the page tables and
by the visibility rule, everything its queries see, and compares: a page that is missing, shared, stale or
given back too early breaks the chain. Logits are a function of the chain, so of every earlier token.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from infer_compile.runtime.engines.sampling import draw
from infer_compile.runtime.formats.kv import CacheLayout, uniform
from infer_compile.runtime.formats.program import Limits, Program
from infer_compile.runtime.step import MOST_TREE, SequenceStep, StepResult

T = TypeVar("T", int, np.ndarray)
VOCABULARY = 262
SLOT = np.dtype([("id", "<i4"), ("position", "<i4"), ("chain", "<u4")])


class ContractBroken(Exception):
    """The caller's fault."""


def require(held: bool, message: str) -> None:
    if not held:
        raise ContractBroken(message)


def tiny_program(
    *,
    level: str = "tq3",
    page_tokens: int = 4,
    sink: int = 1,
    recent: int = 1,
    context: int = 256,
    sequences: int = 4,
    batch_tokens: int = 16,
    exact_pages: int | None = None,
    packed_pages: int | None = None,
    vocabulary: int = VOCABULARY,
    window: int | None = None,
    overflow: str = "stop",
    checked: int = 0,
) -> Program:
    layout = CacheLayout(
        level=level,
        page_tokens=page_tokens,
        sink_pages=sink,
        recent_pages=recent,
        kv_heads=1,
        head_dim=64,
        layers=uniform(level, 1, 64),
        window=window,
    )
    exact = sequences * layout.exact_pages(context, batch_tokens)
    packed = sequences * layout.packed_pages(context, batch_tokens)
    limits = Limits(
        max_context=context,
        max_sequences=sequences,
        max_batch_tokens=batch_tokens,
        exact_pages=exact if exact_pages is None else exact_pages,
        packed_pages=packed if packed_pages is None else packed_pages,
        overflow=overflow,
        checked_tokens=checked,
    )
    return Program(
        model="tiny",
        architecture="Fake",
        vocabulary=vocabulary,
        buffers={"logits": vocabulary},
        tensors=(),
        prologue=(),
        layers=(),
        epilogue=(),
        cache=layout,
        limits=limits,
    )


def chain_after(chain: T, token: T) -> T:
    """For numbers, or for arrays of 64 bits."""
    return (chain * 1_000_003 + (token + 1) * 2_654_435_761 + 12_345) % 2**32


def random_logits(tokens: Sequence[int], chain: int) -> np.ndarray:
    return (3 * np.random.default_rng(chain).standard_normal(VOCABULARY)).astype(np.float32)


def saying(next_token: Callable[[list[int]], int]) -> Callable[[Sequence[int], int], np.ndarray]:
    """Logits that make ``next_token`` of all tokens so far by far the likeliest."""

    def logits(tokens: Sequence[int], chain: int) -> np.ndarray:
        row = random_logits(tokens, chain)
        row[next_token(list(tokens))] = 50
        return row

    return logits


def _line(step: SequenceStep) -> int:
    """How many of the new tokens, from the first on, are a chain: their slots are their places."""
    if step.parents is None:
        return len(step.tokens)
    strays = np.flatnonzero(step.parents != np.arange(-1, len(step.parents) - 1))
    return int(strays[0]) if len(strays) else len(step.parents)


class FakeEngine:
    """``logits(tokens, chain)`` gives the row behind ``tokens``; ``delay`` is seconds per step.

    While ``gate`` is cleared no step begins. A step raises ``failure`` when it is set, once.
    """

    def __init__(
        self,
        program: Program,
        logits: Callable[[Sequence[int], int], np.ndarray] = random_logits,
        delay: float = 0.0,
    ) -> None:
        self.program = program
        self.logits = logits
        self.delay = delay
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.steps: list[list[int]] = []
        """Tokens of each sequence of each step."""
        cache, (exact, packed) = program.cache, program.pool_pages
        shape = (exact, cache.page_tokens, cache.exact_token_bytes)
        self._exact = np.zeros(shape, np.uint8)
        each = cache.token_bytes if cache.compressed else 0
        self._packed = np.zeros((packed, cache.page_tokens, each), np.uint8)

    def pool(self, name: str) -> np.ndarray:
        return {"exact": self._exact, "packed": self._packed}[name].reshape(-1)

    def close(self) -> None:
        pass

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        require(not hidden, "no hidden states here")
        self.gate.wait()
        if self.delay:
            time.sleep(self.delay)
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self._check(batch)
        self.steps.append([len(step.tokens) for step in batch])
        results = [self._run(step) for step in batch]
        rows = [row for _, rows in results for row in rows]
        empty = np.zeros((0, self.program.vocabulary), np.float32)
        return StepResult([tokens for tokens, _ in results], np.stack(rows) if rows else empty)

    def _check(self, batch: Sequence[SequenceStep]) -> None:
        limits, cache = self.program.limits, self.program.cache
        require(0 < len(batch) <= limits.max_sequences, f"{len(batch)} sequences")
        total = sum(len(step.tokens) for step in batch)
        require(total <= limits.max_batch_tokens, f"{total} tokens in a step")
        for form, size in zip(("exact", "packed"), self.program.pool_pages, strict=True):
            tables = [table for step in batch if (table := getattr(step, form)) is not None]
            places = np.concatenate([*tables, np.empty(0, np.int32)])
            pages = np.concatenate([*map(np.arange, map(len, tables)), np.empty(0, np.int32)])
            places, pages = places[places != -1], pages[places != -1]
            require(bool(((places >= 0) & (places < size)).all()), f"an {form} page is not in the pool")
            held = np.bincount(places, minlength=size)
            same = len(np.unique(np.stack([places, pages]), axis=1).T) == np.count_nonzero(held)
            require(same, f"an {form} page is held as two pages of a sequence")
            for step in batch:
                if getattr(step, form) is None:
                    continue
                last = step.start + (len(step.tokens) if form == "exact" else step.accepted)
                end = cache.pages(last) if form == "exact" else last // cache.page_tokens
                written = getattr(step, form)[step.start // cache.page_tokens : end]
                alone = bool((held[written[written != -1]] == 1).all())
                require(alone, f"an {form} page that is written is shared")
        for step in batch:
            count, end = len(step.tokens), step.start + len(step.tokens)
            require(count > 0, "a sequence without tokens")
            require(step.tokens.dtype == np.int32, "tokens must be int32")
            require(
                bool(((step.tokens >= 0) & (step.tokens < self.program.vocabulary)).all()), "unknown token"
            )
            kept = end - step.evicted
            require(kept <= limits.max_context, f"{kept} tokens are kept of {limits.max_context}")
            require(step.evicted == 0 or limits.overflow == "evict", "nothing may be evicted")
            guessed = count - step.accepted
            drawing = step.outputs == min(count, 1 + guessed)
            require(not guessed or drawing, "what is guessed?")
            if step.parents is not None:
                require(count <= MOST_TREE, f"a tree of {count} tokens")
                before = step.parents < np.arange(count)
                require(len(step.parents) == count and bool(before.all()), "a token before its parent")
                require(_line(step) >= step.accepted, "what is certain is a chain")
            require(0 <= step.outputs <= count, f"{step.outputs} outputs of {count} tokens")
            require(step.sealed <= step.start // cache.page_tokens, "a page is sealed before its tokens")
            pages = cache.pages(end)
            held = [table for table in (step.exact, step.packed) if table is not None]
            require(min(map(len, held)) >= pages, "the page tables are too short")

    def _run(self, step: SequenceStep) -> tuple[np.ndarray, list[np.ndarray]]:
        cache = self.program.cache
        size = cache.page_tokens
        # What was guessed and found right is sealed by the step after.
        self._seal(step, step.sealed, step.start // size)
        before = self._chain_before(step)
        count, line = len(step.tokens), _line(step)
        parents = np.arange(-1, count - 1) if step.parents is None else step.parents
        slots = np.zeros(count, SLOT)
        for row, (token, parent) in enumerate(zip(step.tokens.tolist(), parents.tolist(), strict=True)):
            chain = chain_after(before if parent < 0 else int(slots["chain"][parent]), token)
            position = step.start if parent < 0 else int(slots["position"][parent]) + 1
            slots[row] = token, position, chain
            place = step.start + row
            page = int(step.exact[place // size])
            require(page >= 0, f"no exact page for slot {place}")
            self._exact[page, place % size] = np.resize(
                slots[row : row + 1].view(np.uint8), cache.exact_token_bytes
            )
        self._seal(step, max(step.sealed, step.start // size), (step.start + step.accepted) // size)
        end = step.start + line
        for page in range(step.start // size, cache.pages(end)):
            tokens = self._visible(step, page, min(end, (page + 1) * size))
        rows, drawn = [], []
        for row in range(count - step.outputs, count):
            # All before the step, and its ancestors.
            slot, seen = slots[row], []
            while row >= 0:
                seen.insert(0, int(slots["id"][row]))
                row = int(parents[row])
            seen = [*tokens["id"][tokens["position"] < step.start].tolist(), *seen]
            rows.append(self.logits(seen, int(slot["chain"])))
            drawn.append(draw(rows[-1], step.sampling, step.mask, int(slot["position"]) + 1))
        return np.array(drawn, np.int32), rows

    def _seal(self, step: SequenceStep, first: int, end: int) -> None:
        cache = self.program.cache
        for page in filter(cache.packs, range(first, end)):
            if step.packed is None:
                continue
            held = step.packed[page] >= 0 and step.exact[page] >= 0
            require(bool(held), f"page {page} cannot be sealed without both of its forms")
            source = self._exact[int(step.exact[page])]
            self._packed[int(step.packed[page])] = source[:, : cache.token_bytes]

    def _chain_before(self, step: SequenceStep) -> int:
        if step.start == 0:
            return 0
        query = step.start // self.program.cache.page_tokens
        return int(self._visible(step, query, step.start)["chain"][-1])

    def _visible(self, step: SequenceStep, query_page: int, tokens: int) -> np.ndarray:
        """The slots of the first ``tokens`` tokens that a query in ``query_page`` sees, in the form that it
        sees."""
        cache, size = self.program.cache, self.program.cache.page_tokens
        first = max(step.start, query_page * size)
        pages = cache.seen(first, cache.pages(tokens) - 1, step.evicted, cache.window)
        parts = []
        for page in pages:
            exact = step.packed is None or cache.exact(query_page, page)
            held = int((step.exact if exact else step.packed)[page])
            form = "exact" if exact else "packed"
            require(held >= 0, f"page {query_page} sees page {page} {form}, which is not held")
            pool = self._exact if exact else self._packed
            parts.append(pool[held][:, : SLOT.itemsize])
        places = np.concatenate([np.arange(page * size, (page + 1) * size) for page in pages])
        slots = np.ascontiguousarray(np.concatenate(parts)).view(SLOT)[places < tokens, 0]
        places = places[places < tokens]
        require(bool((slots["position"] == places).all()), "a page holds another page's tokens")
        before, after = slots[:-1], slots[1:]
        chains = chain_after(before["chain"].astype(np.uint64), after["id"].astype(np.uint64))
        follows = after["position"] == before["position"] + 1
        whole = bool((chains == after["chain"])[follows].all())
        require(whole, "a page holds another sequence's tokens")
        if places[0] == 0:
            first_chain = chain_after(0, int(slots["id"][0]))
            require(first_chain == int(slots["chain"][0]), "a page holds another sequence's tokens")
        return slots
