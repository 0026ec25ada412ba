"""Tools: calls found in the text of two forms, forced by a grammar, and told as OpenAI's clients expect."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import toy_model
from conftest import Running, serving
from fake_engine import FakeEngine, random_logits, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

from infer_compile.runtime.server.calls import HERMES, LLAMA, Argued, Called, Calls, Form, form_of

# In the manner of Hermes' and Qwen2.5's templates, and of Llama 3.1's.
HERMES_TEMPLATE = (
    "{% if tools %}<|user|>Tools:{% for tool in tools %} {{ tool.function.name }}{% endfor %}"
    '\nAnswer <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|end|>{% endif %}'
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}<|user|><tool_response>{{ message.content }}</tool_response><|end|>"
    "{% else %}<|{{ 'assistant' if message.role == 'assistant' else 'user' }}|>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LLAMA_TEMPLATE = (
    "{% if tools %}<|user|>Respond in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.'
    "{% for tool in tools %} {{ tool.function.name }}{% endfor %}<|end|>{% endif %}"
    "{% for message in messages %}<|user|>{{ message.content }}<|end|>{% endfor %}<|assistant|>"
)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rom"]}, "days": {"$ref": "#/$defs/days"}},
            "required": ["city", "days"],
            "additionalProperties": False,
            "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
ASK = [{"role": "user", "content": "hi"}]
CALL = '{"name": "weather", "arguments": {"city": "Rom", "days": 2}}'

Logits = Callable[[Sequence[int], int], np.ndarray]


def says(text: str) -> Logits:
    """Logits of a model that answers ``text``, and ends."""
    answer = [*text.encode(), toy_model.END]

    def logits(tokens: Sequence[int], chain: int) -> np.ndarray:
        row = random_logits(tokens, chain)
        said = len(tokens) - 1 - (len(tokens) - 1 - list(tokens)[::-1].index(259))
        row[answer[min(said, len(answer) - 1)]] += 50
        return row

    return logits


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    folder = tmp_path_factory.mktemp("tools")
    return {
        HERMES: toy_model.write(folder / "hermes", HERMES_TEMPLATE),
        LLAMA: toy_model.write(folder / "llama", LLAMA_TEMPLATE),
    }


@pytest.fixture(scope="module")
def servers(models: dict[Form, Path]) -> Iterator[dict[Form, Running]]:
    """One engine whose ``logits`` each test sets, behind both templates."""
    program = tiny_program(context=1024, batch_tokens=256, page_tokens=16)
    with (
        serving(FakeEngine(program), models[HERMES]) as hermes,
        serving(FakeEngine(program), models[LLAMA]) as llama,
    ):
        yield {HERMES: hermes, LLAMA: llama}


def ask(running: Running, logits: Logits, **body: object) -> ChatCompletion:
    running.engine.logits = logits
    settings = {"model": "tiny", "messages": ASK, "tools": [WEATHER, NOW], "max_tokens": 400}
    return running.client.chat.completions.create(**(settings | body))


def test_the_form_is_the_templates() -> None:
    assert form_of(HERMES_TEMPLATE) is HERMES
    assert form_of(LLAMA_TEMPLATE) is LLAMA
    assert form_of(toy_model.TEMPLATE) is None
    assert form_of("{% if tools %}[AVAILABLE_TOOLS]{{ tools }}{% endif %}") is None


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (HERMES, f"<tool_call>\n{CALL}\n</tool_call>"),
        (LLAMA, CALL.replace("arguments", "parameters")),
    ],
)
def test_a_call_is_found_whole_and_in_a_stream(servers: dict[Form, Running], form: Form, said: str) -> None:
    (choice,) = ask(servers[form], says(said)).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert call.id.startswith("call_")
    assert json.loads(call.function.arguments) == {"city": "Rom", "days": 2}
    chunks = list(ask(servers[form], says(said), stream=True))
    deltas = [entry for chunk in chunks for entry in chunk.choices[0].delta.tool_calls or []]
    assert (deltas[0].index, deltas[0].type, deltas[0].function.name) == (0, "function", "weather")
    assert deltas[0].id.startswith("call_")
    assert all(delta.id is None and delta.function.name is None for delta in deltas[1:])
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert len(deltas) > 5, "arguments are told as they come"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_text_beside_calls_and_several_calls(servers: dict[Form, Running]) -> None:
    second = '{"name": "now", "arguments": {}}'
    said = f"Let me see.\n<tool_call>{CALL}</tool_call>\n<tool_call>\n{second}\n</tool_call>"
    message = ask(servers[HERMES], says(said)).choices[0].message
    assert message.content == "Let me see.\n"
    assert [call.function.name for call in message.tool_calls] == ["weather", "now"]
    assert len({call.id for call in message.tool_calls}) == 2
    one = ask(servers[HERMES], says(said), parallel_tool_calls=False).choices[0].message
    assert [call.function.name for call in one.tool_calls] == ["weather"]
    both = ask(servers[LLAMA], says(f"{CALL}; {second}".replace("arguments", "parameters")))
    assert [call.function.name for call in both.choices[0].message.tool_calls] == ["weather", "now"]


def test_an_answer_that_calls_nothing_is_text(servers: dict[Form, Running]) -> None:
    for form, said in ((HERMES, "No < tools."), (LLAMA, '{"name": "Bob", "age": 3}'), (LLAMA, "Hello.")):
        (choice,) = ask(servers[form], says(said)).choices
        assert (choice.message.content, choice.finish_reason) == (said, "stop")
        assert choice.message.tool_calls is None
    none = ask(servers[HERMES], says(f"<tool_call>{CALL}</tool_call>"), tool_choice="none")
    assert none.choices[0].message.content == f"<tool_call>{CALL}</tool_call>"
    assert none.usage.prompt_tokens < 10, "the prompt does not hold the tools"


@pytest.mark.parametrize("form", [HERMES, LLAMA])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_required_call_is_made_by_any_model(servers: dict[Form, Running], form: Form, seed: int) -> None:
    def eager(tokens: Sequence[int], chain: int) -> np.ndarray:
        row = random_logits(tokens, chain)
        row[[*b'"},', toy_model.END]] += 9
        row[[*b" \n\t\r"]] -= 9
        return row

    (choice,) = ask(servers[form], eager, tool_choice="required", seed=seed).choices
    assert choice.finish_reason == "tool_calls"
    schemas = {"weather": WEATHER["function"]["parameters"], "now": {"type": "object", "maxProperties": 0}}
    for call in choice.message.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
    named = {"type": "function", "function": {"name": "weather"}}
    (call,) = ask(servers[form], eager, tool_choice=named, seed=seed).choices[0].message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), schemas["weather"])


@pytest.mark.parametrize("form", [HERMES, LLAMA])
def test_strict_functions_are_held_to_their_schemas_once_a_call_begins(
    servers: dict[Form, Running], form: Form
) -> None:
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    wrong = '{"name": "weather", "' + form.arguments + '": {"city": "Paris", "days": 99}}'
    said = f"{form.opening}\n{wrong}\n{form.closing}" if form.opening else wrong
    (choice,) = ask(servers[form], says(said), tools=[strict], temperature=0).choices
    (call,) = choice.message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), WEATHER["function"]["parameters"])
    assert ask(servers[form], says("Hello."), tools=[strict]).choices[0].message.content == "Hello."


def test_a_conversation_with_calls_reaches_the_template(servers: dict[Form, Running]) -> None:
    running = servers[HERMES]
    message = ask(running, says(f"<tool_call>{CALL}</tool_call>")).choices[0].message
    answer = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    messages = [*ASK, message.model_dump(), answer]
    tokens = running.http.post("/tokenize", json={"messages": messages, "tools": [NOW]}).json()["tokens"]
    text = running.http.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert f"<|assistant|><tool_call>\n{CALL}\n</tool_call><|end|>" in text
    assert "<tool_response>sunny</tool_response><|end|><|assistant|>" in text
    assert "Tools: now" in text
    assert ask(running, says("Sunny."), messages=messages).choices[0].message.content == "Sunny."


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web"}]}, "tools[0].type"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"chat_template_kwargs": {"messages": []}}, "messages"),
    ],
)
def test_what_contradicts_is_refused_by_name(
    servers: dict[Form, Running], body: dict[str, object], param: str
) -> None:
    whole = {"messages": ASK, "tools": [WEATHER]} | body
    response = servers[HERMES].http.post("/v1/chat/completions", json=whole)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_schema_that_cannot_be_followed_is_refused(servers: dict[Form, Running]) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "nope"}}}
    body = {"messages": ASK, "tools": [tool], "tool_choice": "required"}
    response = servers[HERMES].http.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tools")


def test_a_model_whose_template_knows_no_tools_refuses_them(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program()), model_dir) as running:
        response = running.http.post("/v1/chat/completions", json={"messages": ASK, "tools": [NOW]})
        assert response.status_code == 400
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")


TEXTS = [
    f"Hm.\n<tool_call>\n{CALL}\n</tool_call>\n<tool_call>{CALL}</tool_call> bye",
    '<tool_call>{"arguments": {"a": "}\\"{"}, "name": "now"}</tool_call>',
    "<tool_call>nothing</tool_call>",
    '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
    '{"name": "now", "parameters": {"a": [{}, "}"]}}; {"name": "now", "parameters": {}}',
    ' <|python_tag|>{"name": "now", "parameters": {}}',
    '{"name": "now", "parameters": {}, "more": {"a": {}}}',
    '{"name": "now"} and so on',
    "a < b <tool_ca",
    '<tool_call>{"name": "now", "arguments": {"a": 1',
    "{",
    "",
]


@settings(max_examples=60, deadline=None)
@given(text=st.sampled_from(TEXTS), form=st.sampled_from([HERMES, LLAMA]), cuts=st.lists(st.integers(1, 9)))
def test_how_a_text_is_cut_changes_nothing(text: str, form: Form, cuts: list[int]) -> None:
    assert found(text, form, cuts) == found(text, form, [])


def found(text: str, form: Form, cuts: list[int]) -> tuple[str, list[tuple[str, str]]]:
    """Content and calls of a text that comes in pieces of these sizes."""
    calls, content, called = Calls(form, frozenset({"weather", "now"})), "", list[tuple[str, str]]()
    pieces = []
    for size in cuts:
        pieces += calls.push(text[:size])
        text = text[size:]
    for piece in [*pieces, *calls.push(text), *calls.flush()]:
        if isinstance(piece, Called):
            assert piece.index == len(called)
            called.append((piece.name, ""))
        elif isinstance(piece, Argued):
            called[piece.index] = (called[piece.index][0], called[piece.index][1] + piece.text)
        else:
            content += piece
    return content, called


def test_what_cannot_be_a_call_is_not_held_back() -> None:
    calls = Calls(LLAMA, frozenset({"now"}))
    assert calls.push('{"na') == []
    assert calls.push('me of it": ') == ['{"name of it": ']
    assert calls.push('"x') == ['"x']


def test_what_is_found() -> None:
    arguments = '{"city": "Rom", "days": 2}'
    assert found(TEXTS[0], HERMES, []) == ("Hm.\n bye", [("weather", arguments)] * 2)
    assert found(TEXTS[1], HERMES, []) == ("", [("now", '{"a": "}\\"{"}')])
    for text in (TEXTS[2], TEXTS[3], TEXTS[8], ""):
        assert found(text, HERMES, []) == (text, [])
    assert found(TEXTS[4], LLAMA, []) == ("", [("now", '{"a": [{}, "}"]}'), ("now", "{}")])
    assert found(TEXTS[5], LLAMA, []) == ("", [("now", "{}")])
    assert found(TEXTS[6], LLAMA, []) == ("", [("now", "{}")])
    for text in (TEXTS[7], "{", "hello"):
        assert found(text, LLAMA, []) == (text, [])
    assert found(TEXTS[9], HERMES, []) == ("", [("now", '{"a": 1')])
