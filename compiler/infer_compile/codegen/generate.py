"""Program to C++: one source file specialised to the model, and the kernels it includes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jinja2

from ..catalog.resources import folder
from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.program import (
    Activate,
    Attend,
    Embed,
    Feed,
    Gate,
    HeadNorm,
    Linear,
    Norm,
    Operation,
    Place,
    Program,
    Quantize,
    Rotary,
    Route,
    Select,
    Tensor,
)
from ..runtime.kv.rotation import unpack_signs
from .blocks import WeightsLayout
from .cache import cache_view

SOURCE = "engine.cpp"
VECTOR = 16
"""Widths are multiples of the longest vector, so that no kernel has a ragged end."""
ON_GPUS = "target an NVIDIA GPU, whose kernels do this, or choose another engine"
NO_PRODUCT = frozenset({"fp8"})
"""Weight formats that no kernel multiplies."""


def generate(program: Program) -> dict[str, str]:
    """The sources of the engine, file name to text: ``engine.cpp`` and ``kernels/*``.

    Raises InferCompileError: IC310 for what the CPU kernels do not take: a shape, a weight format,
    a mixture of experts.
    """
    if problems := lacking(program):
        raise InferCompileError(problems)
    kernels = sorted((folder("kernels") / "cpu").iterdir())
    sources = {f"kernels/{path.name}": path.read_text() for path in kernels if path.suffix in (".h", ".hpp")}
    return {SOURCE: _render(program)} | sources


def lacking(program: Program) -> list[Problem]:
    """IC310 for each thing of ``program`` that there is no kernel for."""
    problems, on_gpus = [], []
    for name, width in program.buffers.items():
        if width % VECTOR and name != "logits":
            problems.append(f"the width of {name}, {width}, is not a multiple of {VECTOR}")
    if isinstance(program.cache, LatentLayout):
        on_gpus.append("there is no kernel for latent attention")
    elif program.cache.head_dim % 32:
        problems.append(f"there is no attention kernel for heads of {program.cache.head_dim} elements")
    if program.cache.page_tokens % 32:
        problems.append(f"a page of {program.cache.page_tokens} tokens is not a multiple of 32")
    if any(isinstance(operation, Route) for operation in program.operations):
        on_gpus.append("there are no kernels for mixtures of experts")
    for name in sorted({tensor.format.name for tensor in program.tensors} & NO_PRODUCT):
        problems.append(f"there is no product with weights in {name}")
    fixes = dict.fromkeys(on_gpus, ON_GPUS) | dict.fromkeys(problems, "choose another engine")
    return [Problem("IC310", text, program.model, fix=fix) for text, fix in fixes.items()]


@dataclass
class _Run:
    """Consecutive layers of one shape: one function, and a table of where each layer's weights lie."""

    first: int
    operations: tuple[Operation, ...]
    steps: list[dict[str, Any]]
    fields: list[str]
    rows: list[list[int]] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first + len(self.rows) - 1


class _View:
    """What the template sees of one operation: the Program's fields and the shapes behind its names."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.tensors: Mapping[str, Tensor] = {tensor.name: tensor for tensor in program.tensors}
        self.rotaries: list[Rotary] = []
        for operation in program.operations:
            if isinstance(operation, Rotary) and not any(_same_angles(operation, r) for r in self.rotaries):
                self.rotaries.append(operation)
        self.products = {op.weight for op in program.operations if isinstance(op, Linear)}

    def steps(self, operations: Iterable[Operation], rows: str, prefix: str = "") -> list[dict[str, Any]]:
        """Statements in order; operations on single rows are gathered into common loops."""
        steps: list[dict[str, Any]] = []
        widths: dict[str, int] = {}
        for operation in operations:
            if isinstance(operation, Select):
                rows = "outputs"
            view = operation.model_dump()
            match operation:
                case Linear():
                    steps.append(self._linear(operation, view, rows, widths, prefix))
                    continue
                case Attend():
                    turn = self.program.turns.get(operation.layer)
                    steps.append(view | {"table": None if turn is None else self._angles(turn)})
                    continue
                case Embed():
                    view |= {"cols": self.tensors[operation.table].cols}
                    view |= {"blocked": operation.table in self.products}
                case Feed():
                    view |= {"width": self.program.buffers[operation.output]}
                case Norm() | Select() | Place() | Activate():
                    view |= {"width": self.program.buffers[operation.input]}
                case Quantize():
                    widths[operation.output] = self.program.buffers[operation.input]
                    view |= {"width": widths[operation.output]}
                case Rotary():
                    view |= {"table": self._angles(operation)}
                case Gate() | HeadNorm():
                    pass
            for key in ("weight", "table"):
                if isinstance(view.get(key), str):
                    view[key] = view[key].removeprefix(prefix)
            if not steps or steps[-1]["kind"] != "rows" or steps[-1]["rows"] != rows:
                steps.append({"kind": "rows", "rows": rows, "operations": []})
            steps[-1]["operations"].append(view)
        return steps

    def _angles(self, rotary: Rotary) -> int:
        return next(i for i, other in enumerate(self.rotaries) if _same_angles(rotary, other))

    def _linear(
        self, operation: Linear, view: dict[str, Any], rows: str, widths: Mapping[str, int], prefix: str
    ) -> dict[str, Any]:
        tensor = self.tensors[operation.weight]
        form = tensor.format
        if form.activation == "int8":
            width = widths[operation.input]
            product, shape = "int", [form.bits, tensor.rows, tensor.cols, form.group]
            operand = operation.input
        else:
            width = self.program.buffers[operation.input]
            product, shape = "bf16", [tensor.rows, tensor.cols]
            operand = f"{operation.input}.data(), {operation.input}.width"
        if width != tensor.cols:
            raise ValueError(f"{operation.weight} takes {tensor.cols} inputs, {operation.input} has {width}")
        bias = operation.bias.removeprefix(prefix) if operation.bias else None
        weight = operation.weight.removeprefix(prefix)
        return view | {
            "rows": rows,
            "product": product,
            "shape": shape,
            "operand": operand,
            "weight": weight,
            "bias": bias,
        }

    def runs(self, layout: WeightsLayout) -> list[_Run]:
        runs: list[_Run] = []
        for index, operations in enumerate(self.program.layers):
            prefix = f"layers.{index}."
            tensors = [tensor for tensor in self.program.tensors if tensor.name.startswith(prefix)]
            steps = self.steps(operations, "rows", prefix)
            cache = [op.layer for op in operations if isinstance(op, Attend)]
            for step in steps:
                step.pop("layer", None)
            fields = [tensor.name.removeprefix(prefix).replace(".", "_") for tensor in tensors]
            if not runs or runs[-1].steps != steps or runs[-1].fields != fields:
                runs.append(_Run(index, operations, steps, fields))
            runs[-1].rows.append([*cache, *(layout.offsets[tensor.name] for tensor in tensors)])
        return runs


def _same_angles(a: Rotary, b: Rotary) -> bool:
    return (a.frequencies, a.scale) == (b.frequencies, b.scale)


def _render(program: Program) -> str:
    view = _View(program)
    layout = WeightsLayout(program)
    quantize = [op for op in program.operations if isinstance(op, Quantize)]
    names = sorted({op.output for op in quantize})
    quantized = [
        (
            name,
            max(program.buffers[op.input] for op in quantize if op.output == name),
            min(op.group for op in quantize if op.output == name),
            "kMaxTokens",
        )
        for name in names
    ]
    buffers = [
        (name, width, "kMaxOutputs" if name in program.selected else "kMaxTokens")
        for name, width in sorted(program.buffers.items())
        if name not in names
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder("templates") / "engine"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["replace"] = lambda text, old, new: str(text).replace(old, new)
    signs = unpack_signs(program.cache.signs, program.cache.head_dim) if program.cache.compressed else None
    return environment.get_template("cpu.cpp.j2").render(
        program=program,
        weights_bytes=layout.bytes,
        offsets=layout.offsets,
        heads=next((op.heads for op in program.operations if isinstance(op, Attend)), 1),
        cache=cache_view(program.cache, layout.tables),
        window=program.cache.window or 0,
        evicts=program.limits.overflow == "evict",
        signs=_floats(signs) if signs is not None else ["1.0f"],
        rotaries=[
            {"frequencies": r.frequencies, "head_dim": r.head_dim, "scale": r.scale} for r in view.rotaries
        ],
        buffers=buffers,
        quantized=quantized,
        runs=view.runs(layout),
        prologue=view.steps(program.prologue, "rows"),
        epilogue=view.steps(program.epilogue, "rows"),
        hidden={"name": program.hidden, "width": program.buffers[program.hidden]},
    )


def _floats(values: Iterable[float]) -> list[str]:
    return [f"{float(value)!r}f" for value in values]
