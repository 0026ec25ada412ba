"""The log: lines of fields, for people or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

Form = Literal["text", "json"]


class Line:
    """One event; as a text ``request id=5 path=/v1/completions``."""

    def __init__(self, event: str, fields: Mapping[str, Any]) -> None:
        self.event = event
        self.fields = {name: value for name, value in fields.items() if value is not None}

    def __str__(self) -> str:
        return " ".join([self.event, *(f"{name}={_shown(value)}" for name, value in self.fields.items())])


def _shown(value: Any) -> str:
    text = str(value)
    plain = text.isprintable() and not any(letter in text for letter in ' "=')
    return text if plain and text else json.dumps(text)


class JsonFormatter(logging.Formatter):
    """One JSON object in a line: time (UTC), level, event and its fields, or a message."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        head = {"time": at, "level": record.levelname.lower()}
        if isinstance(record.msg, Line):
            told: dict[str, Any] = head | {"event": record.msg.event} | record.msg.fields
        else:
            told = head | {"message": record.getMessage()}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told)


def configure(form: Form) -> None:
    """Everything of level info and above goes to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
