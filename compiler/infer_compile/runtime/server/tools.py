"""What a request's tools mean for its answer: the form of the calls and the grammar that they follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..grammar import BLANKS, schema_text
from .calls import HERMES, Calls, Form
from .messages import NamedTool, Tool, ToolChoice
from .refusal import ApiError

MOST_CALLS = 16
"""Calls of one answer that has to hold one."""
ANY_OBJECT: dict[str, Any] = {"type": "object"}
TEXT = r"/(.|\n)*/"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How the calls of an answer are found, and the grammar (Lark) that it follows, None where it is free."""

    form: Form
    known: frozenset[str]
    most: int | None
    grammar: str | None

    def calls(self) -> Calls:
        return Calls(self.form, self.known, self.most)


def tool_use(
    form: Form,
    tools: Sequence[Tool],
    choice: ToolChoice | None,
    parallel: bool,
    quoted: Callable[[str], str],
) -> ToolUse:
    """``choice`` is not none. ``quoted`` writes a tag for a grammar, as a text or as a special token.

    Raises ApiError for a choice of a function that is not there.
    """
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "'tools' names a function twice", param="tools", code="invalid_value")
    forced = choice not in (None, "auto")
    if isinstance(choice, NamedTool):
        if choice.function.name not in names:
            message = f"'tool_choice' names {choice.function.name!r}, which is not among the tools"
            raise ApiError(400, message, param="tool_choice", code="invalid_value")
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    strict = any(tool.function.strict for tool in tools)
    most = 1 if isinstance(choice, NamedTool) or not parallel else None
    grammar = None
    if forced or strict:
        schema = _schema(form, tools, every=forced)
        grammar = (_forced if forced else _free)(form, schema, most or MOST_CALLS, quoted)
    return ToolUse(form, frozenset(names), most, grammar)


def _schema(form: Form, tools: Sequence[Tool], every: bool) -> dict[str, Any]:
    """Of one call; ``every`` holds all functions' arguments to their schemas, else those of strict ones."""
    calls = []
    for index, tool in enumerate(tools):
        held = every or tool.function.strict
        arguments = tool.function.schema_of_arguments if held else ANY_OBJECT
        place = f"#/anyOf/{index}/properties/{form.arguments}"
        properties = {"name": {"const": tool.function.name}, form.arguments: _moved(arguments, place)}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        )
    return {"x-guidance": {"whitespace_pattern": BLANKS}, "anyOf": calls}


def _moved(schema: Any, place: str) -> Any:
    """``schema`` with its references to itself as it stands at ``place`` of another."""
    if isinstance(schema, list):
        return [_moved(part, place) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + part[1:]
        if key == "$ref" and isinstance(part, str) and part.startswith("#")
        else _moved(part, place)
        for key, part in schema.items()
    }


def _forced(form: Form, schema: dict[str, Any], most: int, quoted: Callable[[str], str]) -> str:
    divider = '"\\n"' if form is HERMES else '"; "'
    more = f" ({divider} call){{0,{most - 1}}}" if most > 1 else ""
    return f"start: call{more}\n{_call(form, quoted)}\nbody: %json {schema_text(schema)}\n"


def _free(form: Form, schema: dict[str, Any], most: int, quoted: Callable[[str], str]) -> str:
    """Text, but what begins like a call is one."""
    body = f"body: %json {schema_text(schema)}\n"
    if form is not HERMES:
        return f'start: text | body ("; " body){{0,{most - 1}}}\ntext: /([^{{](.|\\n)*)?/\n{body}'
    opening = quoted(form.opening)
    rest = f'"\\n" body "\\n" {quoted(form.closing)}'
    if opening.startswith('"'):
        head = f"head[lazy]: TEXT {opening}"
        return f"start: (head {rest}){{0,{most}}} text\ntext: TEXT\nTEXT: {TEXT}\n{head}\n{body}"
    return f"start: (text {opening} {rest}){{0,{most}}} text\ntext: {TEXT}\n{body}"


def _call(form: Form, quoted: Callable[[str], str]) -> str:
    if form is not HERMES:
        return "call: body"
    return f'call: {quoted(form.opening)} "\\n" body "\\n" {quoted(form.closing)}'
