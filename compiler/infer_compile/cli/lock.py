"""``infer-compile lock``: write down what a spec stands for."""

from __future__ import annotations

from pathlib import Path

import click

from ..build import lock as locks
from ..build.resolve import plan_of, resolve
from ..probe.files import write_aside


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write it; default: chat.lock.yaml beside chat.yaml.",
)
def lock(spec: Path, output: Path | None) -> None:
    """Plan SPEC and write its lock: model, devices, facts and plan, in clear and by digest.

    Commit it with SPEC; `infer-compile check` then tells when one of them has changed. Exits 3 if no plan
    keeps every limit.
    """
    path = output or locks.lock_path(spec)
    if path.resolve() == spec.resolve():
        raise click.BadOptionUsage("output", f"{path} is the spec itself")
    resolved = resolve(spec)
    written = locks.lock(resolved, plan_of(resolved))
    text = written.to_yaml()
    if path.is_file() and path.read_bytes() == text.encode():
        click.echo(f"{path}: nothing has changed (plan {written.digest[:12]})")
        return
    write_aside(path, text)
    click.echo(f"{path}: written (plan {written.digest[:12]})")
    if resolved.source.folder is None and written.model.commit is None:
        click.echo("note: no commit of the model is locked; `revision:` in the spec pins one", err=True)
