"""Teacher forcing: several engines read the same tokens side by side and give their logits for each.

Contexts are sequences of one batch, in chunks that all engines take, so that the logits of a few rows at a
time are all that is ever held. How tokens are cut into steps changes no result, by the step contract.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.errors import InferCompileError, Problem
from ..runtime.pages import Pages, PageTable
from ..runtime.step import Engine, Float32, Int32, SequenceStep


class Player:
    """An engine and the pages of its cache."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pages = Pages(engine.program.cache, engine.program.limits)

    @property
    def context(self) -> int:
        """Tokens of the longest sequence that it takes."""
        return min(self.engine.program.limits.max_context, self.pages.capacity)


NO_PAGES = Problem("IC521", "the engine refused a step", because="a context that it has no pages for")


@dataclass(frozen=True, slots=True)
class Forced:
    """Rows of logits of one context: row i, ``logits[player][i]`` [vocabulary], stands for token
    ``first + i``, which was ``tokens[i]``."""

    context: int
    first: int
    tokens: Int32
    logits: tuple[Float32, ...]


@dataclass(slots=True)
class Lane:
    """A context under way: ``done`` tokens of ``tokens`` are cached, ``room`` at most, and ``tables`` has one
    entry per player."""

    context: int
    tokens: Int32
    room: int
    tables: tuple[PageTable, ...]
    done: int = 0


def open_lane(
    players: Sequence[Player], lanes: Sequence[Lane], context: int, tokens: Int32, room: int
) -> Lane | None:
    """A lane whose ``room`` tokens every player has pages for beside those of ``lanes``, or None."""
    lane = Lane(context, tokens, room, tuple(player.pages.open() for player in players))
    for player in players:
        held = (
            (table, each.room)
            for each in (*lanes, lane)
            for other, table in zip(players, each.tables, strict=True)
            if other.pages is player.pages
        )
        if room > player.context or not player.pages.fits(held):
            close_lane(players, lane)
            return None
    return lane


def close_lane(players: Sequence[Player], lane: Lane) -> None:
    for player, table in zip(players, lane.tables, strict=True):
        player.pages.close(table)


def forced(players: Sequence[Player], contexts: Sequence[Int32], first: int = 1) -> Iterator[Forced]:
    """The players' logits for tokens ``first``, ``first + 1``, ... of every context.

    Raises InferCompileError IC521 for a context that a player does not take.
    """
    most = min(player.engine.program.limits.max_sequences for player in players)
    waiting = list(enumerate(contexts))[::-1]
    lanes: list[Lane] = []
    try:
        while waiting or lanes:
            while waiting and len(lanes) < most:
                index, tokens = waiting[-1]
                lane = open_lane(players, lanes, index, tokens, len(tokens))
                if lane is None:
                    break
                lanes.append(lane)
                waiting.pop()
            if not lanes:
                raise InferCompileError(NO_PAGES)
            yield from _step(players, lanes, first)
            for lane in [lane for lane in lanes if lane.done == len(lane.tokens) - 1]:
                close_lane(players, lane)
                lanes.remove(lane)
    finally:
        for lane in lanes:
            close_lane(players, lane)


def _step(players: Sequence[Player], lanes: Sequence[Lane], first: int) -> Iterator[Forced]:
    """One step of every player over all lanes: each its share of rows, or more where no logits are asked."""
    limits = [player.engine.program.limits for player in players]
    tokens = min(limit.max_batch_tokens for limit in limits)
    rows = min(limit.max_outputs for limit in limits)
    counts: list[int] = []
    outputs: list[int] = []
    for index, lane in enumerate(lanes):
        others = len(lanes) - index
        silent = max(0, first - 1 - lane.done)
        share = tokens // others if silent else min(rows, tokens) // others
        wanted = min(share, silent or len(lane.tokens) - 1 - lane.done)
        count = prepared(players, lane, wanted)
        counts.append(count)
        outputs.append(0 if silent else count)
        tokens -= count
        rows -= outputs[-1]
    results = [run(player, lanes, which, counts, outputs) for which, player in enumerate(players)]
    row = 0
    for lane, count, output in zip(lanes, counts, outputs, strict=True):
        if output:
            logits = tuple(result[row : row + output] for result in results)
            begin = lane.done + 1
            yield Forced(lane.context, begin, lane.tokens[begin : begin + output], logits)
        lane.done += count
        row += output


def prepared(players: Sequence[Player], lane: Lane, wanted: int) -> int:
    """How many tokens every player has pages for, of ``wanted``; they are handed out."""
    count = wanted
    for player, table in zip(players, lane.tables, strict=True):
        count = player.pages.room(table, lane.done, count)
    for player, table in zip(players, lane.tables, strict=True):
        player.pages.prepare(table, lane.done, count, count)
    return count


def run(
    player: Player, lanes: Sequence[Lane], which: int, counts: Sequence[int], outputs: Sequence[int]
) -> Float32:
    """One step of ``player``, whose table is ``tables[which]``: the next ``counts`` tokens of each lane."""
    batch = [
        SequenceStep(
            tokens=lane.tokens[lane.done : lane.done + count],
            start=lane.done,
            accepted=count,
            sealed=lane.tables[which].sealed,
            exact=lane.tables[which].exact.places,
            packed=lane.tables[which].packed.places,
            outputs=output,
        )
        for lane, count, output in zip(lanes, counts, outputs, strict=True)
        if count
    ]
    if not batch:
        raise InferCompileError(NO_PAGES)
    result = player.engine.step(batch, logits=True)
    for lane, count in zip(lanes, counts, strict=True):
        player.pages.commit(lane.tables[which], lane.done + count)
    logits = result.logits
    return np.empty((0, player.engine.program.vocabulary), np.float32) if logits is None else logits
