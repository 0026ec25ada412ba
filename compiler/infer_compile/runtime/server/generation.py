"""The asyncio end of sequences under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from ..loop import EngineLoop
from ..sequence import Delta, Failure, Request, Sink


class Generation:
    """Submits ``requests`` together and receives their pieces; raises QueueFull when there is no room."""

    def __init__(self, engine: EngineLoop, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Delta | Failure]] = asyncio.Queue()
        self.sequences = engine.submit((request, self._sink(index)) for index, request in enumerate(requests))

    def _sink(self, index: int) -> Sink:
        def sink(piece: Delta | Failure) -> None:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._pieces.put_nowait, (index, piece))

        return sink

    async def pieces(self) -> AsyncIterator[tuple[int, Delta | Failure]]:
        """Pieces with the index of their request, until every request has ended or one has failed."""
        unfinished = len(self.sequences)
        while unfinished:
            index, piece = await self._pieces.get()
            yield index, piece
            if isinstance(piece, Failure):
                return
            unfinished -= piece.finish is not None

    def cancel(self) -> None:
        """Frees what is still held; harmless for sequences that have ended."""
        if any(sequence.ending is None for sequence in self.sequences):
            self._engine.cancel(self.sequences)
