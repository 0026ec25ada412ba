"""Bodies of requests: what is supported, what is known but refused, what is ignored.

A parameter that is known and not supported is accepted only at the value that means the same as leaving it
out; one that nobody knows is refused. ``user``, ``metadata``, ``safety_identifier``, ``prompt_cache_key`` and
``service_tier`` describe the caller, not the answer: they are accepted and have no effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .fields import Absent, Body, OnlyAuto, OnlyEmpty, OnlyFalse, OnlyOne, OnlyText, OnlyTrue, Text
from .messages import MOST_TOOLS, Message, Tool, ToolChoice

MOST_STOPS = 16
MOST_BIASES = 1024
MOST_CHOICES = 1024
"""Texts that an answer may be one of."""


class StreamOptions(Body):
    include_usage: bool = False
    """A last chunk tells the usage."""
    continuous_usage_stats: bool = False
    """Every chunk tells the usage so far."""
    include_obfuscation: OnlyFalse = None


class JsonSchema(Body):
    name: Text
    description: Text | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    """Answers follow the schema either way."""


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Body):
    """vLLM's parameter: exactly one of these."""

    json_: dict[str, Any] | Text | None = Field(None, alias="json")
    """A JSON schema."""
    regex: Text | None = None
    """In the syntax of Rust's crate ``regex``."""
    choice: Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    grammar: Text | None = None
    """In the syntax of GBNF or Lark."""
    json_object: bool | None = None


class Common(Body):
    """What both endpoints take."""

    model: Text | None = None
    """None means the one model that is served."""
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
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
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    n: int | None = Field(None, ge=1)
    """Choices for each prompt; choice i is what the seed ``seed + i`` gives alone."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | Text | None = None
    """This and the next three are older names of structured_outputs."""
    guided_regex: Text | None = None
    guided_choice: Annotated[list[Text], Field(min_length=1, max_length=MOST_CHOICES)] | None = None
    guided_grammar: Text | None = None

    user: Any = None
    metadata: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    service_tier: Any = None

    truncate_prompt_tokens: Absent = None
    prompt_logprobs: Absent = None
    allowed_token_ids: Absent = None
    bad_words: OnlyEmpty = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    """Smaller comes first."""
    cache_salt: Annotated[Text, Field(min_length=1, max_length=256)] | None = None
    """Cached prefixes are shared only among requests of the same salt."""
    timeout: float | None = Field(None, gt=0, le=86_400)
    """Seconds after which an unfinished answer is given up."""
    return_token_ids: OnlyFalse = None


class ChatBody(Common):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    """Left out it is auto with tools and none without."""
    parallel_tool_calls: bool | None = None
    """Whether an answer may hold several calls; left out it may."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the model's chat template."""

    store: OnlyFalse = None
    functions: OnlyEmpty = None
    function_call: OnlyAuto = None
    reasoning_effort: Absent = None
    verbosity: Absent = None
    modalities: OnlyText = None
    audio: Absent = None
    prediction: Absent = None
    web_search_options: Absent = None
    add_generation_prompt: OnlyTrue = None
    continue_final_message: OnlyFalse = None
    chat_template: Absent = None


class CompletionBody(Common):
    """POST /v1/completions"""

    prompt: Text | list[int] | list[Text] | list[list[int]]
    """A text or its tokens, or several of either, which are answered as so many choices."""
    logprobs: int | None = Field(None, ge=0, le=5)
    echo: bool | None = None
    """Whether the prompt comes before the answer."""

    best_of: OnlyOne = None
    suffix: Absent = None


class TokenizeBody(Body):
    """POST /tokenize: a ``prompt``, or ``messages`` as they are rendered for a chat."""

    model: Text | None = None
    prompt: Text | None = None
    messages: list[Message] | None = Field(None, min_length=1)
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None
    """Left out: true for a prompt, false for messages."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False


class DetokenizeBody(Body):
    """POST /detokenize"""

    model: Text | None = None
    tokens: list[int]


BODIES: dict[str, list[str]] = {
    "/v1/chat/completions": list(ChatBody.model_fields),
    "/v1/completions": list(CompletionBody.model_fields),
    "/tokenize": list(TokenizeBody.model_fields),
    "/detokenize": list(DetokenizeBody.model_fields),
}
"""Names of the parameters that each path takes."""
