"""``infer-compile plan``: decide and explain."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from ..build.resolve import plan_of, resolve
from ..planner.explain.markdown import markdown
from ..planner.explain.render import table
from ..planner.plan import Plan
from ..probe.files import write_aside
from .console import coloured

WIDTH = 120
"""Columns where the output is no terminal."""


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(("table", "json", "markdown")),
    default="table",
    show_default=True,
    help="What to print.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write the plan (JSON) to this file too."
)
def plan(spec: Path, form: str, output: Path | None) -> None:
    """Choose engine, formats and sizes for SPEC by arithmetic, and say why. Nothing is downloaded or built.

    Exits 3 if no plan keeps every limit, with the smallest changes after which one does.
    """
    decided = plan_of(resolve(spec))
    if output is not None:
        write_aside(output, decided.to_json())
    if form == "json":
        click.echo(decided.to_json(), nl=False)
    elif form == "markdown":
        click.echo(markdown(decided), nl=False)
    else:
        click.echo(_page(decided))


def _page(decided: Plan) -> str:
    """As wide as the terminal, in colour only where colour is wanted."""
    terminal, colour = sys.stdout.isatty(), coloured(sys.stdout)
    console = Console(
        width=None if terminal else WIDTH,
        highlight=False,
        color_system="auto" if colour else None,
        force_terminal=colour,
    )
    with console.capture() as capture:
        console.print(table(decided))
    # rich fills tables with blanks to the right edge.
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
