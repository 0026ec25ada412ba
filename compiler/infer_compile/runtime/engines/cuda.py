"""The engine of an NVIDIA GPU: a table of launches on static buffers, captured as graphs for small steps.

Not run on a GPU since its last change: what is tested is the same table, with the kernels interpreted on the
processor.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InferCompileError, Problem
from ..formats.launches import (
    BYTES,
    SETTINGS,
    WEIGHTS_MAGIC,
    Blocks,
    Buffer,
    Cases,
    Count,
    Launch,
    Line,
    Matmul,
    Part,
    StepTable,
    View,
)
from ..formats.program import Program
from ..step import SequenceStep, StepResult
from ..stopwatch import Stopwatch
from .device import check_driver, check_memory, check_numbers, holders, lacking_memory, need_compiler
from .draws import UNSETTLED, altered, draw, draw_among_largest, draws_of
from .driver import Driver, failed
from .inputs import Inputs, inputs_of
from .kernels import INDEX, CubinKernels, Kernels, SourceKernels, matmul, matmul_e4m3
from .rows import rows_of
from .transfer import TORCH, Transfer

_log = logging.getLogger(__name__)
PROGRAM, STEP, WEIGHTS, KERNELS = "program.json", "step.json", "weights.bin", "kernels"
CUBINS = "sm_{}"
"""The folder of kernels for a compute capability."""


Parts = Callable[[str, Part], torch.Tensor]
"""Gives a part of the weights by its name, where the engine computes."""


class CudaEngine:
    """Runs the step in ``engine_dir`` (program.json, step.json, weights.bin, kernels/) on ``device``.
    ``parts`` gives weights that lie in no weights.bin.

    Raises InferCompileError IC520 if a file is missing, damaged or of another build.
    """

    def __init__(self, engine_dir: Path, device: str = "cuda", parts: Parts | None = None) -> None:
        self._dir = engine_dir
        try:
            self.program = Program.from_json((engine_dir / PROGRAM).read_text(encoding="utf-8"))
            self._table = StepTable.from_json((engine_dir / STEP).read_text(encoding="utf-8"))
            parts = self._stored() if parts is None else parts
        except (OSError, ValueError) as failure:
            raise self._broken(str(failure)) from failure
        if self._table.program != self.program.digest:
            raise self._broken("step.json was made from another program.json")
        self._device = torch.device(device)
        # Of the program once, and not in each step: it looks through all its operations for it.
        self._tells_tokens = self.program.tells_tokens
        watch = Stopwatch()
        self._kernels = self._opened(watch)
        try:
            self._parts = {name: parts(name, part) for name, part in self._table.weights.items()}
            watch.lap("weights")
            self._buffers = self._allocated()
            self._transfer = Transfer(self._table, self._most, self._device)
        except torch.OutOfMemoryError as failure:
            raise lacking_memory(self._bytes, *self._memory(), holders(self._index)) from failure
        watch.lap("buffers")
        _log.info(watch.line("device"))
        self._one = torch.ones(1, dtype=torch.float32, device=device)
        self._lent: list[tuple[weakref.ref[NDArray[np.uint8]], torch.Tensor]] = []
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph | None] = {}
        # What steps need for a while lies in one pool of memory: no two graphs run at a time.
        self._scratch = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None

    @property
    def captured(self) -> tuple[int, ...]:
        """Rows of the steps that become graphs when they come for the second time."""
        return self._table.captured if self._device.type == "cuda" else ()

    @property
    def _index(self) -> int:
        return self._device.index or 0

    def _memory(self) -> tuple[int, int]:
        """Bytes of the device that are free, and all of them. Raises InferCompileError IC526."""
        try:
            free, total = torch.cuda.mem_get_info(self._index)
        except RuntimeError as failure:
            raise failed(str(failure).splitlines()[0]) from failure
        return free, total

    def _opened(self, watch: Stopwatch) -> Kernels:
        """The kernels for this device: compiled ahead of time if they are, else from their source.

        Raises InferCompileError: IC524 without a driver, IC525 with one that is too old, IC526 without a
        device, IC527 without enough free memory, IC528 without kernels for the device or a compiler, IC529
        without a PyTorch for CUDA, IC535 where the device does not multiply the weights' numbers.
        """
        if self._device.type != "cuda":
            return SourceKernels(self._dir / KERNELS)
        driver = Driver()
        check_driver(driver.version(), torch.version.cuda)
        driver.start()
        check_memory(self._bytes, *self._memory(), holders(self._index))
        watch.lap("driver")
        major, minor = torch.cuda.get_device_capability(self._index)
        check_numbers((major, minor), {part.dtype for part in self._table.weights.values()})
        cubins = self._dir / CUBINS.format(10 * major + minor)
        try:
            if (cubins / INDEX).is_file():
                kernels = CubinKernels(cubins, self._table, driver)
                watch.lap("kernels")
                return kernels
        except (OSError, ValueError) as failure:
            raise self._broken(str(failure)) from failure
        need_compiler((major, minor))
        _log.info(
            "no kernels for compute capability %d.%d in the bundle: they are compiled now", major, minor
        )
        return SourceKernels(self._dir / KERNELS)

    @property
    def _bytes(self) -> int:
        """Of weights, cache and buffers."""
        held = self._table.weights_bytes
        for buffer in self._table.buffers.values():
            held += BYTES[buffer.dtype] * buffer.width * self._count(buffer)
        return held

    def _count(self, buffer: Buffer) -> int:
        return 1 if buffer.per is None else self._most[buffer.per]

    def _broken(self, why: str) -> InferCompileError:
        return InferCompileError(
            Problem("IC520", "the engine cannot be opened", str(self._dir), why, "build the bundle again")
        )

    def _stored(self) -> Parts:
        """Of weights.bin. Raises OSError and ValueError where it cannot be this program's."""
        weights = np.memmap(self._dir / WEIGHTS, np.uint8, "r")
        if len(weights) != self._table.weights_bytes:
            raise ValueError(f"weights.bin has {len(weights)} bytes, not {self._table.weights_bytes}")
        header = WEIGHTS_MAGIC + bytes.fromhex(self.program.digest)
        if bytes(weights[: len(header)]) != header:
            raise ValueError("weights.bin was written for another program.json")

        def read(name: str, part: Part) -> torch.Tensor:
            stored = torch.from_numpy(np.array(weights[part.offset : part.offset + part.bytes]))
            return stored.view(TORCH[part.dtype]).reshape(part.shape).to(self._device)

        return read

    @property
    def _most(self) -> dict[Count, int]:
        """How many there can be of everything in a step."""
        limits = self.program.limits
        return {
            "rows": limits.max_batch_tokens,
            "outputs": limits.max_outputs,
            "sequences": limits.max_sequences,
            "tiles": limits.max_batch_tokens,
            "seals": self.program.pool_pages[1],
        }

    def _allocated(self) -> dict[str, torch.Tensor]:
        found = {}
        for name, buffer in self._table.buffers.items():
            if name in self._table.inputs:
                continue
            shape = (self._count(buffer) * buffer.width,)
            found[name] = torch.zeros(shape, dtype=TORCH[buffer.dtype], device=self._device)
        return found

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        """One step. Raises InferCompileError: IC521 if ``batch`` breaks the contract, nothing has run then;
        IC522 for a key or a value that is not a finite number, then the pages of the step's new tokens are
        worth nothing."""
        rows = rows_of(self.program, batch)
        draws = draws_of(rows, self.program.vocabulary)
        inputs = inputs_of(self.program, rows, self._table.tiles, draws.settings)
        outputs = inputs.counts["outputs"]
        told = inputs.counts["rows"] if self._tells_tokens else outputs
        captured = self._captured(inputs)
        counts = captured or inputs.counts
        drawn = not draws.greedy and not draws.altered
        lent = self._returned()
        self._transfer.send(inputs, counts)
        tokens = (self._replay if captured else self._forward)(counts, inputs.tile, drawn)
        scores, settings = self._logits(outputs), self._settings(counts)[:outputs]
        if draws.altered:
            scores = altered(scores, draws.steps)
            tokens = draw_among_largest(scores, settings)
        for host, device in lent:
            host[:] = device.cpu().numpy()
        self._check_finite()
        sampled = _host(tokens[:outputs]).astype(np.int32)
        unsettled = np.flatnonzero(sampled == UNSETTLED)
        if unsettled.size:
            sampled[unsettled] = _host(draw(scores[unsettled], settings[unsettled]))
        ends = np.cumsum([sequence.outputs for sequence in batch])[:-1]
        return StepResult(
            tokens=np.split(sampled, ends),
            logits=_host(self._logits(outputs)) if logits else None,
            hidden=_host(self._rows(self._table.hidden, told)) if hidden else None,
        )

    def prepared(
        self, batch: Sequence[SequenceStep], lines: Sequence[Line] | None = None
    ) -> Callable[[], None]:
        """What runs the greedy step of ``batch`` on the device, or ``lines`` of the table alone, as often as
        it is called: the inputs lie there, and nothing is handed back. For measurements; raises as ``step``
        does."""
        rows = rows_of(self.program, batch)
        draws = draws_of(rows, self.program.vocabulary)
        inputs = inputs_of(self.program, rows, self._table.tiles, draws.settings)
        counts = self._captured(inputs) or inputs.counts
        self._transfer.send(inputs, counts)

        def run() -> None:
            if lines is None:
                self._forward(counts, inputs.tile, drawn=False)
            self._buffers |= self._transfer.views(counts)
            for line in lines or ():
                self._run(line, counts, inputs.tile)

        return run

    def buffer(self, name: str) -> torch.Tensor:
        """One of the table's, where it lies."""
        return self._buffers[name]

    def pool(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the ``exact`` or ``packed`` pool: a writable view where they lie in the processor's
        memory, else a copy (``lend``)."""
        found = self._buffers.get(f"{name}_pool")
        if found is None:
            return np.empty(0, np.uint8)
        pool: NDArray[np.uint8] = found.view(torch.uint8).cpu().numpy()
        return pool

    def lend(self, name: str, size: int) -> NDArray[np.uint8]:
        """The first ``size`` bytes of a pool, as runtime/measure.py wants them."""
        found = self._buffers.get(f"{name}_pool")
        if found is None:
            return np.empty(0, np.uint8)
        device = found.view(torch.uint8)[:size]
        host = _host(device)
        self._lent.append((weakref.ref(host), device))
        return host

    def _returned(self) -> list[tuple[NDArray[np.uint8], torch.Tensor]]:
        """What is still lent, as it was changed, on the device again."""
        self._lent = [each for each in self._lent if each[0]() is not None]
        held = [(host, device) for reference, device in self._lent if (host := reference()) is not None]
        for host, device in held:
            device.copy_(torch.from_numpy(host))
        return held

    def close(self) -> None:
        """Free the engine; it cannot be used afterwards."""
        self._graphs.clear()
        self._buffers.clear()
        self._parts.clear()

    def _rows(self, name: str, count: int) -> torch.Tensor:
        width = self._table.buffers[name].width
        return self._buffers[name][: count * width].view(count, width)

    def _logits(self, outputs: int) -> torch.Tensor:
        return self._rows("logits", outputs)

    def _settings(self, counts: Mapping[Count, int]) -> torch.Tensor:
        return self._transfer.views(counts)["settings"].view(-1, SETTINGS)

    def _check_finite(self) -> None:
        if self._buffers["broken"].item():
            raise InferCompileError(
                Problem(
                    "IC522",
                    "a key or a value is not a finite number",
                    because="the model's arithmetic overflowed, or its weights are damaged",
                    fix="run verify on the bundle, and build it again if a file is damaged",
                )
            )

    def _captured(self, inputs: Inputs) -> dict[Count, int] | None:
        """What a captured step is filled up to that has room for these; None if there is none, or they are
        chunks of prompts."""
        need = max(inputs.counts[name] for name in ("rows", "outputs", "sequences", "tiles", "seals"))
        size = next((rows for rows in self._table.captured if rows >= need), None)
        if size is None or inputs.tile == self._table.tiles[-1]:
            return None
        return {name: min(size, most) for name, most in self._most.items()}

    def _replay(self, counts: Mapping[Count, int], tile: int, drawn: bool) -> torch.Tensor:
        """The step as a graph. The first of its kind runs without one, and so loads what it launches; the
        second is captured."""
        key = (counts["rows"], tile, drawn)
        if self._device.type != "cuda":
            return self._forward(counts, tile, drawn)
        if key not in self._graphs:
            self._graphs[key] = None
            return self._forward(counts, tile, drawn)
        graph = self._graphs[key]
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._scratch):
                self._forward(counts, tile, drawn)
            self._graphs[key] = graph
        graph.replay()
        return self._rows("sampled", counts["outputs"])[:, 0]

    def _forward(self, counts: Mapping[Count, int], tile: int, drawn: bool) -> torch.Tensor:
        """From embedding to tokens, on what the buffers hold."""
        self._buffers |= self._transfer.views(counts)
        self._buffers["broken"].zero_()
        for line in self._table.lines:
            self._run(line, counts, tile)
        outputs = counts["outputs"]
        if outputs:
            for line in self._table.head:
                self._run(line, counts, tile)
        sampled = self._rows("sampled", outputs)[:, 0]
        scores = self._logits(outputs)
        # Of equal numbers argmax takes the first.
        sampled.copy_(draw_among_largest(scores, self._settings(counts)) if drawn else scores.argmax(-1))
        return sampled

    def _run(self, line: Line, counts: Mapping[Count, int], tile: int) -> None:
        match line:
            case Launch():
                self._launch(line, counts)
            case Cases():
                size = tile if line.of == "tile" else counts[line.of]
                case = next(case for case in line.cases if case.most is None or size <= case.most)
                for launch in case.launches:
                    self._launch(launch, counts)
            case Matmul():
                rows = counts[line.of]
                weight = self._parts[line.weight]
                input = self._shaped(line.input, rows, weight.shape[1])
                output = self._shaped(line.output, rows, weight.shape[0])
                if weight.dtype is torch.float8_e4m3fn:
                    matmul_e4m3(input, weight, self._one, output)
                else:
                    bias = None if line.bias is None else self._parts[line.bias].reshape(-1)
                    matmul(input, weight, bias, output, line.add)

    def _shaped(self, name: str, rows: int, width: int) -> torch.Tensor:
        return self._buffers[name][: rows * width].view(rows, width)

    def _launch(self, launch: Launch, counts: Mapping[Count, int]) -> None:
        grid = tuple(
            size.programs(counts[size.of]) if isinstance(size, Blocks) else size for size in launch.grid
        )
        if 0 in grid:
            return
        arguments: dict[str, Any] = {name: self._tensor(tensor) for name, tensor in launch.tensors.items()}
        arguments |= {name: counts[count] for name, count in launch.counts.items()}
        self._kernels.launch(launch, grid, arguments | launch.numbers)

    def _tensor(self, named: str | View | None) -> torch.Tensor | None:
        if named is None:
            return None
        view = View(name=named) if isinstance(named, str) else named
        found = self._buffers.get(view.name)
        if found is None:
            found = self._parts[view.name]
        if view.dtype is not None:
            found = found.view(TORCH[view.dtype])
        return found.reshape(-1)[view.first :] if view.first else found


def _host(tensor: torch.Tensor) -> NDArray[Any]:
    """A copy in the processor's memory: the next step writes where the tensor lies."""
    copied: NDArray[Any] = tensor.to("cpu", copy=True).numpy()
    return copied
