"""``infer-compile generate``: one answer from a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from .execute import execute


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt")
@click.option("--max-tokens", help="Length of the answer (default: to the end of the context).")
@click.option("--temperature", help="0 takes the likeliest token (default: 0).")
@click.option("--seed", help="Of the drawing.")
@click.option("--threads", help="Threads of the engine (default: one per core).")
@click.option("--raw", is_flag=True, help="Continue PROMPT as it is, without the chat template.")
@click.option("--stream", is_flag=True, help="Print the text as it comes.")
def generate(bundle: Path, prompt: str, **options: str | bool | None) -> None:
    """Answer PROMPT with BUNDLE, without a server. It is the bundle's own program that answers."""
    execute(bundle, "generate", options, prompt)
