"""Which grammar the body of a request asks its answer to follow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from ..grammar import Kind, schema_text
from .protocol import Common, ResponseFormat
from .refusal import ApiError

ANY_OBJECT = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Asked:
    """A grammar, and the parameter that states it."""

    param: str
    kind: Kind
    text: str


def asked(body: Common) -> Asked | None:
    """The one grammar of ``body``. Raises ApiError where there are several."""
    found = [*_response_format(body.response_format), *_structured(body), *_guided(body)]
    if len(found) > 1:
        message = f"{found[0].param!r} and {found[1].param!r} exclude each other"
        raise ApiError(400, message, param=found[1].param, code="invalid_value")
    return found[0] if found else None


def _response_format(form: ResponseFormat | None) -> Iterator[Asked]:
    if form is None:
        return
    if (form.json_schema is not None) != (form.type == "json_schema"):
        message = "'response_format.json_schema' stands with type json_schema, and only with it"
        raise ApiError(400, message, param="response_format.json_schema", code="invalid_value")
    if form.type == "json_object":
        yield Asked("response_format", "json", ANY_OBJECT)
    elif form.json_schema is not None:
        yield Asked("response_format.json_schema.schema", "json", schema_text(form.json_schema.schema_))


def _structured(body: Common) -> Iterator[Asked]:
    given = body.structured_outputs
    if given is None:
        return
    own = "structured_outputs"
    yield from _each(own + ".", given.json_, given.regex, given.choice, given.grammar)
    if given.json_object:
        yield Asked(f"{own}.json_object", "json", ANY_OBJECT)


def _guided(body: Common) -> Iterator[Asked]:
    yield from _each("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)


def _each(
    prefix: str,
    schema: dict[str, object] | str | None,
    regex: str | None,
    choice: list[str] | None,
    grammar: str | None,
) -> Iterator[Asked]:
    if schema is not None:
        text = schema if isinstance(schema, str) else schema_text(schema)
        yield Asked(f"{prefix}json", "json", text)
    if regex is not None:
        yield Asked(f"{prefix}regex", "regex", regex)
    if choice is not None:
        yield Asked(f"{prefix}choice", "choice", json.dumps(choice))
    if grammar is not None:
        yield Asked(f"{prefix}grammar", "grammar", grammar)
