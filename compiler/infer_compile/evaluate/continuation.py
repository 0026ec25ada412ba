"""Free generation: what the reference writes on its own, and how long the model would write the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.step import Int32
from .divergence import Rows, gathered, rows
from .forcing import Lane, Player, close_lane, forced, open_lane, prepared, run


@dataclass(frozen=True, slots=True)
class Continuation:
    """``prompts`` prompts of ``prompt_tokens`` tokens, each continued greedily by the reference.

    ``agreed_tokens`` is how many of its tokens the model would have written as well before the first other
    one, ``written_tokens`` how many there are, both means over prompts; ``identical`` counts continuations
    that are the same to their end. ``kl_mean`` is taken along the reference's continuation.
    """

    prompts: int
    prompt_tokens: int
    written_tokens: float
    agreed_tokens: float
    identical: int
    kl_mean: float


def continuation(
    reference: Player, model: Player, prompts: Sequence[Int32], count: int, ends: Collection[int]
) -> Continuation:
    """Continue ``prompts`` (of one length) by up to ``count`` tokens, and hold the model against it.

    What the model would write is known from one pass over what the reference wrote: a greedy text is the
    same up to the first place where the likeliest tokens differ.
    """
    written = continued(reference, prompts, count, ends)
    length = len(prompts[0])
    whole = [np.concatenate([prompt, text]) for prompt, text in zip(prompts, written, strict=True)]
    found = gathered(rows(part) for part in forced((reference, model), whole, length))
    agreed = [_agreed(found, index, len(text)) for index, text in enumerate(written)]
    return Continuation(
        prompts=len(prompts),
        prompt_tokens=length,
        written_tokens=float(np.mean([len(text) for text in written])),
        agreed_tokens=float(np.mean(agreed)),
        identical=sum(count == len(text) for count, text in zip(agreed, written, strict=True)),
        kl_mean=float(found.divergence.mean()),
    )


def continued(player: Player, prompts: Sequence[Int32], count: int, ends: Collection[int]) -> list[Int32]:
    """The ``count`` tokens that ``player`` writes after each prompt, each the likeliest; fewer where a text
    ends."""
    limits = player.engine.program.limits
    players = (player,)
    waiting = list(enumerate(prompts))[::-1]
    lanes: list[Lane] = []
    texts: dict[int, Int32] = {}
    while waiting or lanes:
        while waiting and len(lanes) < limits.max_sequences:
            index, prompt = waiting[-1]
            lane = open_lane(players, lanes, index, prompt, len(prompt) + count)
            if lane is None:
                break
            lanes.append(lane)
            waiting.pop()
        for lane in _grown(player, lanes):
            length = len(prompts[lane.context])
            if len(lane.tokens) == length + count or int(lane.tokens[-1]) in ends:
                texts[lane.context] = lane.tokens[length:]
                close_lane(players, lane)
                lanes.remove(lane)
    return [texts[index] for index in range(len(prompts))]


def _grown(player: Player, lanes: Sequence[Lane]) -> list[Lane]:
    """One step; the lanes that gained a token."""
    tokens = player.engine.program.limits.max_batch_tokens
    counts: list[int] = []
    for index, lane in enumerate(lanes):
        share = tokens // (len(lanes) - index)
        counts.append(prepared((player,), lane, min(share, len(lane.tokens) - lane.done)))
        tokens -= counts[-1]
    ready = [lane.done + count == len(lane.tokens) for lane, count in zip(lanes, counts, strict=True)]
    logits = run(player, lanes, 0, counts, [int(last) for last in ready])
    grown: list[Lane] = []
    for lane, count, last in zip(lanes, counts, ready, strict=True):
        lane.done += count
        if last:
            token = np.array([logits[len(grown)].argmax()], np.int32)
            lane.tokens = np.concatenate([lane.tokens, token])
            grown.append(lane)
    return grown


def _agreed(found: Rows, context: int, length: int) -> int:
    """Tokens before the first that the model would not have written. The reference's are its likeliest."""
    agrees = found.agrees[found.context == context]
    return int(np.argmin(agrees)) if not agrees.all() else length
