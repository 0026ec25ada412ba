"""What the planner prefers where the numbers alone do not decide: data with sources, in choices.yaml."""

from __future__ import annotations

from typing import Literal

from .figure import Figure, Frozen


class CacheChoices(Frozen):
    """The pages of our own engine's cache."""

    page_tokens: Figure
    sink_pages: Figure
    recent_pages: Figure
    kept_tails: Figure
    """Ends of prompts and answers, each so many ``recent_pages``, that there are exact pages for beside those
    of the sequences, so that others can go on behind them."""
    least_bits: Figure
    """Of keys and values, below which a cache is compressed only where something asks for it."""


class Margins(Frozen):
    """By what factor something has to win in the objective before it is chosen."""

    compressed_gain: Figure
    lossy_gain: Figure
    speculation_gain: Figure
    engine_gain: Figure


class Choices(Frozen):
    schema_version: Literal[1]
    cache: CacheChoices
    margins: Margins
