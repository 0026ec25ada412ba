"""What the server refuses, and that the refusal names what is wrong."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import toy_model
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.runtime.server.protocol import BODIES

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "a"}]
WHOLE = {CHAT: {"messages": MESSAGES, "max_tokens": 1}, TEXT: {"prompt": "a", "max_tokens": 1}}
SOUND = WHOLE | {"/tokenize": {"prompt": "a"}, "/detokenize": {"tokens": [97]}}


@pytest.fixture(scope="module")
def server(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program()), model_dir) as running:
        yield running


def post(running: Running, path: str, body: object) -> httpx.Response:
    return send(running, path, json.dumps(body))


def send(running: Running, path: str, content: str | bytes, kind: str = "application/json") -> httpx.Response:
    return running.http.post(path, content=content, headers={"content-type": kind})


def refusal(running: Running, path: str, **changes: object) -> dict[str, object]:
    """The error object for a sound body with ``changes``."""
    response = post(running, path, WHOLE[path] | changes)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


BOTH = {
    "truncate_prompt_tokens": 4,
    "prompt_logprobs": 1,
    "allowed_token_ids": [1],
    "bad_words": ["a"],
    "return_token_ids": True,
}
CHAT_ONLY = {
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "reasoning_effort": "low",
    "verbosity": "low",
    "modalities": ["text", "audio"],
    "audio": {"voice": "x"},
    "prediction": {"type": "content"},
    "store": True,
    "web_search_options": {},
    "add_generation_prompt": False,
    "continue_final_message": True,
    "chat_template": "x",
}
TEXT_ONLY = {"best_of": 2, "suffix": "x"}
UNSUPPORTED = [
    (path, name, value)
    for path, own in ((CHAT, CHAT_ONLY), (TEXT, TEXT_ONLY))
    for name, value in (BOTH | own).items()
]


@pytest.mark.parametrize(("path", "name", "value"), UNSUPPORTED)
def test_a_parameter_that_is_not_supported_is_refused_by_name(
    server: Running, path: str, name: str, value: object
) -> None:
    error = refusal(server, path, **{name: value})
    assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert name in error["message"]


NEUTRAL = {
    "n": 1,
    "response_format": {"type": "text"},
    "user": "me",
    "metadata": {"a": "b"},
    "logit_bias": {},
    "stop": None,
    "seed": None,
    "stream": False,
    "temperature": 1,
}


def test_what_means_nothing_is_accepted(server: Running) -> None:
    chat = {
        "tools": [],
        "tool_choice": "auto",
        "store": False,
        "logprobs": False,
        "parallel_tool_calls": True,
    }
    for path, own in ((CHAT, chat), (TEXT, {"best_of": 1, "echo": False, "logprobs": None, "suffix": None})):
        response = post(server, path, WHOLE[path] | NEUTRAL | own)
        assert response.status_code == 200, response.text
        nothing = dict.fromkeys(set(BODIES[path]) - set(WHOLE[path]))
        assert post(server, path, WHOLE[path] | nothing).status_code == 200


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_an_unknown_parameter_is_refused_by_name_with_the_nearest(server: Running, path: str) -> None:
    error = refusal(server, path, temprature=0.5)
    assert (error["param"], error["code"]) == ("temprature", "unknown_parameter")
    assert "did you mean 'temperature'?" in error["message"]
    assert "did you mean" not in refusal(server, path, xyzzy=1)["message"]
    assert refusal(server, path, stream=True, stream_options={"usage": 1})["param"] == "stream_options.usage"
    assert refusal(server, path, **{"\ud800": 1})["message"]


WRONG = {
    "temperature": [-0.1, 2.1, "hot", True],
    "top_p": [0, 1.1],
    "top_k": [-2, 1.5],
    "min_p": [-0.1, 1.1],
    "seed": ["x", 2**63],
    "max_tokens": [0, -1, 1.5, "many"],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [3],
    "repetition_penalty": [0],
    "stop": ["", ["a", ""], [str(i) for i in range(17)], 5, [5]],
    "stop_token_ids": [5, ["a"], [262], [-1]],
    "n": [0, 1.5, 65, 10**30],
    "min_tokens": [-1],
    "response_format": [{"type": "xml"}, {"type": "json_schema"}, {"type": "text", "json_schema": {}}],
    "structured_outputs": [{"json": 5}, {"choice": []}, {"yaml": "a"}, {"regex": 1}],
    "guided_choice": [[], ["a", 5]],
    "priority": ["high", 2**31],
    "cache_salt": ["", 5, "x" * 257],
    "timeout": [0, -1, "soon"],
    "logit_bias": [{"a": 1}, {"-1": 1}, {"262": 1}, [1]],
    "stream": ["yes"],
    "ignore_eos": [1],
    "model": [5],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_value_out_of_range_is_refused_by_name(
    server: Running, path: str, name: str, value: object
) -> None:
    assert re.split(r"[.\[]", str(refusal(server, path, **{name: value})["param"]))[0] == name


def calling(role: str, arguments: str) -> dict[str, object]:
    function = {"name": "f", "arguments": arguments}
    return {
        "role": role,
        "content": "a",
        "tool_calls": [{"id": "1", "type": "function", "function": function}],
    }


def test_places_inside_a_parameter_are_named(server: Running) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    places = {
        "messages[1].role": [*MESSAGES, {"role": "robot", "content": "a"}],
        "messages[0].content": [{"role": "user"}],
        "messages[0].content[1].type": [{"role": "user", "content": [{"type": "text", "text": "a"}, image]}],
        "messages[0].tool_calls[0].function": [{"role": "assistant", "tool_calls": [{"id": "1"}]}],
        "messages[0].tool_calls[0].function.arguments": [calling("assistant", "[1")],
        "messages[0].tool_calls": [calling("user", "{}")],
        "messages[0].tool_call_id": [{"role": "tool", "content": "a"}],
        "messages[1].tool_call_id": [*MESSAGES, {"role": "user", "content": "a", "tool_call_id": "1"}],
        "messages[0].feeling": [{"role": "user", "content": "a", "feeling": "good"}],
        "messages": [],
    }
    for place, messages in places.items():
        assert refusal(server, CHAT, messages=messages)["param"] == place
    assert refusal(server, TEXT, logit_bias={"5": 101})["param"] == "logit_bias.5"


def test_combinations_that_contradict_are_refused(server: Running) -> None:
    assert refusal(server, CHAT, top_logprobs=2)["param"] == "top_logprobs"
    assert refusal(server, CHAT, max_completion_tokens=2)["param"] == "max_tokens"
    assert refusal(server, CHAT, stream_options={"include_usage": True})["param"] == "stream_options"
    assert refusal(server, TEXT, echo=True, logprobs=1, stream=True)["param"] == "stream"


def test_bodies_that_are_no_object_are_refused(server: Running) -> None:
    for content in (b"", b"{", b"[]", b"5", b'"x"', b"null", b"\xff", b'{"prompt": "a"', b"{}"):
        response = send(server, TEXT, content)
        assert response.status_code == 400
        assert response.json()["error"]["message"]
    assert send(server, TEXT, json.dumps(WHOLE[TEXT]), "text/plain").status_code == 400
    assert refusal(server, TEXT, temperature=float("nan"))["param"] == "temperature"
    for changes in ({"prompt": "\ud800"}, {"stop": "\ud800"}, {"model": "\ud800"}):
        assert refusal(server, TEXT, **changes)["param"] in changes


@pytest.mark.parametrize(
    "prompt", ["", [], [""], [[]], [["a"]], [1, "a"], [-1], [262], [[1], [262]], 5, None]
)
def test_prompts_without_known_tokens_are_refused(server: Running, prompt: object) -> None:
    assert str(refusal(server, TEXT, prompt=prompt)["param"]).startswith("prompt")


def test_a_prompt_longer_than_the_context_is_refused(server: Running) -> None:
    assert refusal(server, TEXT, prompt="a" * 256)["code"] == "context_length_exceeded"
    error = refusal(server, TEXT, prompt="a" * 300)
    assert error["param"] == "prompt"
    assert "holds 256 tokens, but the prompt has 300" in error["message"]
    assert refusal(server, TEXT, prompt="a" * 250, max_tokens=7)["code"] == "context_length_exceeded"
    assert post(server, TEXT, {"prompt": "a" * 250, "max_tokens": 6, "ignore_eos": True}).status_code == 200
    assert post(server, TEXT, {"prompt": "a" * 250}).json()["usage"]["total_tokens"] <= 256
    long = [{"role": "user", "content": "a" * 300}]
    assert refusal(server, CHAT, messages=long)["code"] == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="holds 256 tokens") as caught:
        server.client.chat.completions.create(model="tiny", messages=long)
    assert caught.value.code == "context_length_exceeded"


def test_messages_that_the_template_refuses_are_refused_with_its_words(server: Running) -> None:
    error = refusal(server, CHAT, messages=[*MESSAGES, {"role": "system", "content": "b"}])
    assert error["param"] == "messages"
    assert "the system message comes first" in error["message"]


def test_another_model_is_not_found(server: Running) -> None:
    response = post(server, TEXT, WHOLE[TEXT] | {"model": "gpt-5"})
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"
    assert response.json()["error"]["code"] == "model_not_found"


def test_unknown_paths_and_methods_are_error_objects(server: Running) -> None:
    for response, status in (
        (post(server, "/v1/embeddings", {}), 404),
        (post(server, "/v1/responses", {}), 404),
        (server.http.get(TEXT), 405),
    ):
        assert response.status_code == status
        assert "/v1/" in response.json()["error"]["message"]


def test_a_model_without_a_template_does_not_chat(tmp_path: Path) -> None:
    with serving(FakeEngine(tiny_program()), toy_model.write(tmp_path, None)) as running:
        assert refusal(running, CHAT)["code"] == "no_chat_template"
        assert post(running, TEXT, WHOLE[TEXT]).status_code == 200


def test_a_full_queue_answers_429_with_when_to_come_back(model_dir: Path) -> None:
    engine = FakeEngine(tiny_program(sequences=2))

    async def crowd(url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient() as client:
            posts = [asyncio.create_task(client.post(url + TEXT, json=WHOLE[TEXT])) for _ in range(6)]
            await asyncio.wait(posts[:], timeout=0.5)
            engine.gate.set()
            return [await post for post in posts]

    with serving(engine, model_dir, queue=2) as running:
        engine.gate.clear()
        responses = asyncio.run(crowd(running.url))
        assert sorted(response.status_code for response in responses) == [200] * 4 + [429] * 2
        refused = [response for response in responses if response.status_code == 429]
        assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
        assert all(response.json()["error"]["type"] == "rate_limit_error" for response in refused)
        assert running.metric("infer_requests_refused_total", status="429") == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_failed_step_is_told_with_its_code(server: Running, stream: bool) -> None:
    server.engine.failure = InferCompileError(Problem("IC999", "the engine refused"))
    with pytest.raises(openai.APIError, match="the engine refused") as caught:
        list(server.client.completions.create(model="tiny", prompt="a", stream=stream))
    assert caught.value.code == "IC999"
    assert post(server, TEXT, WHOLE[TEXT]).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(path=st.sampled_from(sorted(BODIES)), data=st.data())
def test_no_body_brings_the_server_down(server: Running, path: str, data: st.DataObject) -> None:
    names = st.sampled_from([name for name in BODIES[path] if name not in ("stream", "max_tokens")])
    changes = data.draw(st.dictionaries(names, JSON, min_size=1, max_size=2))
    response = post(server, path, SOUND[path] | changes)
    assert response.status_code in (200, 400, 404, 408)
    assert response.status_code == 200 or response.json()["error"]["message"]
