"""``infer-compile check``: specs against their locks."""

from __future__ import annotations

from pathlib import Path

import click

from ..build.held import Held, hold
from ..build.lock import ENDING
from ..planner.diff.text import text
from ..runtime.errors import Exit, InferCompileError, Problem
from .diff import show


@click.command()
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--lock",
    "path",
    type=click.Path(path_type=Path),
    help="The lock of the one SPEC; default: chat.lock.yaml beside chat.yaml.",
)
def check(specs: tuple[Path, ...], path: Path | None) -> None:
    """Hold every SPEC against its lock: is it valid, and does it still give the locked plan?

    Exits 5 if a spec, its model, a device, the catalog or the plan has changed since, and says how and why it
    matters; 2 if a spec is wrong, 3 if it has no feasible plan any more. Of several specs the lowest counts.
    Locks among SPEC... are passed over, so that specs/*.yaml will do.
    """
    specs = tuple(spec for spec in specs if not spec.name.endswith(ENDING))
    if not specs:
        raise click.UsageError(f"name a spec; *{ENDING} are locks")
    if path is not None and len(specs) > 1:
        raise click.BadOptionUsage("path", "--lock goes with one SPEC")
    problems: list[Problem] = []
    exits: list[Exit] = []
    for spec in specs:
        try:
            held = hold(spec, path)
        except InferCompileError as error:
            problems += error.problems
            exits.append(error.exit)
            continue
        if held.problems:
            problems += held.problems
            exits.append(Exit.MISMATCH)
            if not held.diff.same:
                show(f"{held.path} against {spec} now\n\n{text(held.diff)}")
        else:
            click.echo(_agrees(spec, held))
    if problems:
        raise InferCompileError(problems, min(exits))


def _agrees(spec: Path, held: Held) -> str:
    by = held.locked.tool
    other = f"; locked by version {by}, this is {held.found.tool}" if by != held.found.tool else ""
    return f"{spec}: as locked (plan {held.locked.digest[:12]}{other})"
