"""Kinds of fields of bodies: texts, and parameters that are known and not supported."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


def _neutral(*values: object) -> AfterValidator:
    def check(value: object) -> None:
        if value is None or any(value == neutral and type(value) is type(neutral) for neutral in values):
            return
        allowed = f"only {' or '.join(map(repr, values))} is" if values else "leave it out"
        raise PydanticCustomError(
            "unsupported", "{allowed}", {"allowed": allowed + " accepted" * bool(values)}
        )

    return AfterValidator(check)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("not_text", "half of a surrogate pair is no text") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""JSON can write what has no UTF-8 form."""
Absent = Annotated[Any, _neutral()]
OnlyFalse = Annotated[Any, _neutral(False)]
OnlyTrue = Annotated[Any, _neutral(True)]
OnlyOne = Annotated[Any, _neutral(1)]
OnlyEmpty = Annotated[Any, _neutral([])]
OnlyText = Annotated[Any, _neutral(["text"])]
OnlyAuto = Annotated[Any, _neutral("none", "auto")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
