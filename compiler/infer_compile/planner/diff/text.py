"""A diff in words, for a terminal."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Sequence

from ..units import size
from .diff import Change, Diff, Scalar, is_digest
from .meaning import GROUPS

WIDTH = 110
"""Columns of the text."""
_COLUMN = 62
"""The widest phrase that what follows is aligned to."""
_MANY = 10
"""From so many times as much on a percentage says less than a factor."""
_SHORT = 12
"""Digits of a digest that are shown."""


def text(diff: Diff, *more: str) -> str:
    """Lines for a terminal: groups, a symbol for each change, ``more`` of the caller, the total last."""
    lines: list[str] = []
    told: set[str] = set()
    for group in GROUPS:
        changes = diff.of(group)
        if changes:
            lines += [group, *_group(changes, told), ""]
    if diff.texts:
        lines += ["explanations", *(f"  ~ {each}" for each in diff.texts), ""]
    return "\n".join([*lines, *more, diff.total])


def phrase(change: Change) -> str:
    """``itl_ms 12.1 -> 15.3 ms, +26 %, slower``."""
    words = f"{_short(change.key)} {_values(change)}"
    return ", ".join(filter(None, [words, _relative(change), change.word]))


def _short(key: str) -> str:
    """``key`` as a page has it."""
    return key.removeprefix("predicted").removeprefix(".")


def _brief(change: Change) -> str:
    """A part in its section."""
    symbol = f"{change.symbol} " if change.symbol != "~" else ""
    return f"{symbol}{change.key.rpartition('.')[2]} {_values(change)}"


def _values(change: Change) -> str:
    unit = change.meaning.unit
    old, new = (_shown(value, unit) for value in (change.before, change.after))
    if change.symbol != "~":
        return new or old
    return f"{old.removesuffix(f' {unit}') if change.numbers else old} -> {new}"


def _group(changes: Sequence[Change], told: set[str]) -> Iterator[str]:
    """A line for each change with its reason below; parts and digests are gathered in one each.

    Reasons that are in ``told`` are not repeated, those that are given join it.
    """
    digests = [change.key.removesuffix(".digest") for change in changes if change.is_digest]
    parts = [change for change in changes if change.meaning.better == "part"]
    rest = [change for change in changes if not change.is_digest and change.meaning.better != "part"]
    phrases = [phrase(change) for change in rest]
    width = min(_COLUMN, max(map(len, phrases), default=0))
    for change, words in zip(rest, phrases, strict=True):
        yield f"  {change.symbol} {words:{width}}  {change.meaning.noun}".rstrip()
        if change.why and change.why not in told:
            told.add(change.why)
            yield from _wrapped(f"because: {change.why}", 6)
    for section, some in itertools.groupby(parts, key=lambda change: change.key.rpartition(".")[0]):
        words = ", ".join(_brief(change) for change in some)
        yield from _wrapped(f"~ {_short(section) or 'ends of the intervals'}: {words}", 2)
    if digests:
        yield from _wrapped(f"~ digest{'s' * (len(digests) > 1)} of {', '.join(digests)}", 2)


def _wrapped(words: str, indent: int) -> list[str]:
    return textwrap.wrap(
        words,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _shown(value: Scalar | None, unit: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value[:_SHORT] if is_digest(value) else value
    if unit == "bytes":
        return size(value)
    number = f"{value:,}" if isinstance(value, int) and abs(value) >= 10_000 else f"{value:.6g}"
    return f"{number} {unit}".rstrip()


def _relative(change: Change) -> str:
    numbers = change.numbers
    if numbers is None:
        return ""
    if change.meaning.unit == "%":
        return f"{numbers[1] - numbers[0]:+.3g} points"
    if change.relative is None:
        return ""
    if change.relative >= _MANY - 1:
        return f"{change.relative + 1:,.0f}-fold"
    percent = 100 * change.relative
    digits = 0 if abs(percent) >= 10 else 1 if abs(percent) >= 1 else 2
    return f"{percent:+,.{digits}f} %"
