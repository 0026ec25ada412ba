"""The inputs of a step on their way to the device: side by side, in one transfer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.launches import ALIGNMENT, BYTES, Count, Dtype, StepTable
from .inputs import Inputs, filler

NUMPY: dict[Dtype, type[np.generic]] = {"f64": np.float64, "f32": np.float32, "int32": np.int32}
"""The types that a step is told in."""
TORCH: dict[Dtype, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int32": torch.int32,
}


class Transfer:
    """Holds the inputs that ``table`` names, on the device and as they are sent there, for steps of at most
    ``most`` of everything.

    Where an input lies depends on a step's counts alone: a captured step finds it where it was when it was
    captured, and no more is sent than there is.
    """

    def __init__(self, table: StepTable, most: Mapping[Count, int], device: torch.device) -> None:
        self._buffers = {name: table.buffers[name] for name in table.inputs}
        size = max(end for _, _, end in self._places(most))
        pinned = device.type == "cuda"
        self._there = torch.zeros(size, dtype=torch.uint8, device=device)
        self._here = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
        self._sent = torch.cuda.Event() if pinned else None

    def send(self, inputs: Inputs, counts: Mapping[Count, int]) -> None:
        """Rows beyond ``inputs`` up to ``counts`` are nobody's."""
        if self._sent is not None:
            # The device may still be reading what the last step was told.
            self._sent.synchronize()
        memory, last = self._here.numpy(), 0
        for name, first, last in self._places(counts):
            buffer = self._buffers[name]
            part: NDArray[Any] = memory[first:last].view(NUMPY[buffer.dtype])
            if name in inputs.tables:
                # What is behind a sequence's pages nobody reads.
                for row, held in enumerate(inputs.tables[name]):
                    part[row * buffer.width :][: len(held)] = held
            else:
                array = inputs.arrays[name]
                part[: array.size] = array.reshape(-1)
                part[array.size :] = filler(name)
        self._there[:last].copy_(self._here[:last], non_blocking=True)
        if self._sent is not None:
            self._sent.record()

    def views(self, counts: Mapping[Count, int]) -> dict[str, torch.Tensor]:
        """On the device, flat."""
        return {
            name: self._there[first:last].view(TORCH[self._buffers[name].dtype])
            for name, first, last in self._places(counts)
        }

    def _places(self, counts: Mapping[Count, int]) -> Iterator[tuple[str, int, int]]:
        """Of each input the first byte, and the one behind its last."""
        last = 0
        for name, buffer in self._buffers.items():
            if buffer.per is None:
                raise ValueError(f"{name} is counted in nothing")
            first = -(-last // ALIGNMENT) * ALIGNMENT
            last = first + counts[buffer.per] * buffer.width * BYTES[buffer.dtype]
            yield name, first, last
