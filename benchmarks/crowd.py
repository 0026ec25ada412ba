"""A crowd of clients, some of them rude, that know what they should be answered."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import h11
import numpy as np

from http_channel import Channel

LEAVES, MALFORMED, ABRUPTLY = 0.2, 0.05, 0.5
MOST_PATIENCE = 24
"""Events after which a client that leaves has left."""
SETTLED = 15
"""Seconds in which the pages of those who left come back."""
BROKEN = (ConnectionError, EOFError, ValueError, h11.RemoteProtocolError)


@dataclass(frozen=True)
class Ask:
    """A request that is asked again and again, always with the same answer."""

    kind: str
    path: str
    body: bytes


Answer = tuple[tuple[str, str | None], ...]
"""The text and the finish reason of each choice."""


@dataclass
class Findings:
    """What the clients saw. ``first`` and ``between`` are seconds, of streams that were not refused."""

    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)


def asks(texts: str, letters: int, tokens: int, order: random.Random) -> list[Ask]:
    """Requests with prompts of up to ``letters`` letters of ``texts``, half of them with a beginning in
    common, and answers of up to ``tokens`` tokens."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "greedy": ("completions", {"temperature": 0}),
        "seeded": ("completions", {"temperature": 0.9, "top_p": 0.95, "ignore_eos": True}),
        "penalties": ("completions", {"temperature": 0.8, "frequency_penalty": 0.5, "stop": [".\n", "e t"]}),
        "choices": ("completions", {"temperature": 1, "n": 2, "logprobs": 3}),
        "chat": ("chat/completions", {"temperature": 0}),
        "schema": ("chat/completions", {"temperature": 1, "response_format": _schema()}),
    }
    begin = texts[: letters // 2]
    found = []
    for index in range(4 * len(kinds)):
        kind, (path, more) = list(kinds.items())[index % len(kinds)]
        place = order.randrange(len(texts) - letters)
        own = texts[place : place + order.randint(8, letters // 2)]
        prompt = begin + own if index // len(kinds) % 2 else own
        body = {"stream": True, "max_tokens": order.randint(4, tokens), "seed": index} | more
        body |= (
            {"prompt": prompt}
            if path == "completions"
            else {"messages": [{"role": "user", "content": prompt}]}
        )
        found.append(Ask(kind, f"/v1/{path}", json.dumps(body).encode()))
    return found


def _schema() -> dict[str, Any]:
    word = {"type": "string", "maxLength": 12}
    shape = {"name": word, "size": {"enum": ["small", "large"]}, "parts": {"type": "array", "items": word}}
    schema = {"type": "object", "properties": shape, "required": list(shape), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}


COMPLETIONS = "/v1/completions"
MISTAKES: Mapping[str, tuple[str, str, bytes]] = {
    "no JSON": ("POST", COMPLETIONS, b'{"prompt": "a'),
    "no object": ("POST", COMPLETIONS, b"[1, 2]"),
    "no UTF-8": ("POST", COMPLETIONS, b'{"prompt": "\xff"}'),
    "nothing": ("POST", "/v1/chat/completions", b""),
    "unknown parameter": ("POST", COMPLETIONS, b'{"prompt": "a", "temprature": 1}'),
    "wrong type": ("POST", COMPLETIONS, b'{"prompt": 1.5}'),
    "out of range": ("POST", COMPLETIONS, b'{"prompt": "a", "max_tokens": -1}'),
    "infinite": ("POST", COMPLETIONS, b'{"prompt": "a", "temperature": 1e999}'),
    "too long": ("POST", COMPLETIONS, json.dumps({"prompt": [1] * 100_000}).encode()),
    "unknown token": ("POST", COMPLETIONS, b'{"prompt": [1000000000]}'),
    "bad grammar": ("POST", COMPLETIONS, b'{"prompt": "a", "structured_outputs": {"regex": "("}}'),
    "other model": ("POST", COMPLETIONS, b'{"prompt": "a", "model": "another"}'),
    "no such path": ("POST", "/v1/complete", b"{}"),
    "wrong method": ("GET", COMPLETIONS, b""),
    "embeddings": ("POST", "/v1/embeddings", b'{"input": "a"}'),
}
NO_HTTP: Mapping[str, bytes] = {
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "no length": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    "too large": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n",
}
HALF = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\n{"
"""The rest of it never comes."""


class Crowd:
    """Clients of the server at ``host`` and ``port`` that ask for ``asks``."""

    def __init__(self, host: str, port: int, asks: list[Ask]) -> None:
        self._where = (host, port)
        self._asks = asks
        self._known: dict[Ask, Answer] = {}
        self.findings = Findings()

    async def learn(self) -> None:
        """Takes every answer alone; once known, it must be the same again."""
        for ask in self._asks:
            channel = await Channel.open(*self._where)
            try:
                texts: dict[int, str] = {}
                answer = await self._stream(channel, ask, texts, None)
                if answer is not None and self._known.setdefault(ask, answer) != answer:
                    self._fault(f"{ask.kind}: alone, another answer than before")
            finally:
                channel.close()

    async def load(self, clients: int, seed: int, *, seconds: float, most: int | None = None) -> None:
        """``clients`` clients ask for ``seconds``, or until each has sent ``most`` requests."""
        end = time.monotonic() + seconds
        await asyncio.gather(
            *(self._client(random.Random(f"{seed} {index}"), end, most) for index in range(clients))
        )

    async def _client(self, order: random.Random, end: float, most: int | None) -> None:
        channel, sent = None, 0
        while time.monotonic() < end and sent != most:
            sent += 1
            if channel is None:
                channel = await Channel.open(*self._where)
            try:
                if order.random() < MALFORMED:
                    await self._mistake(channel, order)
                else:
                    await self._ask(channel, order)
            except BROKEN as error:
                self._fault(f"a connection broke: {error!r}")
            if not channel.reusable:
                channel.close(abruptly=order.random() < ABRUPTLY)
                channel = None
        if channel is not None:
            channel.close()

    async def _ask(self, channel: Channel, order: random.Random) -> None:
        ask, began = order.choice(self._asks), time.monotonic()
        patience = order.randint(0, MOST_PATIENCE) if order.random() < LEAVES else None
        times: list[float] = []
        texts: dict[int, str] = {}
        answer = await self._stream(channel, ask, texts, patience, times)
        self.findings.first += [time - began for time in times[:1]]
        self.findings.between += np.diff(times).tolist()
        known = self._known[ask]
        if answer is not None:
            self.findings.counts["finished"] += 1
            if answer != known:
                self._fault(f"{ask.kind}: another answer than alone: {answer} instead of {known}")
            return
        self.findings.counts["left"] += patience is not None
        if not all(known[index][0].startswith(text) for index, text in texts.items()):
            self._fault(f"{ask.kind}: what came before the client left is not how the answer begins")

    async def _stream(
        self,
        channel: Channel,
        ask: Ask,
        texts: dict[int, str],
        patience: int | None,
        times: list[float] | None = None,
    ) -> Answer | None:
        """The whole answer; None if it was refused, or left after ``patience`` events. ``texts`` are what has
        come of each choice, ``times`` when it came."""
        head = await channel.request("POST", ask.path, ask.body)
        self.findings.statuses[head.status_code] += 1
        if head.status_code != 200:
            await self._refused(channel, head, ask.kind)
            return None
        finishes: dict[int, str | None] = {}
        events = 0
        async for event in channel.events():
            if events == patience:
                return None
            events += 1
            if "error" in event:
                self._fault(f"{ask.kind}: {event['error']}")
                return None
            for choice in event["choices"]:
                index = choice["index"]
                piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
                texts[index] = texts.get(index, "") + piece
                finishes[index] = choice["finish_reason"]
                if times is not None and piece:
                    times.append(time.monotonic())
        return tuple((texts[index], finishes[index]) for index in sorted(texts))

    async def _refused(self, channel: Channel, head: h11.Response, what: str) -> None:
        body = json.loads(await channel.body())
        after = dict(head.headers).get(b"retry-after")
        if head.status_code in (429, 503) and after is not None:
            self.findings.counts["told to come back"] += 1
            channel.close()  # a server does not keep it that long
            await asyncio.sleep(float(after))
        else:
            self._fault(f"{what}: {head.status_code} {body}")

    async def _mistake(self, channel: Channel, order: random.Random) -> None:
        self.findings.counts["malformed"] += 1
        what = order.choice(["half", *NO_HTTP, *MISTAKES])
        if what not in MISTAKES:
            channel.close()
            await self._no_http(what)
            return
        head = await channel.request(*MISTAKES[what])
        self.findings.statuses[head.status_code] += 1
        body = json.loads(await channel.body())
        if not 400 <= head.status_code < 500 or not body["error"]["message"]:
            self._fault(f"{what}: {head.status_code} {body}")

    async def _no_http(self, what: str) -> None:
        channel = await Channel.open(*self._where)
        try:
            await channel.send_raw(NO_HTTP.get(what, HALF))
            if what in NO_HTTP:
                reply = await channel.rest()
                status = int(found[1]) if (found := re.match(rb"HTTP/1.1 (\d+) ", reply)) else 0
                self.findings.statuses[status] += 1
                if not 400 <= status < 500:
                    self._fault(f"{what}: {reply!r}")
        finally:
            channel.close()

    def _fault(self, what: str) -> None:
        self.findings.faults.append(what)

    async def get(self, path: str) -> tuple[int, str]:
        channel = await Channel.open(*self._where)
        try:
            head = await channel.request("GET", path)
            return head.status_code, (await channel.body()).decode()
        finally:
            channel.close()

    async def metric(self, name: str) -> float:
        """The sum of the metric's series; nan if there is none."""
        _, text = await self.get("/metrics")
        values = re.findall(rf"^(?:infer_|vllm:){name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, values)) if values else float("nan")

    async def settle(self) -> None:
        """Every page must come back soon, and the server, which then checks its accounts, stay healthy."""
        held = ["num_requests_running", "num_requests_waiting"]
        held += ["cache_exact_pages_used", "cache_packed_pages_used"]
        end = time.monotonic() + SETTLED
        while any([await self.metric(name) for name in held]) and time.monotonic() < end:
            await asyncio.sleep(0.1)
        for name in held:
            if left := await self.metric(name):
                self._fault(f"when all are gone {name} is {left:g}")
        status, _ = await self.get("/health")
        if status != 200:
            self._fault(f"/health says {status}")
