"""Parameters of one request: several choices, lengths, what the text holds, what the usage tells."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, saying, tiny_program

HELLO = [{"role": "user", "content": "hello"}]


def abc(tokens: list[int]) -> int:
    """The letters a to z, over and over."""
    return 97 + (tokens[-1] - 96) % 26 if 97 <= tokens[-1] <= 122 else 97


def ending(tokens: list[int]) -> int:
    """Ends at once, whatever was asked."""
    return 257


@pytest.fixture(scope="module")
def babbler(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program(sequences=8, batch_tokens=32)), model_dir) as running:
        yield running


@pytest.fixture(scope="module")
def speller(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program(), saying(abc)), model_dir) as running:
        yield running


def test_several_choices_are_what_their_seeds_give_alone(babbler: Running) -> None:
    create = babbler.client.completions.create
    settings = {"model": "tiny", "prompt": "abc", "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    answer = create(**settings, n=3, seed=7)
    texts = [choice.text for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert texts == [create(**settings, seed=7 + index).choices[0].text for index in range(3)]
    assert len(set(texts)) == 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 24)
    streamed = ["", "", ""]
    for chunk in create(**settings, n=3, seed=7, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == texts


def test_choices_of_a_chat_and_of_several_prompts(babbler: Running) -> None:
    chat = babbler.client.chat.completions.create(
        model="tiny",
        messages=HELLO,
        n=2,
        max_tokens=5,
        stream=True,
        stream_options={"include_usage": True},
        logit_bias={"257": -100},
    )
    *chunks, last = chat
    assert {chunk.choices[0].index for chunk in chunks if chunk.choices[0].delta.role == "assistant"} == {
        0,
        1,
    }
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (9, 10)
    answer = babbler.client.completions.create(model="tiny", prompt=["a", "bcd"], n=2, seed=1, max_tokens=4)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 4
    alone = babbler.client.completions.create(model="tiny", prompt="bcd", n=2, seed=1, max_tokens=4)
    assert [choice.text for choice in answer.choices[2:]] == [choice.text for choice in alone.choices]


def test_more_choices_than_can_ever_run_are_refused(babbler: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="one request may have 24") as caught:
        babbler.client.completions.create(model="tiny", prompt="a", n=25, max_tokens=1)
    assert caught.value.param == "n"


def test_a_minimum_of_tokens_holds_off_the_end(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program(), saying(ending)), model_dir) as running:
        create = running.client.completions.create
        assert create(model="tiny", prompt="a").usage.completion_tokens == 1
        for least in (1, 5):
            answer = create(model="tiny", prompt="a", extra_body={"min_tokens": least})
            assert answer.usage.completion_tokens == least + 1
            assert answer.choices[0].finish_reason == "stop"


def test_what_the_text_holds(speller: Running) -> None:
    create = speller.client.completions.create
    answer = create(model="tiny", prompt="a", stop="de", extra_body={"include_stop_str_in_output": True})
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("bcde", "stop")
    assert create(model="tiny", prompt="ab", echo=True, max_tokens=2).choices[0].text == "abcd"
    echoed = create(model="tiny", prompt=["ab", "x"], echo=True, max_tokens=2, stream=True)
    texts = ["", ""]
    for chunk in echoed:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["abcd", "xyz"]


def test_log_probabilities_of_a_prompt_are_those_that_a_model_gives_it(babbler: Running) -> None:
    create = babbler.client.completions.create
    whole = create(model="tiny", prompt="hello", echo=True, logprobs=3, max_tokens=2, temperature=0, stop="l")
    told = whole.choices[0].logprobs
    assert whole.choices[0].text.startswith("hello")
    assert told.tokens[:5] == list("hello")
    assert told.text_offset[:5] == [0, 1, 2, 3, 4]
    assert told.token_logprobs[0] is told.top_logprobs[0] is None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (5, 2)
    for index in range(1, 5):
        # A bias makes the next token certain; what is told of it is from before the bias.
        bias = {str(ord("hello"[index])): 100}
        settings = {"logit_bias": bias, "max_tokens": 1, "temperature": 0, "logprobs": 3}
        one = create(model="tiny", prompt="hello"[:index], **settings).choices[0].logprobs
        assert told.token_logprobs[index] == pytest.approx(one.token_logprobs[0])
        assert told.top_logprobs[index] == pytest.approx(one.top_logprobs[0])
    plain = create(model="tiny", prompt="hello", max_tokens=2, temperature=0, stop="l")
    assert whole.choices[0].text == "hello" + plain.choices[0].text
    ruled = create(
        model="tiny", prompt="yes? ", echo=True, logprobs=1, extra_body={"guided_choice": ["yes", "no"]}
    )
    assert ruled.choices[0].text in ("yes? yes", "yes? no")
    several = create(model="tiny", prompt=["a", "bc"], n=2, seed=3, echo=True, logprobs=0, max_tokens=1)
    assert [choice.text[:-1] for choice in several.choices] == ["a", "a", "bc", "bc"]
    assert several.usage.prompt_tokens == 3


def test_a_prompt_is_scored_many_tokens_at_a_time(model_dir: Path) -> None:
    engine = FakeEngine(tiny_program())
    with serving(engine, model_dir) as running:
        create = running.client.completions.create
        told = create(model="tiny", prompt="a" * 60, echo=True, logprobs=0, max_tokens=1).choices[0].logprobs
        metrics = running.http.get(f"{running.url}/metrics").text
    assert len(told.token_logprobs) == 61
    # A page at least in each step.
    assert len(engine.steps) < 16
    # They are no drafts.
    assert 'infer_spec_decode_num_drafts_total{model_name="tiny"} 0.0' in metrics


def test_special_tokens_have_a_text_on_request(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program(), saying(lambda _: 258)), model_dir) as running:
        create = running.client.completions.create
        assert create(model="tiny", prompt="a", max_tokens=2).choices[0].text == ""
        shown = create(model="tiny", prompt="a", max_tokens=2, extra_body={"skip_special_tokens": False})
        assert shown.choices[0].text == "<|user|>" * 2


def test_usage_so_far_and_what_was_cached(speller: Running) -> None:
    prompt = "zyxwvuts" * 8
    options = {"include_usage": True, "continuous_usage_stats": True}
    settings = {"model": "tiny", "prompt": prompt, "max_tokens": 4, "stream": True, "stream_options": options}
    chunks = list(speller.client.completions.create(**settings))
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == 4
    assert all(chunk.usage.prompt_tokens == 64 for chunk in chunks)
    *_, last = speller.client.completions.create(**settings)
    cached = last.usage.prompt_tokens_details.cached_tokens
    assert 32 <= cached < 64
    salted = speller.client.completions.create(**settings, extra_body={"cache_salt": "other"})
    assert list(salted)[-1].usage.prompt_tokens_details.cached_tokens == 0


def test_an_answer_that_takes_too_long_is_given_up(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program(), saying(abc), delay=0.02), model_dir) as running:
        body = {"prompt": "a", "max_tokens": 200, "timeout": 0.1}
        began = time.monotonic()
        response = running.http.post("/v1/completions", json=body)
        assert (response.status_code, response.json()["error"]["code"]) == (408, "IC511")
        assert time.monotonic() - began < 2
        with pytest.raises(openai.APIError, match="not finished in time"):
            list(
                running.client.completions.create(
                    model="tiny", prompt="a", max_tokens=200, stream=True, extra_body={"timeout": 0.1}
                )
            )
        running.wait_idle()
        assert running.metric("infer_request_unfinished_total", reason="deadline") == 2


def test_a_smaller_priority_comes_first(model_dir: Path) -> None:
    engine = FakeEngine(tiny_program(sequences=1), saying(abc))
    with serving(engine, model_dir) as running, ThreadPoolExecutor(3) as pool:
        scheduler = running.loop.scheduler

        def ask(priority: int) -> int:
            body = {"prompt": "a", "max_tokens": 3, "priority": priority}
            return running.http.post("/v1/completions", json=body).status_code

        engine.gate.clear()
        asked = [pool.submit(ask, 0)]
        running.wait(lambda: bool(scheduler.running))
        for priority in (5, -5):
            asked.append(pool.submit(ask, priority))
            running.wait(lambda: len(scheduler.waiting) == len(asked) - 1)
        waiting = {sequence.request.priority: sequence for sequence in scheduler.waiting}
        engine.gate.set()
        assert [one.result() for one in asked] == [200] * 3
        assert waiting[-5].times.admitted < waiting[5].times.admitted


def test_tokens_and_back(speller: Running) -> None:
    told = speller.http.post("/tokenize", json={"prompt": "né", "return_token_strs": True}).json()
    assert told == {
        "count": 3,
        "max_model_len": 256,
        "tokens": list("né".encode()),
        "token_strs": ["n", "bytes:\\xc3", "bytes:\\xa9"],
    }
    assert speller.http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "né"}
    chat = speller.http.post("/tokenize", json={"messages": HELLO}).json()
    assert chat["tokens"] == [256, 258, *b"hello", 257, 259]
    bare = {"messages": HELLO, "add_generation_prompt": False}
    assert speller.http.post("/tokenize", json=bare).json()["tokens"] == chat["tokens"][:-1]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": HELLO}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"promt": "a"}, "promt"),
        ("/detokenize", {"tokens": [262]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_bodies_that_are_none_are_refused_by_name(
    speller: Running, path: str, body: dict[str, object], param: str
) -> None:
    response = speller.http.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
