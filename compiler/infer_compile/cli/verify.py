"""``infer-compile verify``: a bundle against its manifest."""

from __future__ import annotations

from pathlib import Path

import click

from ..bundle import verify as checks


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def verify(bundle: Path) -> None:
    """Hold every file of BUNDLE against its manifest; exit status 5 if any was changed, removed or added."""
    manifest = checks.verify(bundle)
    size = sum(file.bytes for file in manifest.files.values())
    click.echo(f"{bundle}: {len(manifest.files)} files, {size} bytes, as built ({manifest.digest[:12]})")
