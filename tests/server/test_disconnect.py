"""A client that goes away gives its pages back; one that stays is not disturbed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program

BODY = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def server(model_dir: Path) -> Iterator[Running]:
    engine = FakeEngine(tiny_program(), delay=0.005)
    with serving(engine, model_dir) as running:
        yield running


def leave(running: Running, body: dict[str, object], *, abruptly: bool) -> None:
    """Sends a request, waits until it runs, and closes the connection."""
    host, port = running.url.removeprefix("http://").split(":")
    content = json.dumps(body)
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
        if body.get("stream"):
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        running.wait(lambda: bool(running.loop.scheduler.running))
        if abruptly:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("abruptly", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_pages_come_back_within_a_step(server: Running, stream: bool, abruptly: bool) -> None:
    leave(server, BODY | {"stream": stream}, abruptly=abruptly)
    server.wait_idle()
    assert server.metric("infer_kv_cache_usage_perc") == 0
    assert server.metric("infer_num_requests_running") == 0
    assert server.metric("infer_request_unfinished_total", reason="cancelled") == 1
    assert server.metric("infer_generation_tokens_total") < 150


def test_a_cancelled_sequence_computes_at_most_the_step_under_way(server: Running) -> None:
    server.engine.gate.clear()
    leave(server, BODY, abruptly=True)
    (sequence,) = server.loop.scheduler.running
    server.wait(lambda: sequence.cancelled)
    assert server.metric("infer_kv_cache_usage_perc") > 0
    server.engine.steps.clear()
    server.engine.gate.set()
    server.wait_idle()
    assert len(server.engine.steps) == 1
    assert server.metric("infer_kv_cache_usage_perc") == 0


def test_one_that_waits_leaves_the_queue(server: Running) -> None:
    server.engine.gate.clear()
    running = [BODY | {"max_tokens": 3}] * 4

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url) as client:
            patient = [asyncio.create_task(client.post("/v1/completions", json=body)) for body in running]
            scheduler = server.loop.scheduler
            present = lambda: len(scheduler.running) + len(scheduler.waiting)  # noqa: E731
            await asyncio.to_thread(server.wait, lambda: present() == 4)
            hasty = asyncio.create_task(client.post("/v1/completions", json=BODY))
            await asyncio.to_thread(server.wait, lambda: present() == 5)
            waiting = scheduler.waiting[-1]
            hasty.cancel()
            await asyncio.to_thread(server.wait, lambda: waiting.cancelled)
            server.engine.gate.set()
            return list(await asyncio.gather(*patient))

    assert [response.status_code for response in asyncio.run(crowd())] == [200] * 4
    server.wait_idle()
    assert server.metric("infer_request_success_total") == 4


def test_those_who_stay_get_the_same_answers(server: Running) -> None:
    server.engine.delay = 0.001
    bodies = [
        {"prompt": "x" * (1 + index % 9), "seed": index, "max_tokens": 30, "ignore_eos": True, "stream": True}
        for index in range(20)
    ]
    luck = random.Random(0)
    patience = [luck.choice([None, None, 0, 3, 10]) for _ in bodies]

    async def ask(client: httpx.AsyncClient, body: dict[str, object], most: int | None) -> str:
        text, events = "", 0
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if events == most:
                    return text
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    events += 1
        return text

    async def all_at_once() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return await asyncio.gather(*map(ask, [client] * len(bodies), bodies, patience))

    async def alone() -> list[str]:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            return [await ask(client, body, None) for body in bodies]

    together = asyncio.run(all_at_once())
    server.wait_idle()
    expected = asyncio.run(alone())
    for text, whole, most in zip(together, expected, patience, strict=True):
        assert text == whole if most is None else whole.startswith(text)
    assert server.metric("infer_kv_cache_usage_perc") == 0
    assert server.metric("infer_request_unfinished_total", reason="cancelled") > 0
