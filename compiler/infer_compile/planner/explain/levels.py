"""Why the cache is kept as it is, and what each other level would give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from ..candidate import Candidate
from ..deployment import Deployment
from ..performance.cache import all_token_bytes
from ..plan import Level, Range, Reason, significant
from ..quality import EXACT, cache_loss
from ..units import GIB
from .contest import Contest, broken
from .formats import ARITHMETIC, THE_SPEC, against, held_back, loss_in_words, narrow
from .words import times


def cache(contest: Contest) -> Reason:
    """The level against the others that the engine serves."""
    asked, chosen = contest.asked, contest.chosen
    if not asked.graph.attention:
        why = f"{asked.graph.name} keeps no keys and values, but a state of fixed size"
        return Reason(key="kv", value=chosen.level, why=why, source=ARITHMETIC)
    source = chosen.loss_of_cache.source if chosen.compressed else ARITHMETIC
    if asked.spec.pin.kv:
        clauses, source = ["pinned", *_held(contest), *_twin(contest)], THE_SPEC
    elif not chosen.compressed:
        first = "nothing asks for compression: an exact cache keeps every limit"
        clauses = [first, *_held(contest), *_compressed(contest)]
    else:
        clauses = [
            _not_exact(contest),
            *_held(contest),
            *_twin(contest),
            *against(contest, "kv", skip=EXACT),
        ]
    return Reason(key="kv", value=chosen.level, why="; ".join(clauses), source=source)


def pages(asked: Deployment, chosen: Candidate) -> Iterator[Reason]:
    """The pages of the cache, and those that stay exact."""
    choices, cache, own = asked.facts.choices.cache, chosen.cache, chosen.engine.architectures.own
    tokens = choices.page_tokens if own else chosen.engine.page_tokens
    yield Reason(
        key="kv.page_tokens",
        value=str(cache.page_tokens),
        why=tokens.source if own else f"what {chosen.engine.name} keeps the cache in",
        source=f"choices.yaml, {tokens.basis}" if own else tokens.source,
    )
    if cache.packs:
        for name, chosen_pages in (
            ("sink_pages", choices.sink_pages),
            ("recent_pages", choices.recent_pages),
        ):
            count = int(chosen_pages.value)
            yield Reason(
                key=f"kv.{name}",
                value=str(count),
                why=f"{count * cache.page_tokens} tokens stay exact: {chosen_pages.source}",
                source=f"choices.yaml, {chosen_pages.basis}",
            )
        yield Reason(
            key="kv.spare_pages",
            value=str(cache.spare_pages),
            why=f"exact pages for {cache.kept_tails} ends of prompts and answers that others go on behind: "
            f"{choices.kept_tails.source}",
            source=f"choices.yaml, {choices.kept_tails.basis}",
        )


def levels(contest: Contest) -> tuple[Level, ...]:
    """What each level would give with everything else as it was chosen; none where there is but one."""
    survey, chosen = contest.survey, contest.chosen
    same = contest.engine & contest.layout & contest.drafting
    same &= contest.blocks(lambda block: block.stored.scheme == chosen.scheme)
    same &= contest.each(lambda solved: solved.block.budget == chosen.budget)
    every = [survey.candidate(int(index)) for index in np.flatnonzero(same)]
    return tuple(_level(contest.asked, one) for one in every) if len(every) > 1 else ()


def _level(asked: Deployment, one: Candidate) -> Level:
    loss, totals = one.loss_of_cache, asked.shape.totals
    per_token = all_token_bytes(asked.shape, one.cache)
    return Level(
        level=one.level,
        bits_per_element=8 * per_token / totals.cache_elements_per_token,
        bytes_per_token=round(per_token),
        itl_ms=significant(float(one.forecast.itl) * 1e3),
        tokens_per_second=significant(float(one.forecast.tokens_per_second)),
        memory_gib=significant(float(one.memory.total) / GIB),
        quality_loss_percent=Range(low=loss.low, expected=loss.expected, high=loss.high),
        calibrated=one.cache.scheme.calibrated,
        breaks="" if one.feasible else broken(one),
    )


def _held(contest: Contest) -> Iterator[str]:
    """What a token takes and costs, and what the level needs of the build."""
    asked, chosen = contest.asked, contest.chosen
    mine = all_token_bytes(asked.shape, chosen.cache)
    if not chosen.compressed:
        yield f"{mine:,.0f} bytes per token"
        return
    in_bf16 = replace(chosen.cache, scheme=asked.facts.formats.of_kv(EXACT), levels=())
    yield f"{mine:,.0f} bytes per token against {all_token_bytes(asked.shape, in_bf16):,.0f} in bf16"
    yield loss_in_words(chosen.loss_of_cache)
    if chosen.cache.scheme.calibrated:
        yield "calibrated at build on text (quality.calibration, or what comes along), with the extra [torch]"


def _twin(contest: Contest) -> Iterator[str]:
    """The level that takes as many bytes and is calibrated where this one is not, or the other way round."""
    asked, mine = contest.asked, contest.chosen.cache.scheme
    for other in asked.facts.formats.kv:
        same = (other.key_bits, other.value_bits, other.scale_bytes)
        if other.calibrated != mine.calibrated and same == (mine.key_bits, mine.value_bits, mine.scale_bytes):
            if other.name not in contest.chosen.engine.kv:
                continue
            loss = cache_loss(asked.graph, other.name, asked.facts.quality).expected
            how = "is calibrated at build" if other.calibrated else "needs no calibration"
            yield f"{other.name} takes as many bytes, {how} and is expected to lose {loss:g} %"


def _not_exact(contest: Contest) -> str:
    plain = contest.blocks(lambda block: block.cache.scheme.name == EXACT)
    best = contest.best(plain)
    if best is not None:
        return f"{times(1 / contest.gain(best))} the best with an exact cache ({contest.against(best)})"
    near = contest.nearest(plain)
    miss = "" if near is None else f" (the nearest {broken(contest.survey.candidate(near))})"
    return f"no exact cache keeps the limits{miss}"


def _compressed(contest: Contest) -> Iterator[str]:
    """What the best compressed cache would give, beside an exact one that was chosen."""
    asked = contest.asked
    packed = contest.engine & contest.blocks(lambda block: block.cache.scheme.name != EXACT)
    best = contest.best(packed)
    if best is not None:
        one = contest.survey.candidate(best)
        least = asked.facts.choices.margins.compressed_gain.value
        because = narrow(asked) if held_back(asked, one) else f"a compressed cache has to win {least:g}x"
        yield (
            f"{one.level} would give {times(contest.gain(best))} ({contest.figure(best)}) at "
            f"{one.loss_of_cache.expected:g} % loss: {because}"
        )
        return
    near = contest.nearest(packed)
    if near is not None:
        one = contest.survey.candidate(near)
        yield f"{one.level} is out of the question: {broken(one)}"
