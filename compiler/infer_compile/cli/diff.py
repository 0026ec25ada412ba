"""``infer-compile diff``: two specs, plans or bundles."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from ..build.operand import fields, operand
from ..bundle import diff as bundles
from ..planner.diff.diff import as_json, compare
from ..planner.diff.text import text
from ..runtime.errors import Exit
from .console import coloured, print_json

_SYMBOL = re.compile(r"^  ([-+~])(?= )", re.MULTILINE)
_COLOURS = {"+": "green", "~": "yellow", "-": "red"}


@click.command()
@click.argument("before", metavar="A", type=click.Path(path_type=Path))
@click.argument("after", metavar="B", type=click.Path(path_type=Path))
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object.")
@click.pass_context
def diff(context: click.Context, before: Path, after: Path, as_object: bool) -> None:
    """What B does differently from A, and why it matters.

    Each is a spec (it is planned), a plan.json or the folder of a bundle.
    Exits 0 if they are the same and 5 if they differ.
    """
    old, new = operand(before), operand(after)
    found = compare(fields(old, new), fields(new, old))
    files = bundles.files(old.manifest, new.manifest) if old.manifest and new.manifest else None
    same = found.same and (files is None or files.same)
    if as_object:
        listed = {} if files is None else {"files": bundles.as_json(files)}
        print_json({**as_json(found), **listed, "same": same})
    else:
        show(text(found, *([] if files is None else ["files", f"  {bundles.text(files)}", ""])))
    context.exit(Exit.DONE if same else Exit.MISMATCH)


def show(lines: str) -> None:
    """Print a diff, its symbols in colour where the terminal wants it."""
    if coloured(sys.stdout):
        lines = _SYMBOL.sub(
            lambda found: "  " + click.style(found[1], fg=_COLOURS[found[1]], bold=True), lines
        )
    click.echo(lines)
