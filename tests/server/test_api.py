"""The real OpenAI client against the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import toy_model
from conftest import Running, serving
from fake_engine import FakeEngine, random_logits, saying, tiny_program

HELLO = [{"role": "user", "content": "hello"}]


def echo(tokens: list[int]) -> int:
    """Says the last user's message again, then ends."""
    start = len(tokens) - 1 - tokens[::-1].index(259)
    user = tokens[len(tokens) - 1 - tokens[::-1].index(258) + 1 : start - 1]
    said = len(tokens) - start - 1
    return user[said] if said < len(user) else toy_model.END


def abc(tokens: list[int]) -> int:
    """The letters a to z, over and over."""
    return 97 + (tokens[-1] - 96) % 26 if 97 <= tokens[-1] <= 122 else 97


@pytest.fixture(scope="module")
def parrot(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program(), saying(echo)), model_dir) as running:
        yield running


@pytest.fixture(scope="module")
def speller(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program(), saying(abc)), model_dir) as running:
        yield running


@pytest.fixture(scope="module")
def babbler(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program(sequences=8, batch_tokens=32)), model_dir, queue=64) as running:
        yield running


def test_chat(parrot: Running) -> None:
    answer = parrot.client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.id == f"chatcmpl-{answer._request_id}"
    assert answer.model == "tiny"
    assert answer.system_fingerprint == "0123456789ab"
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "hello")
    assert choice.finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (9, 6)
    assert answer.usage.total_tokens == 15


def test_chat_streaming(parrot: Running) -> None:
    messages = [{"role": "user", "content": "naïve 😀"}]
    stream = parrot.client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = list(stream)
    assert {chunk.object for chunk in [*chunks, last]} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in [*chunks, last]}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert [text for text in texts if text] == list("naïve 😀")
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (15, 12)


def test_streaming_without_usage_has_none(parrot: Running) -> None:
    chunks = list(parrot.client.chat.completions.create(model="tiny", messages=HELLO, stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_server_sent_events_are_framed(parrot: Running) -> None:
    body = {"messages": HELLO, "stream": True}
    response = parrot.http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    *events, end = response.text.split("\n\n")
    assert end == ""
    assert events[-1] == "data: [DONE]"
    assert all(event.startswith("data: {") and json.loads(event[6:]) for event in events[:-1])


def test_the_asynchronous_client(parrot: Running) -> None:
    async def ask() -> tuple[str | None, str]:
        async with openai.AsyncOpenAI(base_url=f"{parrot.url}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(model="tiny", messages=HELLO)
            stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == ("hello", "hello")


def test_a_conversation_and_parts_of_text(parrot: Running) -> None:
    client = parrot.client
    first = client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [
        {"role": "developer", "content": "be brief"},
        *HELLO,
        first.model_dump(),
        {"role": "user", "content": parts},
    ]
    answer = client.chat.completions.create(model="tiny", messages=messages)
    assert answer.choices[0].message.content == "a\nb"


def test_completions(speller: Running) -> None:
    answer = speller.client.completions.create(model="tiny", prompt="abc", max_tokens=5)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == "defgh"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    assert speller.client.completions.create(model="tiny", prompt="x").choices[0].text == "yzabcdefghijklmn"
    tokens = speller.client.completions.create(model="tiny", prompt=[97, 98], max_tokens=2)
    assert tokens.choices[0].text == "cd"


def test_several_prompts_are_several_choices(speller: Running) -> None:
    for prompts in (["a", "kl", "c"], [[97], [107, 108], [99]]):
        answer = speller.client.completions.create(model="tiny", prompt=prompts, max_tokens=3)
        assert [choice.text for choice in answer.choices] == ["bcd", "mno", "def"]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 9)
    texts = ["", ""]
    stream = speller.client.completions.create(model="tiny", prompt=["a", "x"], max_tokens=4, stream=True)
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["bcde", "yzab"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "text"), [("fgh", "bcde"), (["zz", "d"], "bc"), (["b"], ""), (["ka"], "bcdefghijk")]
)
def test_stop_strings(speller: Running, stop: str | list[str], text: str, stream: bool) -> None:
    create = speller.client.completions.create
    answer = create(model="tiny", prompt="a", max_tokens=10, stop=stop, stream=stream)
    chunks = list(answer) if stream else [answer]
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    assert chunks[-1].choices[0].finish_reason == ("length" if stop == ["ka"] else "stop")


def test_stop_token_ids_and_ignore_eos(speller: Running, parrot: Running) -> None:
    answer = speller.client.completions.create(
        model="tiny", prompt="a", max_tokens=10, extra_body={"stop_token_ids": [101]}
    )
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("bcd", "stop")
    answer = parrot.client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=9, extra_body={"ignore_eos": True}
    )
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 9)


