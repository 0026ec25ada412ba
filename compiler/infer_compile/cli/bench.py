"""``infer-compile bench``: the speed of a bundle, held against its plan's prediction."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from ..build.progress import Reporter
from ..evaluate.speed.bench import ROUNDS, Bench, Wanted, words
from ..evaluate.speed.bench import bench as measure
from ..evaluate.speed.comparison import strays
from ..evaluate.speed.render import as_json, notes, page
from ..runtime.errors import Exit, InferCompileError, Problem
from .console import coloured, print_json

WIDTH = 160
"""Columns, more than a table takes: on a narrow terminal its lines go on below, and nothing is cut."""


def _counts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Whole numbers of one or more, with commas between; none without the option."""
    parts = [] if value is None else value.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{value!r} is no list of whole numbers of one or more, as 1,4", ctx, param)
    return tuple(dict.fromkeys(map(int, parts)))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--batch", callback=_counts, metavar="N,...", help="Sequences in flight (default: 1, and as planned)."
)
@click.option("--input", callback=_counts, metavar="N,...", help="Tokens of a prompt (default: as planned).")
@click.option(
    "--output", callback=_counts, metavar="N,...", help="Tokens of an answer (default: as planned)."
)
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True, help="Of requests.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the engine (default: one per core).")
@click.option(
    "--within",
    type=click.FloatRange(min=0, min_open=True),
    metavar="PERCENT",
    help="Exit with 4 if a figure differs by more from its prediction.",
)
@click.option("--json", "as_object", is_flag=True, help="Print one JSON object.")
def bench(
    bundle: Path,
    batch: tuple[int, ...],
    input: tuple[int, ...],
    output: tuple[int, ...],
    rounds: int,
    threads: int | None,
    within: float | None,
    as_object: bool,
) -> None:
    """Measure how fast BUNDLE is on this machine, beside what its plan predicts: the loop and the scheduler
    that serve it, without HTTP. Numbers with commas between are tried in every combination.

    Exits 4 if the planned load misses the spec's slo.
    """
    reporter = Reporter(Console(stderr=True, highlight=False, soft_wrap=True))
    found = measure(bundle, Wanted(batch, input, output, rounds, threads), reporter)
    if as_object:
        print_json(as_json(found, within))
    else:
        _page(found, within)
    if missed := [*_missed(found, bundle), *_strayed(found, bundle, within)]:
        raise InferCompileError(missed, Exit.GATE)


def _page(found: Bench, within: float | None) -> None:
    colour = coloured(sys.stdout)
    console = Console(
        width=WIDTH,
        highlight=False,
        color_system="auto" if colour else None,
        force_terminal=colour,
    )
    with console.capture() as capture:
        console.print(page(found, within))
    for line in capture.get().splitlines():
        click.echo(line.rstrip())
    for note in notes(found):
        click.echo(f"note: {note}")


def _missed(found: Bench, bundle: Path) -> list[Problem]:
    return [
        Problem(
            "IC372",
            f"{goal.name} is {goal.measured:.4g}, and the spec wants {goal.wanted:g}",
            str(bundle),
            "measured under the planned load",
            "a faster machine, a smaller load or a looser slo; on a busy machine, measure again at rest",
        )
        for goal in found.missed
    ]


def _strayed(found: Bench, bundle: Path, within: float | None) -> list[Problem]:
    return [
        Problem(
            "IC373",
            f"{figure.name} is {figure.measured:.4g}, {figure.off_percent:.0f} % off its prediction",
            str(bundle),
            f"{words(load)}: {figure.predicted:.4g} was predicted, and {within:g} % are allowed",
            "docs/bench.md says what to look at",
        )
        for load, figure in (strays(found.points, within) if within is not None else ())
    ]
