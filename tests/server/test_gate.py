"""Before a request is read: keys, ids, limits; and a server that is told to stop."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program

from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.journal import JsonFormatter, Line
from infer_compile.runtime.server.keys import VARIABLE, Keys, load
from infer_compile.runtime.server.service import Limits

TEXT = "/v1/completions"
BODY = {"prompt": "a", "max_tokens": 2}


@pytest.fixture(scope="module")
def guarded(model_dir: Path) -> Iterator[Running]:
    limits = Limits(body_bytes=500, prompt_tokens=20, choices=3)
    keys = Keys(frozenset({"sésame", "other"}))
    with serving(FakeEngine(tiny_program()), model_dir, keys=keys, limits=limits) as running:
        yield running


def header(value: str) -> dict[str, bytes]:
    return {"authorization": value.encode()}


def test_without_a_key_all_but_the_probes_is_refused(guarded: Running) -> None:
    for path in ("/health", "/ready"):
        assert guarded.http.get(path).status_code == 200
    for path in ("/metrics", "/version", "/v1/models", "/openapi.json", "/nowhere", TEXT):
        response = guarded.http.get(path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == "invalid_api_key"
    wrong = ("Bearer nope", "Bearer", "sésame", "Basic sésame", "Bearer sésame2", "")
    for value in wrong:
        assert guarded.http.post(TEXT, json=BODY, headers=header(value)).status_code == 401
    for value in ("Bearer sésame", "bearer other"):
        assert guarded.http.post(TEXT, json=BODY, headers=header(value)).status_code == 200


def test_the_client_tells_a_wrong_key(guarded: Running) -> None:
    for key in ("nope", "other"):
        client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key, max_retries=0)
        if key == "nope":
            with pytest.raises(openai.AuthenticationError):
                client.models.list()
        else:
            assert [model.id for model in client.models.list()] == ["tiny"]


def test_keys_come_from_a_file_and_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert not load(None).asked_for
    file = tmp_path / "keys"
    file.write_text("# ours\none\n\n two \n")
    monkeypatch.setenv(VARIABLE, "three, four")
    keys = load(file)
    for key in ("one", "two", "three", "four"):
        assert keys.allow(f"Bearer {key}")
    for key in ("# ours", "", "five", "one two"):
        assert not keys.allow(f"Bearer {key}")
    file.write_text("# none\n")
    for broken in (file, tmp_path / "missing", tmp_path):
        with pytest.raises(InferCompileError, match="IC530"):
            load(broken)
    monkeypatch.setenv(VARIABLE, " , ")
    with pytest.raises(InferCompileError, match="IC530"):
        load(None)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(guarded: Running) -> None:
    large = json.dumps(BODY | {"user": "x" * 500}).encode()
    headers = header("Bearer sésame") | {"content-type": b"application/json"}
    whole = guarded.http.post(TEXT, content=large, headers=headers)
    chunked = guarded.http.post(TEXT, content=iter([large[:300], large[300:]]), headers=headers)
    for response in (whole, chunked):
        assert response.status_code == 413
        assert "500 bytes" in response.json()["error"]["message"]
    assert guarded.http.post(TEXT, json=BODY, headers=headers).status_code == 200


def test_limits_on_prompts_and_choices(guarded: Running) -> None:
    key = header("Bearer sésame")
    error = guarded.http.post(TEXT, json=BODY | {"prompt": "a" * 21}, headers=key).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    error = guarded.http.post(TEXT, json=BODY | {"n": 4}, headers=key).json()["error"]
    assert (error["param"], error["code"]) == ("n", "invalid_value")
    error = guarded.http.post(TEXT, json=BODY | {"prompt": ["a"] * 4}, headers=key).json()["error"]
    assert error["param"] == "prompt"


@pytest.fixture(scope="module")
def server(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program()), model_dir) as running:
        yield running


def test_a_request_keeps_its_id(server: Running) -> None:
    response = server.http.post(TEXT, json=BODY, headers={"x-request-id": "job-17"})
    assert response.headers["x-request-id"] == "job-17"
    assert response.json()["id"] == "cmpl-job-17"
    for strange in ("a b", "x" * 129, "é"):
        made = server.http.post(TEXT, json=BODY, headers={"x-request-id": strange.encode()})
        assert re.fullmatch("[0-9a-f]{32}", made.headers["x-request-id"])
    assert "x-request-id" in server.http.post(TEXT, json={}).headers
    assert "x-request-id" in server.http.get("/nowhere").headers


def test_every_request_is_one_line_of_the_log(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "infer_compile.runtime.server.gate"):
        server.http.post(TEXT, json=BODY | {"ignore_eos": True}, headers={"x-request-id": "one"})
        server.http.post(TEXT, json=BODY | {"stream": True, "n": 2}, headers={"x-request-id": "two"})
        server.http.post(TEXT, json={"prompt": ""}, headers={"x-request-id": "three"})
        server.http.get("/health")
        server.http.get("/metrics")
    lines = [record.msg for record in caplog.records]
    assert all(isinstance(line, Line) for line in lines)
    one, two, three = (line.fields for line in lines)
    assert one["id"] == "one"
    assert (one["method"], one["path"], one["status"], one["finish"]) == ("POST", TEXT, 200, "length")
    assert (one["prompt_tokens"], one["cached_tokens"], one["generated_tokens"]) == (1, 0, 2)
    assert 0 < one["ttft_s"] <= one["seconds"]
    assert two["prompt_tokens"] == 1
    assert (three["status"], three["error"]) == (400, "'prompt' holds no tokens")
    text = str(lines[0])
    assert text.startswith("request id=one method=POST path=/v1/completions status=200")
    record = caplog.records[2]
    told = json.loads(JsonFormatter().format(record))
    assert (told["event"], told["level"], told["error"]) == ("request", "info", three["error"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told["time"])


def test_a_line_of_text_quotes_what_would_break_it() -> None:
    assert str(Line("x", {"a": 'b "c"\n', "d": None, "e": ""})) == 'x a="b \\"c\\"\\n" e=""'


def test_while_it_stops_what_runs_goes_on_and_nothing_new_begins(model_dir: Path) -> None:
    with serving(FakeEngine(tiny_program(), delay=0.02), model_dir) as running:
        body = {"prompt": "a", "max_tokens": 30, "ignore_eos": True, "stream": True}
        with running.http.stream("POST", TEXT, json=body) as response:
            lines = response.iter_lines()
            next(lines)
            running.service.drain.begin()
            other = httpx.Client(base_url=running.url)
            assert other.get("/health").status_code == 200
            ready = other.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
            refused = other.post(TEXT, json=BODY)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["error"]["code"] == "IC507"
            assert running.service.drain.requests == 1
            assert [line for line in lines if line][-1] == "data: [DONE]"
            other.close()
        running.wait(lambda: running.service.drain.requests == 0)


def test_headers_that_are_too_large_are_refused(server: Running) -> None:
    response = server.http.get("/version", headers={"x-filler": "x" * 20_000})
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")
    assert server.http.get("/version", headers={"x-filler": "x" * 10_000}).status_code == 200


def test_headers_without_end_are_cut_off(server: Running) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Filler: " + b"x" * 200_000)
        connection.settimeout(5)
        answer = connection.recv(1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


def test_deep_and_strange_json_is_refused(server: Running) -> None:
    deep = "[" * 100_000
    for content in (
        deep,
        '{"prompt": ' + deep,
        '{"prompt": "a", "user": ' + "9" * 5000 + "}",
        '{"n": 1e999}',
    ):
        headers = {"content-type": "application/json"}
        response = server.http.post(TEXT, content=content, headers=headers)
        assert response.status_code == 400
        assert response.json()["error"]["message"]
