"""A document held against a strict model: the instance, or every problem with its line."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..runtime.errors import Exit, InferCompileError, Problem
from .document import Document
from .unserved import nearest

M = TypeVar("M", bound=BaseModel)

_TYPES: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "target_form": "a name, a list of names, or {device, count, nodes}",
    "weights_form": "a name, or {format, group}",
    "speculation_form": "a name, or {method, tokens, width}",
    "price_form": "a price, or {target: price}",
}
_BOUNDS: Mapping[str, tuple[str, str]] = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def check(model: type[M], document: Document) -> M:
    """``document`` as ``model``; raises one InferCompileError (exit 2) with all problems, by line."""
    problems = list(document.problems)
    try:
        instance = model.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [problem for detail in details for problem in _problem(model, document, detail)]
    if problems:
        raise InferCompileError(sorted(problems, key=_line), Exit.USAGE)
    return instance


def _line(problem: Problem) -> int:
    line = problem.where.rpartition(":")[2]
    return int(line) if line.isdigit() else 0


def _problem(model: type[BaseModel], document: Document, error: ErrorDetails) -> Iterator[Problem]:
    """At most one problem; an error that only follows from another one yields none."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "default_factory_not_called":
        return
    parts, value = _locate(document.value, error)
    key = ".".join(parts)
    where = document.where(".".join([*parts, context["at"]]) if "at" in context else key)
    if kind.startswith("IC"):
        because, fix = context.get("because", ""), context.get("fix", "")
        yield Problem(kind, error["msg"], where, because, fix)
    elif kind == "extra_forbidden":
        yield _unknown_key(model, parts, where)
    elif kind == "missing":
        place = ".".join(parts[:-1]) or "the file"
        yield Problem("IC005", f'"{key}" is missing', where, fix=f"add {parts[-1]}: to {place}")
    elif kind in _TYPES:
        quote = kind == "string_type" and isinstance(value, int | float)
        fix = "put it in quotes if it is meant as text" if quote else ""
        if value is None:
            fix = "give it a value, or remove the key"
        yield Problem("IC006", f'"{key}" must be {_TYPES[kind]}, not {_describe(value)}', where, fix=fix)
    elif kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = context[bound]
        shown = int(limit) if float(limit).is_integer() else limit
        yield Problem("IC007", f'"{key}" must be {words} {shown}, not {_describe(value)}', where)
    elif kind == "literal_error":
        names = context["expected"].replace("'", "")
        close = nearest(value, names.replace(" or ", ", ").split(", ")) if isinstance(value, str) else None
        fix = f"{parts[-1]}: {close}" if close else ""
        yield Problem("IC008", f'"{key}" must be {names}, not {_describe(value)}', where, fix=fix)
    elif kind in ("string_too_short", "too_short"):
        yield Problem("IC007", f'"{key}" must not be empty', where)
    else:
        yield Problem("IC007", f'"{key}": {error["msg"][:1].lower()}{error["msg"][1:]}', where)


def _locate(value: Any, error: ErrorDetails) -> tuple[list[str], Any]:
    """The path of an error without the tags of unions, and the value that stands there."""
    parts: list[str] = []
    for index, part in enumerate(error["loc"]):
        last = index == len(error["loc"]) - 1
        if isinstance(value, dict) and part in value:
            value = value[str(part)]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif not (last and error["type"] == "missing"):
            continue
        parts.append(str(part))
    return parts, value


def _unknown_key(model: type[BaseModel], parts: list[str], where: str) -> Problem:
    key = ".".join(parts)
    names = _keys(model, parts[:-1])
    close = nearest(parts[-1], names)
    fix = f"did you mean {close}?" if close else ""
    return Problem("IC004", f'unknown key "{key}"', where, f"the keys here are {', '.join(names)}", fix)


def _keys(model: type[BaseModel], parts: list[str]) -> list[str]:
    """The keys that ``model`` knows under ``parts``."""
    models = [model]
    for part in parts:
        fields = [field for one in models for name, field in one.model_fields.items() if name == part]
        models = [found for field in fields for found in _models(field.annotation)]
    return [field.alias or name for one in models for name, field in one.model_fields.items()]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models inside ``annotation``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _models(argument)


def _describe(value: Any) -> str:
    """A value as the user wrote it, near enough to be found again."""
    if value is None:
        return "an empty value"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    return str(value)
