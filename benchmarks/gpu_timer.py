"""Times of work on a device: CUDA events around replays of a graph. On a processor the clock stands in, so
that what uses a timer can be tried where there is no GPU."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable

import torch

Work = Callable[[], object]
FLUSHED = 512 << 20
"""Bytes written before a round: several times the largest cache of a device (60 MB of an H200)."""
COPIED = 4 << 30
"""Bytes of the copy that bandwidth is measured with."""
SMALL = 1 << 20
"""Both on a processor."""
WARM = 3


class Timer:
    """The median of ``rounds`` on ``device``, each with cold caches."""

    def __init__(self, device: str, rounds: int) -> None:
        self.device = torch.device(device)
        self.rounds = rounds
        self._flushed = torch.zeros(self._sized(FLUSHED), dtype=torch.uint8, device=device)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def _sized(self, size: int) -> int:
        return size if self.cuda else SMALL

    def replayed(self, work: Work) -> float:
        """Seconds of ``work`` as a graph."""
        return self.launched(self.captured(work))

    def captured(self, work: Work) -> Work:
        """``work`` as a graph: run before, on a stream of its own as capture asks, lest it loads then."""
        if not self.cuda:
            return work
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        return graph.replay

    def launched(self, work: Work) -> float:
        """Seconds of ``work`` launch by launch, by the device's own clock."""
        if not self.cuda:
            return statistics.median(self._clocked(work) for _ in range(self.rounds))
        work()
        torch.cuda.synchronize()
        spans = []
        for _ in range(self.rounds):
            self._flushed.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            spans.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in spans) / 1e3

    def stepped(self, works: list[Work]) -> float:
        """Seconds of one of ``works``, done one after the other, by the clock of the processor."""
        self.wait()
        start = time.perf_counter()
        for work in works:
            work()
        self.wait()
        return (time.perf_counter() - start) / len(works)

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.cuda:
            torch.cuda.synchronize()

    def bandwidth(self) -> float:
        """Bytes a second of a copy within the device's memory, those read and those written."""
        size = self._sized(COPIED)
        source = torch.randint(-(1 << 31), (1 << 31) - 1, (size // 4,), dtype=torch.int32, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.launched(lambda: target.copy_(source))

    def overhead(self) -> float:
        """Seconds of a graph that does next to nothing: what every figure contains."""
        one = torch.zeros(1, device=self.device)
        return self.replayed(lambda: one.add_(1))

    def free(self) -> int | None:
        """Bytes of free memory of the device; None for a processor."""
        if not self.cuda:
            return None
        gc.collect()
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(self.device)
        return int(free)

    def name(self) -> str:
        """The device, its driver's CUDA and PyTorch."""
        if not self.cuda:
            return f"a processor, PyTorch {torch.__version__}"
        found = torch.cuda.get_device_properties(self.device)
        return (
            f"{found.name}, compute capability {found.major}.{found.minor}, {found.multi_processor_count} "
            f"multiprocessors, PyTorch {torch.__version__}, CUDA {torch.version.cuda}"
        )

    @staticmethod
    def _clocked(work: Work) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
