"""What commands print: coded errors on standard error, tables and JSON on standard output."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click

from ..runtime.errors import InferCompileError

_STYLES: Mapping[str, Mapping[str, Any]] = {
    "error": {"fg": "red", "bold": True},
    "  because:": {"fg": "yellow"},
    "  fix:": {"fg": "green"},
}


def coloured(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal and the user has not asked for plain text (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def report(error: InferCompileError) -> None:
    """Print every problem to standard error."""
    colour = coloured(sys.stderr)
    for problem in error.problems:
        for line in str(problem).splitlines():
            click.echo(_styled(line) if colour else line, err=True, color=colour)


def _styled(line: str) -> str:
    for start, style in _STYLES.items():
        if line.startswith(start):
            end = line.index("]") + 1 if start == "error" else len(start)
            return click.style(line[:end], **style) + line[end:]
    return line


def print_json(fields: Mapping[str, Any]) -> None:
    """One JSON object with ``"schema": 1`` on standard output."""
    click.echo(json.dumps({"schema": 1, **fields}, indent=2, ensure_ascii=False))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """Columns as wide as their content, two spaces apart; those named in ``right`` are aligned right."""
    lines = [tuple(headings), *(tuple(map(_cell, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(line, widths, headings, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.10g}" if isinstance(value, float) else str(value)
