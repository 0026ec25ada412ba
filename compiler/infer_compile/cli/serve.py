"""``infer-compile serve``: the OpenAI-compatible server of a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from .execute import execute


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--host", help="Address to listen on (default: 127.0.0.1).")
@click.option("--port", help="0 takes a free one (default: the spec's).")
@click.option("--threads", help="Threads of the engine (default: one per core).")
@click.option("--queue", help="Requests that may wait.")
def serve(bundle: Path, **options: str | None) -> None:
    """Run the OpenAI-compatible server of BUNDLE until it is told to stop. It is the bundle's own program."""
    execute(bundle, "serve", options)