def test_limits_on_tokens(speller: Running) -> None:
    create = speller.client.chat.completions.create
    for limit in ({"max_tokens": 3}, {"max_completion_tokens": 3}):
        assert create(model="tiny", messages=HELLO, **limit).choices[0].message.content == "abc"
    # Without a limit a chat goes on to the end of the context of 256 tokens.
    assert create(model="tiny", messages=HELLO).usage.total_tokens == 256


def sampled(running: Running, **settings: object) -> str:
    extra = {key: settings.pop(key) for key in ("top_k", "min_p", "repetition_penalty") if key in settings}
    create = running.client.completions.create
    return create(model="tiny", prompt="abc", max_tokens=12, extra_body=extra, **settings).choices[0].text


def test_the_seed_decides_a_draw(babbler: Running) -> None:
    assert sampled(babbler, seed=5) == sampled(babbler, seed=5)
    assert len({sampled(babbler, seed=seed) for seed in (-1, 0, 1, 2, 3)}) == 5
    assert len({sampled(babbler) for _ in range(4)}) == 4


def test_sampling_parameters_reach_the_engine(babbler: Running) -> None:
    greedy = sampled(babbler, temperature=0)
    assert greedy == sampled(babbler, temperature=0)
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-4}):
        assert sampled(babbler, seed=1, **narrow) == greedy
    assert sampled(babbler, seed=1) == sampled(babbler, seed=1, top_k=-1, top_p=1.0, min_p=0.0) != greedy


def test_penalties_and_biases_reach_the_engine(model_dir: Path) -> None:
    def lead(tokens: list[int], chain: int) -> object:
        row = random_logits(tokens, chain) * 0
        row[[97, 98, 99]] = 1.0, 0.9, 0.2
        return row

    with serving(FakeEngine(tiny_program(), lead), model_dir) as running:

        def text(prompt: str = "x", **settings: object) -> str:
            extra = {"repetition_penalty": settings.pop("repetition_penalty", None)}
            create = running.client.completions.create
            answer = create(
                model="tiny", prompt=prompt, max_tokens=6, temperature=0, extra_body=extra, **settings
            )
            return answer.choices[0].text

        assert text() == "aaaaaa"
        assert text(logit_bias={"98": 0.2}) == "bbbbbb"
        assert text(presence_penalty=0.5) == "abaaaa"
        assert text(frequency_penalty=0.15) == "abaaba"[:2] + "abab"
        assert text(repetition_penalty=1.2) == "abaaaa"
        assert text("a", repetition_penalty=1.2) == "bababa"[:1] + "aaaaa"
        assert text(logit_bias={"97": -100, "98": -100}, frequency_penalty=-2) == "cccccc"


