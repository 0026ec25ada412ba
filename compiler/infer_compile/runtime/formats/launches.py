"""The step of a GPU engine as a table: which kernels are launched, on what, with which constants, in order.

Code generation writes it (``engine/step.json``); the engine allocates the buffers, launches line by line,
and knows nothing else of the model. Every token of a step owns a row of the buffers counted in ``rows``,
every row of logits one of those counted in ``outputs``. Sequences are cut into tiles of neighbouring tokens
for attention.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Count = Literal["rows", "outputs", "sequences", "tiles", "seals"]
"""What differs from step to step."""
Dtype = Literal["f64", "f32", "f16", "bf16", "e4m3", "int8", "int32"]
BYTES: dict[Dtype, int] = {"f64": 8, "f32": 4, "f16": 2, "bf16": 2, "e4m3": 1, "int8": 1, "int32": 4}
ALIGNMENT = 16
"""Bytes that every pointer of a launch is a multiple of; numbers that are multiples of it are told to be."""
SETTINGS = 5
"""Numbers that a row of logits is drawn with: temperature, top_k, top_p, min_p, and the uniform number."""


WEIGHTS_MAGIC = b"infer-compile\0\0\1"
"""What the weights file begins with, before the digest of its program."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Buffer(_Frozen):
    """``width`` numbers for each of the most that there can be of ``per`` in a step; or ``width`` numbers."""

    dtype: Dtype
    width: int
    per: Count | None = None


class Part(_Frozen):
    """Numbers in the weights file, from byte ``offset`` on."""

    dtype: Dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        return BYTES[self.dtype] * prod(self.shape)


class Blocks(_Frozen):
    """As many programs as cover ``each`` times what there is ``of`` in a step, ``size`` at a time, and
    ``more``; at most one for each of these."""

    of: Count
    size: int = 1
    each: int = 1
    more: int = 0

    def programs(self, count: int) -> int:
        """For ``count`` of it."""
        whole = count * self.each
        return min(whole, -(-whole // self.size) + self.more)


class View(_Frozen):
    """A buffer, or a part of the weights, from number ``first`` on, perhaps as numbers of another type."""

    name: str
    first: int = 0
    dtype: Dtype | None = None


class Launch(_Frozen):
    """One kernel: ``file.function`` of kernels/cuda. It is left out where its grid is empty.

    ``tensors`` names a buffer or a part of the weights for each pointer, or None where the constants say that
    it is not read; ``counts`` and ``numbers`` are its scalars.
    """

    kind: Literal["launch"] = "launch"
    kernel: str
    grid: tuple[int | Blocks, ...]
    tensors: dict[str, str | View | None]
    counts: dict[str, Count] = {}
    numbers: dict[str, int | float] = {}
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 1
    registers: int = 255
    """Most of a thread."""

    @property
    def aligned(self) -> list[str]:
        """The numbers of whole blocks of ``ALIGNMENT``: where addresses are reckoned from them, a kernel that
        knows reads wide."""
        whole = (name for name, each in self.numbers.items() if not each % ALIGNMENT)
        return sorted(name for name in whole if isinstance(self.numbers[name], int))

    @property
    def options(self) -> dict[str, int]:
        """In Triton's words."""
        return {"num_warps": self.warps, "num_stages": self.stages, "maxnreg": self.registers}

    @field_validator("constants", mode="before")
    @classmethod
    def _as_tuples(cls, constants: dict[str, Any]) -> dict[str, Any]:
        """JSON has no tuples, and kernels take no lists."""
        return {name: _tuples(value) for name, value in constants.items()}


class Cubin(_Frozen):
    """A kernel compiled for one architecture: the function ``entry`` of ``file``. A launch hands over its
    ``arguments`` in this order, to blocks of so many ``warps``, and asks for ``shared`` bytes of shared
    memory."""

    file: str
    entry: str
    arguments: tuple[str, ...]
    warps: int
    shared: int


class Cubins(_Frozen):
    """The kernels of a step compiled for compute capability ``capability`` (89 is 8.9), each under the digest
    of what it was compiled for (``StepTable.variant``)."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    capability: int
    kernels: dict[str, Cubin]


class Case(_Frozen):
    """What runs for up to ``most``; None for any number."""

    most: int | None
    launches: tuple[Launch, ...]


class Cases(_Frozen):
    """The first case that the step's number ``of`` something fits; ``tile`` is the tokens of a tile."""

    kind: Literal["cases"] = "cases"
    of: Count | Literal["tile"]
    cases: tuple[Case, ...]


class Matmul(_Frozen):
    """``output = input @ weight.T + bias``, or added to ``output``, by the library: bf16 numbers, or e4m3
    ones, whose product takes no bias and is not added."""

    kind: Literal["matmul"] = "matmul"
    of: Count
    input: str
    weight: str
    bias: str | None
    output: str
    add: bool


Line = Annotated[Launch | Cases | Matmul, Field(discriminator="kind")]


class StepTable(_Frozen):
    """``lines`` run for every row; ``head``, from the selection of output rows on, where there are any.
    ``hidden`` names what the head reads, before any rounding."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    program: str
    """The digest of the Program that this is the step of."""
    captured: tuple[int, ...]
    """Rows of the steps that are captured as graphs, ascending."""
    tiles: tuple[int, ...]
    """Tokens of a tile, ascending: a step takes the first that holds the new tokens of each sequence, else
    the last. Those of several tokens know of trees."""
    inputs: tuple[str, ...]
    """The buffers that the caller fills: what the step is. They reach the device in one transfer."""
    hidden: str
    weights_bytes: int
    weights: dict[str, Part]
    buffers: dict[str, Buffer]
    lines: tuple[Line, ...]
    head: tuple[Line, ...]

    def launches(self) -> Iterator[Launch]:
        """Every launch of every case."""
        for line in (*self.lines, *self.head):
            if isinstance(line, Launch):
                yield line
            elif isinstance(line, Cases):
                for case in line.cases:
                    yield from case.launches

    def dtype(self, tensor: str | View) -> Dtype:
        """Of what a launch reads or writes."""
        if isinstance(tensor, View):
            return tensor.dtype or self.dtype(tensor.name)
        return (self.buffers.get(tensor) or self.weights[tensor]).dtype

    def variant(self, launch: Launch) -> str:
        """sha256 of all of ``launch`` that a kernel is compiled for: constants and types of arguments."""
        types = {name: None if each is None else self.dtype(each) for name, each in launch.tensors.items()}
        types |= {
            name: "f32" if isinstance(each, float) else "int32" for name, each in launch.numbers.items()
        }
        parts = [
            launch.kernel,
            launch.constants,
            types,
            launch.aligned,
            sorted(launch.counts),
            launch.options,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """One line for each line of the table, buffer and part."""
        fields = self.model_dump(mode="json", by_alias=True)
        return "{\n" + ",\n".join(f" {json.dumps(name)}: {_text(fields[name])}" for name in fields) + "\n}\n"

    @classmethod
    def from_json(cls, text: str) -> StepTable:
        return cls.model_validate_json(text)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(each) for each in value) if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    if isinstance(value, dict):
        inner = [f"  {json.dumps(key)}: {json.dumps(each)}" for key, each in value.items()]
        return "{\n" + ",\n".join(inner) + "\n }"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(each)}" for each in value) + "\n ]"
    return json.dumps(value)
