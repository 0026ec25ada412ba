"""One HTTP/1.1 connection of a client that may be rude: it leaves in mid-answer, or sends what is no HTTP.

On asyncio's streams and h11, so that 64 of them take little of the processor that they share with a server.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import h11

BLOCK = 2**16
DONE = "[DONE]"


class Channel:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader = reader
        self._writer = writer
        self._host = host
        self._state = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, host: str, port: int) -> Channel:
        return cls(*await asyncio.open_connection(host, port), host)

    async def request(self, method: str, path: str, body: bytes = b"") -> h11.Response:
        """Sends a request and returns the head of its answer."""
        headers = [("host", self._host), ("content-type", "application/json")]
        headers.append(("content-length", str(len(body))))
        head = h11.Request(method=method, target=path, headers=headers)
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self._writer.write(self._state.send(event) or b"")
        await self._writer.drain()
        while not isinstance(event := await self._next(), h11.Response):
            if isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed without an answer")
        return event

    async def _next(self) -> Any:
        while (event := self._state.next_event()) is h11.NEED_DATA:
            self._state.receive_data(await self._reader.read(BLOCK))
        return event

    async def parts(self) -> AsyncIterator[bytes]:
        """The body of the answer as it comes; raises h11.RemoteProtocolError where it breaks off."""
        while not isinstance(event := await self._next(), h11.EndOfMessage):
            yield bytes(event.data)

    async def body(self) -> bytes:
        return b"".join([part async for part in self.parts()])

    async def events(self) -> AsyncIterator[Any]:
        """The bodies of server-sent events, as JSON; raises EOFError unless the last one is ``[DONE]``."""
        held = b""
        async for part in self.parts():
            *whole, held = (held + part).split(b"\n\n")
            for event in whole:
                text = event.decode().removeprefix("data: ")
                if text != DONE:
                    yield json.loads(text)
                    continue
                if held or event is not whole[-1] or await self.body():
                    raise EOFError("something comes behind [DONE]")
                return
        raise EOFError("the stream has no [DONE]")

    async def send_raw(self, content: bytes) -> None:
        """Sends what need not be HTTP; ``rest`` is what comes back."""
        self._writer.write(content)
        await self._writer.drain()

    async def rest(self) -> bytes:
        """All that comes until the server closes the connection."""
        return await self._reader.read()

    @property
    def reusable(self) -> bool:
        """Whether another request may follow; prepares for it."""
        if self._writer.is_closing():
            return False
        if self._state.our_state is h11.DONE and self._state.their_state is h11.DONE:
            self._state.start_next_cycle()
        return bool(self._state.our_state is h11.IDLE)

    def close(self, *, abruptly: bool = False) -> None:
        """``abruptly`` resets the connection, as a client does that dies."""
        if abruptly and not self._writer.is_closing():
            plug = self._writer.get_extra_info("socket")
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()
