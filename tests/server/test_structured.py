"""Answers that follow a schema, a regular expression or a grammar, whatever the model would rather say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jsonschema
import numpy as np
import openai
import pytest
import toy_model
from conftest import Running, serving
from fake_engine import FakeEngine, random_logits, tiny_program
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.grammar import GrammarRefusal, Grammars, Matcher, schema_text

CHAT = [{"role": "user", "content": "hi"}]
CITY = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Paris", "Rom", "Łódź"]},
        "people": {"type": "integer", "minimum": 1, "maximum": 9_999_999},
        "rivers": {"type": "array", "items": {"$ref": "#/$defs/river"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "people", "rivers"],
    "additionalProperties": False,
    "$defs": {"river": {"type": "string", "pattern": "^[A-Z][a-z]{1,5}$"}},
}


def closing(tokens: object, chain: int) -> np.ndarray:
    """Random, but fond of what ends a text of JSON."""
    row = random_logits(tokens, chain)
    row[[*b'"}]', toy_model.END]] += 4
    return row


@pytest.fixture(scope="module")
def server(model_dir: Path) -> Iterator[Running]:
    program = tiny_program(context=1024, sequences=8, batch_tokens=64)
    with serving(FakeEngine(program, closing), model_dir) as running:
        yield running


def chat(running: Running, **body: object) -> tuple[str, str]:
    """Text and finish reason."""
    response = running.http.post("/v1/chat/completions", json={"messages": CHAT} | body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice["message"]["content"], choice["finish_reason"]


@pytest.mark.parametrize("temperature", [0, 1, 2])
def test_any_answer_follows_its_schema(server: Running, temperature: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    texts = [chat(server, response_format=form, temperature=temperature, seed=seed)[0] for seed in range(3)]
    for text in texts:
        jsonschema.validate(json.loads(text), CITY)
    assert temperature == 0 or len(set(texts)) == 3


def test_a_json_object_is_one_and_a_cut_one_says_so(server: Running) -> None:
    for seed in range(3):
        text, finish = chat(server, response_format={"type": "json_object"}, seed=seed)
        assert finish == "stop"
        assert isinstance(json.loads(text), dict)
    text, finish = chat(server, response_format={"type": "json_object"}, max_tokens=2, seed=1)
    assert finish == "length"
    assert text.startswith("{")


@pytest.mark.parametrize(
    ("given", "form"),
    [
        ({"regex": r"[a-f]{3}-[0-9]{2}"}, r"[a-f]{3}-[0-9]{2}"),
        ({"choice": ["yes", 'no "really"', "naïve"]}, r'yes|no "really"|naïve'),
        ({"grammar": 'root ::= "a" ("b" | "c") root2\nroot2 ::= "d"'}, "a[bc]d"),
        ({"grammar": 'start: "a" | "b" start'}, "b*a"),
        ({"json": {"type": "boolean"}}, "true|false"),
        ({"json": '{"enum": [1, 22]}'}, "1|22"),
        ({"json_object": True}, r"(?s)\{.*\}"),
    ],
)
def test_structured_outputs_by_both_names(server: Running, given: dict[str, object], form: str) -> None:
    for seed in range(2):
        text, finish = chat(server, structured_outputs=given, seed=seed)
        assert finish == "stop"
        assert re.fullmatch(form, text)
        if "json_object" not in given:
            old = {f"guided_{name}": value for name, value in given.items()}
            assert chat(server, **old, seed=seed)[0] == text


def test_every_choice_and_every_stream_follows(server: Running) -> None:
    body = {"prompt": "x", "n": 3, "seed": 1, "structured_outputs": {"regex": "[a-z]{8}"}}
    whole = server.http.post("/v1/completions", json=body).json()["choices"]
    assert all(re.fullmatch("[a-z]{8}", choice["text"]) for choice in whole)
    assert len({choice["text"] for choice in whole}) == 3
    texts = ["", "", ""]
    for chunk in server.client.completions.create(
        model="tiny", prompt="x", n=3, seed=1, stream=True, extra_body={"guided_regex": "[a-z]{8}"}
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice["text"] for choice in whole]


class River(BaseModel):
    name: Literal["Oder", "Rhine"]
    length: int


class Rivers(BaseModel):
    main: River
    second: River


def test_the_client_parses_what_it_asked_for(server: Running) -> None:
    answer = server.client.chat.completions.parse(
        model="tiny", messages=CHAT, response_format=Rivers, temperature=0
    )
    assert isinstance(answer.choices[0].message.parsed, Rivers)


REFUSED = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nope"}}},
    "structured_outputs": {"regex": "(["},
    "guided_regex": "(?=a)",
    "guided_grammar": "root ::= (",
    "guided_json": "{",
    "guided_choice": [str(number) * 200 for number in range(1000)],
}


@pytest.mark.parametrize("param", REFUSED)
def test_what_is_no_grammar_is_refused_by_name(server: Running, param: str) -> None:
    response = server.http.post("/v1/chat/completions", json={"messages": CHAT, param: REFUSED[param]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"].startswith(param)
    assert error["code"] == "invalid_value"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_grammars_exclude_each_other(server: Running, body: dict[str, object], param: str) -> None:
    response = server.http.post("/v1/chat/completions", json={"messages": CHAT} | body)
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


def test_a_minimum_of_tokens_yields_to_the_end_of_a_grammar(server: Running) -> None:
    assert chat(server, guided_choice=["ab"], min_tokens=9) == ("ab", "stop")


@pytest.fixture(scope="module")
def grammars(model_dir: Path) -> Grammars:
    return Grammars(model_dir, 262, frozenset({toy_model.END}))


SCALAR = st.sampled_from(
    [{"type": "boolean"}, {"type": "null"}, {"enum": ["a", 1, None]}, {"type": "integer", "maximum": 99}]
)
SCHEMA = st.recursive(
    SCALAR,
    lambda inner: (
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "maxItems": st.integers(0, 3)})
        | st.dictionaries(st.sampled_from(["a", "b", 'c"']), inner, max_size=2).map(
            lambda properties: {
                "type": "object",
                "properties": properties,
                "required": sorted(properties),
                "additionalProperties": False,
            }
        )
    ),
    max_leaves=4,
)


@settings(max_examples=40, deadline=None)
@given(schema=SCHEMA, seed=st.integers(0, 2**32))
def test_any_walk_over_the_masks_ends_in_what_the_schema_allows(
    grammars: Grammars, schema: dict[str, object], seed: int
) -> None:
    random = np.random.default_rng(seed)
    matcher = grammars.compile("json", schema_text(schema)).matcher()
    said: list[int] = []
    while toy_model.END not in (allowed := bits(matcher.mask)):
        # Of the blanks between its parts few, or a walk takes long.
        said.append(int(random.choice([token for token in allowed if token > 32] or allowed)))
        matcher.push(said[-1])
    jsonschema.validate(json.loads(bytes(said)), schema)


def bits(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def test_a_matcher_keeps_to_the_end_and_tells_a_token_that_was_not_allowed(grammars: Grammars) -> None:
    matcher = grammars.compile("regex", "ab?").matcher()
    mask = matcher.mask
    assert bits(mask) == [97]
    matcher.push(97)
    assert bits(matcher.mask) == [98, toy_model.END]
    assert bits(mask) == [97], "the engine may still read the mask of the step before"
    other = grammars.compile("regex", "ab?").matcher()
    assert bits(other.mask) == [97]
    matcher.push(98)
    assert bits(matcher.mask) == [toy_model.END]
    with pytest.raises(InferCompileError, match="IC533"):
        other.push(98)


def test_a_model_without_an_end_of_text_follows_no_grammar(model_dir: Path) -> None:
    with pytest.raises(GrammarRefusal, match="no token that ends a text"):
        Grammars(model_dir, 262, frozenset()).compile("regex", "a")


def test_an_answer_that_leaves_its_grammar_fails_alone(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Matcher, "push", lambda matcher, token: (_ for _ in ()).throw(matcher._lost()))
        with pytest.raises(openai.BadRequestError) as caught:
            server.client.completions.create(model="tiny", prompt="x", extra_body={"guided_regex": "aaa"})
    assert caught.value.code == "IC533"
    assert chat(server, guided_choice=["ab"])[0] == "ab"
