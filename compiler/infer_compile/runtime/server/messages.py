"""Messages of a conversation and the tools that it may call."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from .fields import Absent, Body, OnlyEmpty, Text
from .refusal import ApiError

MOST_TOOLS = 128


class TextPart(Body):
    type: Literal["text"]
    text: Text


class FunctionCall(Body):
    name: Text
    arguments: Text
    """JSON."""


class ToolCall(Body):
    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    """``developer`` is OpenAI's newer word for ``system`` and is given to the template as such."""
    content: Text | list[TextPart] | None = None
    """Several parts are joined by line breaks. Only a message that calls tools may have none."""
    name: Text | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Text | None = None
    # Clients send an assistant's message back as they received it.
    refusal: Absent = None
    annotations: OnlyEmpty = None
    audio: Absent = None
    function_call: Absent = None

    def for_template(self, place: str) -> dict[str, Any]:
        """As chat templates take it, arguments of calls as objects. Raises ApiError that names ``place``."""
        self._check(place)
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role}
        if isinstance(self.content, list):
            message["content"] = "\n".join(part.text for part in self.content)
        else:
            message["content"] = self.content if self.content is not None else ""
        if self.name is not None:
            message["name"] = self.name
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": _arguments(call.function.arguments, f"{place}.tool_calls[{index}]"),
                    },
                }
                for index, call in enumerate(self.tool_calls)
            ]
        return message

    def _check(self, place: str) -> None:
        if self.tool_calls and self.role != "assistant":
            raise _wrong(f"{place}.tool_calls", "only an assistant calls tools")
        if self.content is None and not self.tool_calls:
            raise _wrong(f"{place}.content", "a message without content needs tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise _wrong(f"{place}.tool_call_id", "messages of role tool name the call that they answer")


def _arguments(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _wrong(f"{place}.function.arguments", "they are not JSON") from error
    if not isinstance(value, dict):
        raise _wrong(f"{place}.function.arguments", "they are not a JSON object")
    return value


def _wrong(place: str, because: str) -> ApiError:
    return ApiError(400, f"{place!r}: {because}", param=place, code="invalid_value")


class Function(Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    """The JSON schema of its arguments; without one it takes none."""
    strict: bool | None = None
    """With tool_choice auto: whether calls are held to the schema. Those that are required always are."""

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return self.parameters or {"type": "object", "properties": {}, "additionalProperties": False}


class Tool(Body):
    type: Literal["function"]
    function: Function

    def for_template(self) -> dict[str, Any]:
        fields = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": self.type, "function": fields}


class NamedFunction(Body):
    name: Text


class NamedTool(Body):
    type: Literal["function"]
    function: NamedFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool
