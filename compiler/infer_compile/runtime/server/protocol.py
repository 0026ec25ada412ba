"""Bodies of requests: what is supported, what is known but refused, what is ignored.

A parameter that is known and not supported is accepted only at the value that means the same as leaving it
out; one that nobody knows is refused. ``user``, ``metadata``, ``safety_identifier``, ``prompt_cache_key`` and
``service_tier`` describe the caller, not the answer: they are accepted and have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

MOST_STOPS = 16
MOST_BIASES = 1024


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
OnlyZero = Annotated[Any, _neutral(0)]
OnlyOne = Annotated[Any, _neutral(1)]
OnlyEmpty = Annotated[Any, _neutral([])]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(_Body):
    include_usage: bool = False
    include_obfuscation: OnlyFalse = None
    continuous_usage_stats: OnlyFalse = None


class Common(_Body):
    """What both endpoints take."""

    model: Text | None = None
    """None means the one model that is served."""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    """0 and -1 keep all tokens."""
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MOST_BIASES
    )
    """Token id to what is added to its logit."""
    stop: Text | list[Text] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    user: Any = None
    metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    service_tier: Any = None

    n: OnlyOne = None
    min_tokens: OnlyZero = None
    response_format: Annotated[Any, _neutral({"type": "text"})] = None
    structured_outputs: Absent = None
    skip_special_tokens: OnlyTrue = None
    include_stop_str_in_output: OnlyFalse = None
    truncate_prompt_tokens: Absent = None
    prompt_logprobs: Absent = None
    allowed_token_ids: Absent = None
    bad_words: OnlyEmpty = None
    priority: OnlyZero = None
    cache_salt: Absent = None
    return_token_ids: OnlyFalse = None


class TextPart(_Body):
    type: Literal["text"]
    text: Text


class Message(_Body):
    role: Literal["system", "developer", "user", "assistant"]
    """``developer`` is OpenAI's newer word for ``system`` and is given to the template as such."""
    content: Text | list[TextPart]
    """Several parts are joined by line breaks."""
    name: Text | None = None
    # Clients send an assistant's message back as they received it.
    refusal: Absent = None
    annotations: OnlyEmpty = None
    audio: Absent = None
    function_call: Absent = None
    tool_calls: OnlyEmpty = None

    def for_template(self) -> dict[str, Any]:
        text = (
            self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)
        )
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": text}
        return message | ({"name": self.name} if self.name is not None else {})


class ChatBody(Common):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)

    store: OnlyFalse = None
    tools: OnlyEmpty = None
    tool_choice: Annotated[Any, _neutral("none", "auto")] = None
    parallel_tool_calls: Annotated[Any, _neutral(True, False)] = None
    functions: OnlyEmpty = None
    function_call: Annotated[Any, _neutral("none", "auto")] = None
    reasoning_effort: Absent = None
    verbosity: Absent = None
    modalities: Annotated[Any, _neutral(["text"])] = None
    audio: Absent = None
    prediction: Absent = None
    web_search_options: Absent = None
    add_generation_prompt: OnlyTrue = None
    continue_final_message: OnlyFalse = None
    chat_template: Absent = None
    chat_template_kwargs: Annotated[Any, _neutral({})] = None


class CompletionBody(Common):
    """POST /v1/completions"""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    """A text or its tokens, or several of either, which are answered as so many choices."""
    logprobs: int | None = Field(None, ge=0, le=5)

    best_of: OnlyOne = None
    echo: OnlyFalse = None
    suffix: Absent = None


BODIES: dict[str, list[str]] = {
    "/v1/chat/completions": list(ChatBody.model_fields),
    "/v1/completions": list(CompletionBody.model_fields),
}
"""Names of the parameters that each path takes."""
