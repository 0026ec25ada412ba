"""How a model is spread over devices: integers, or equally long arrays of them for many candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = int | NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Layout:
    """``tensor`` devices share each layer, ``pipeline`` groups of them share the layers, ``data`` copies of
    the attention serve each its own sequences.

    ``expert``: in how many parts whole experts are dealt over the ``tensor x data`` devices of a pipeline
    stage; within a part an expert is split as a matrix is. With ``expert`` 1 and ``data`` above 1 each copy
    has all experts. ``per_node`` devices are in a machine.
    """

    tensor: Ints = 1
    pipeline: Ints = 1
    expert: Ints = 1
    data: Ints = 1
    per_node: int = 8

    @property
    def devices(self) -> Ints:
        return self.tensor * self.pipeline * self.data

    @property
    def stage(self) -> Ints:
        """Devices of a pipeline stage."""
        return self.tensor * self.data
