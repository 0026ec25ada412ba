"""Chat templates: a conversation becomes the text that the model was trained to continue."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .errors import InferCompileError, Problem
from .tokenizer import Tokenizer


class TemplateRefusal(ValueError):
    """The template does not take this conversation; the message is the template's."""


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; here it is transparent."""

    tags = {"generation"}  # noqa: RUF012 -- declared so by jinja2

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return Scope(body, lineno=line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without jinja2's escaping of HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    """Templates come from model hubs, so they run sandboxed, with what transformers offers them."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _source(folder: Path, config: dict[str, Any]) -> tuple[Path, str] | None:
    """chat_template.jinja, else ``chat_template`` of tokenizer_config.json: a text, or named ones."""
    path = folder / "chat_template.jinja"
    try:
        return path, path.read_text(encoding="utf-8")
    except FileNotFoundError:
        path = folder / "tokenizer_config.json"
    except (OSError, ValueError) as error:
        raise _broken(path, str(error)) from error
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return (path, template) if isinstance(template, str) else None


def _broken(path: Path, because: str) -> InferCompileError:
    return InferCompileError(
        Problem(
            "IC504", "the chat template cannot be used", str(path), because, "mend the model's chat template"
        )
    )


class ChatTemplate:
    """The chat template of the model in ``folder``; raises IC504 if it has none or jinja2 rejects it."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        found = _source(folder, tokenizer.config)
        if found is None:
            raise _broken(folder, "neither chat_template.jinja nor tokenizer_config.json holds one")
        path, source = found
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise _broken(path, str(error)) from error
        self._special = tokenizer.special

    @staticmethod
    def exists(folder: Path, tokenizer: Tokenizer) -> bool:
        """Whether the model has a template; a base model has none."""
        return _source(folder, tokenizer.config) is not None

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]] | None = None,
        *,
        answer: bool = True,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The prompt, with ``answer`` up to where the assistant answers. ``variables`` are further ones of
        the template's own. Raises TemplateRefusal."""
        ours = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": answer}
        if taken := sorted(variables.keys() & (ours.keys() | self._special.keys())):
            raise TemplateRefusal(f"{taken[0]!r} is no variable of its own")
        try:
            return self._template.render(**variables, **ours, **self._special)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise TemplateRefusal(str(error)) from error
