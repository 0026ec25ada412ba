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
@click.option("--drain-seconds", help="For answers under way, after a signal to stop.")
@click.option("--api-key-file", help="One key in a line; also $INFER_COMPILE_API_KEYS.")
@click.option("--open-metrics", is_flag=True, help="/metrics needs no key.")
@click.option("--metrics-names", help="infer (default) or vllm: whose prefix.")
@click.option(
    "--shadow-fraction", help="Of the answers, checked against an exact cache (default: the spec's)."
)
@click.option("--log-format", help="text (default) or json.")
@click.option("--max-body-bytes", help="Of a request.")
@click.option("--max-header-bytes", help="Of a request.")
@click.option("--max-prompt-tokens", help="Default: as many as the context holds.")
@click.option("--max-choices", help="Prompts times n of a request.")
def serve(bundle: Path, **options: str | bool | None) -> None:
    """Run the OpenAI-compatible server of BUNDLE until it is told to stop. It is the bundle's own program."""
    execute(bundle, "serve", options)