def test_logprobs(babbler: Running) -> None:
    settings = {"model": "tiny", "max_tokens": 4, "temperature": 0}
    chat = babbler.client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=3, **settings)
    told = chat.choices[0].logprobs.content
    assert len(told) == 4
    for token in told:
        assert token.logprob == token.top_logprobs[0].logprob < 0
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (top.logprob for top in token.top_logprobs), reverse=True
        )
        assert len(token.top_logprobs) == 3
        assert token.token in (bytes(token.bytes).decode(errors="ignore"), f"bytes:\\x{token.bytes[0]:02x}")
    stream = babbler.client.chat.completions.create(
        messages=HELLO, logprobs=True, top_logprobs=3, stream=True, **settings
    )
    streamed = [
        token for chunk in stream if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == told
    text = babbler.client.completions.create(prompt="abc", logprobs=2, **settings).choices[0].logprobs
    assert (
        len(text.tokens) == len(text.token_logprobs) == len(text.top_logprobs) == len(text.text_offset) == 4
    )
    drawn = zip(text.tokens, text.token_logprobs, text.top_logprobs, strict=True)
    assert all(top[token] == value == max(top.values()) for token, value, top in drawn)
    without = babbler.client.chat.completions.create(messages=HELLO, **settings)
    assert without.choices[0].logprobs is None


def test_many_at_once_answer_as_one_at_a_time(babbler: Running) -> None:
    async def ask(client: openai.AsyncOpenAI, index: int) -> str:
        prompt = "word " * (index % 7 + 1)
        settings = {"max_tokens": 5 + index % 11, "seed": index, "stream": True}
        stream = await client.completions.create(model="tiny", prompt=prompt, **settings)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{babbler.url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, index) for index in range(40)))

    async def one_at_a_time() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{babbler.url}/v1", api_key="none") as client:
            return [await ask(client, index) for index in range(40)]

    babbler.engine.steps.clear()
    together = asyncio.run(all_at_once())
    assert max(map(len, babbler.engine.steps)) == 8
    assert together == asyncio.run(one_at_a_time())


def test_models(parrot: Running) -> None:
    (model,) = parrot.client.models.list()
    assert (model.id, model.max_model_len) == ("tiny", 256)
    assert parrot.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        parrot.client.models.retrieve("other")


def test_health_readiness_and_version(parrot: Running) -> None:
    assert parrot.http.get("/health").json() == {"status": "ok"}
    ready = parrot.http.get("/ready").json()
    assert ready["status"] == "ready"
    assert ready["cache"] == {"level": "tq3", "bytes_per_token": 52, "exact_bytes_per_token": 256}
    assert parrot.http.get("/version").json() == {"version": "0"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_stopped_engine_is_neither_alive_nor_ready(model_dir: Path) -> None:
    with (
        pytest.raises(AssertionError, match="thread ended"),
        serving(FakeEngine(tiny_program()), model_dir) as running,
    ):
        running.engine.failure = ZeroDivisionError()
        with pytest.raises(openai.InternalServerError, match="stopping"):
            running.client.completions.create(model="tiny", prompt="a")
        assert running.http.get("/health").status_code == 503
        assert running.http.get("/ready").status_code == 503
        response = running.http.post("/v1/completions", json={"prompt": "a"})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "IC507")


def test_metrics(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program(), saying(echo), delay=0.005), model_dir) as running:
        for _ in range(2):
            running.client.chat.completions.create(model="tiny", messages=HELLO)
        with pytest.raises(openai.BadRequestError):
            running.client.chat.completions.create(model="tiny", messages=HELLO, n=0)
        series = {
            "infer_prompt_tokens_total": 18,
            "infer_generation_tokens_total": 12,
            "infer_request_success_total": 2,
            "infer_request_unfinished_total": 0,
            "infer_requests_refused_total": 1,
            "infer_time_to_first_token_seconds_count": 2,
            "infer_inter_token_latency_seconds_count": 10,
            "infer_e2e_request_latency_seconds_count": 2,
            "infer_request_queue_time_seconds_count": 2,
            "infer_request_prompt_tokens_sum": 18,
            "infer_iteration_tokens_total_sum": 28 - 8,
            "infer_prefix_cache_queries_total": 18,
            "infer_prefix_cache_hits_total": 8,
            "infer_num_requests_running": 0,
            "infer_num_requests_waiting": 0,
            "infer_kv_cache_usage_perc": 0,
            "infer_cache_bytes_per_token": 52,
            "infer_cache_exact_bytes_per_token": 256,
        }
        assert {name: running.metric(name, model_name="tiny") for name in series} == series
        assert running.metric("infer_request_success_total", finished_reason="stop") == 2
        # An engine step takes five milliseconds at least.
        assert running.metric("infer_time_to_first_token_seconds_sum") >= 2 * 0.005
        assert running.metric("infer_inter_token_latency_seconds_sum") >= 10 * 0.005
        assert running.metric("infer_e2e_request_latency_seconds_sum") >= 12 * 0.005
