"""``infer-compile schema``: the JSON Schema of the spec."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..spec.schema import json_schema


@click.command()
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file instead."
)
def schema(output: Path | None) -> None:
    """JSON Schema of the spec, for editors.

    A spec whose first line is `# yaml-language-server: $schema=schema.json` is checked while it is typed.
    """
    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        click.echo(text, nl=False)
    else:
        output.write_text(text, encoding="utf-8")
