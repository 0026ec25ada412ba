"""Rendering the templates of the files that a person reads or a container tool runs."""

from __future__ import annotations

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..catalog.resources import folder


def render(template: str, **values: object) -> str:
    """The text of ``template``, a path below templates/; a value it needs and does not get is an error."""
    environment = Environment(
        loader=FileSystemLoader(folder("templates")),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return environment.get_template(template).render(values)
