"""Phrases that reasons, turns and the page share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal

from ..plan import Parallelism

_BROKEN: Mapping[str, str] = {
    "memory": "needs {value} where there are {allowed}",
    "ttft_ms": "first token after {value}, limit {allowed}",
    "itl_ms": "{value} between tokens, limit {allowed}",
    "tokens_per_second": "{value}, at least {allowed} asked",
    "requests_per_second": "carries {value} of {allowed} requests/s",
    "quality": "{value}, budget {allowed}",
}


FULL = "there is no room for another"
"""What a plan says of its sequences where memory is full."""
SECONDS_FROM = 10_000
"""Milliseconds from which on a time is told in seconds."""


def broken(limit: str, value: str, allowed: str) -> str:
    """A limit that is broken: what there is, and what was allowed."""
    return _BROKEN.get(limit, f"{limit} {{value}}, limit {{allowed}}").format(value=value, allowed=allowed)


def whole(number: float) -> str:
    """``number`` with three significant digits and separators, and no exponent."""
    rounded = float(f"{number:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else format(Decimal(f"{rounded:g}"), "f")


def count(number: float) -> str:
    """A large number with its name: ``8.03 billion``."""
    for scale, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= scale:
            return f"{number / scale:.3g} {name}"
    return f"{number:,.0f}"


def times(factor: float) -> str:
    """``1.32x``."""
    return f"{factor:.2f}x"


def milliseconds(time: float) -> str:
    """A time in milliseconds, or from ten seconds on in seconds."""
    return f"{whole(time / 1000)} s" if time >= SECONDS_FROM else f"{whole(time)} ms"


def between(low: float, high: float) -> str:
    """Two times in milliseconds, both in the unit of the longer."""
    shorter = low / 1000 if high >= SECONDS_FROM else low
    return f"{whole(shorter)} to {milliseconds(high)}"


def listed(items: Iterable[str], most: int = 4) -> str:
    """``items`` in a row: the first ``most`` of them, and how many more."""
    every = list(items)
    if len(every) > most:
        every = [*every[: most - 1], f"{len(every) - most + 1} more"]
    return " and ".join([", ".join(every[:-1]), every[-1]] if len(every) > 1 else every)


def split(sizes: Parallelism) -> str:
    """How devices share a model: ``tensor 8 x pipeline 2``."""
    ways = [f"{way} {size}" for way, size in sizes if size > 1 and way != "expert"]
    dealt = [f"experts over {sizes.expert}"] if sizes.expert > 1 else []
    return ", ".join([" x ".join(ways), *dealt]) if ways or dealt else "one device"
