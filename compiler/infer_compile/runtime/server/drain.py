"""The end of a server: nothing new is begun, and what is under way is finished."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Drain:
    """Used from the event loop alone."""

    def __init__(self) -> None:
        self.begun = False
        self.requests = 0
        """Under way."""
        self._changed = asyncio.Event()

    def begin(self) -> None:
        self.begun = True
        self._changed.set()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A request is under way for as long as the context lasts."""
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1
            self._changed.set()

    async def begun_at_last(self) -> None:
        """Returns when it has begun."""
        await self._until(lambda: self.begun)

    async def finished(self) -> None:
        """Returns when no request is under way."""
        await self._until(lambda: not self.requests)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()
