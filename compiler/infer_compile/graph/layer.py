"""Writing the operations of one layer: names, sources and shapes that most architectures share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from .control import Control
from .operations import Gate, Linear, Norm, Operation
from .source import Source


@dataclass(frozen=True, slots=True)
class Layer:
    """Layer ``index``, whose tensors' names begin with ``prefix`` in the checkpoint."""

    index: int
    prefix: str
    hidden: int
    epsilon: float

    def source(self, tensor: str, *shape: int) -> Source:
        return Source(f"{self.prefix}{tensor}", shape)

    def name(self, part: str) -> str:
        return f"layers.{self.index}.{part}"

    def norm(
        self, part: str, module: str, width: int | None = None, input: str = "x", output: str = "normed"
    ) -> Norm:
        return Norm(
            name=self.name(part),
            layer=self.index,
            weight=self.source(f"{module}.weight", width or self.hidden),
            epsilon=self.epsilon,
            input=input,
            output=output,
        )

    def linear(
        self,
        part: str,
        modules: Mapping[str, int],
        cols: int,
        *,
        bias: bool = False,
        input: str = "normed",
        output: str = "x",
        add: bool = False,
        role: Literal["matrix", "unfolding"] = "matrix",
    ) -> Linear:
        """A product with ``modules``: each one's outputs, stacked in this order."""
        return Linear(
            name=self.name(part),
            layer=self.index,
            weights=tuple(self.source(f"{module}.weight", rows, cols) for module, rows in modules.items()),
            biases=tuple(self.source(f"{module}.bias", rows) for module, rows in modules.items())
            if bias
            else (),
            input=input,
            output=output,
            add=add,
            role=role,
        )

    def control(
        self,
        part: str,
        weights: Mapping[str, tuple[int, int]] | None = None,
        vectors: Mapping[str, tuple[int, ...]] | None = None,
    ) -> Control:
        """Small matrices and vectors by the names of their tensors."""
        return Control(
            name=self.name(part),
            layer=self.index,
            weights=tuple(self.source(tensor, *shape) for tensor, shape in (weights or {}).items()),
            vectors=tuple(self.source(tensor, *shape) for tensor, shape in (vectors or {}).items()),
        )

    def gated(
        self,
        part: str,
        module: str,
        width: int,
        activation: str,
        names: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj"),
        portion: str | None = None,
    ) -> Iterator[Operation]:
        """A gated MLP of ``width``; ``names`` are its modules, the last leads back. ``portion`` holds how
        much of it counts."""
        into, back = names[:-1], names[-1]
        rows = {f"{module}.{name}": 2 * width // len(into) for name in into}
        yield self.linear(f"{part}.gate_up", rows, self.hidden, output="gate_up")
        yield Gate(
            name=self.name(f"{part}.gate"),
            layer=self.index,
            activation=activation,
            input="gate_up",
            output="gated",
            width=width,
            portion=portion,
        )
        yield self.linear(f"{part}.down", {f"{module}.{back}": self.hidden}, width, input="gated", add=True)

    def plain(
        self, part: str, module: str, width: int, names: tuple[str, str], bias: bool
    ) -> Iterator[Operation]:
        """An MLP without a gate: in, an activation, and back."""
        yield self.linear(
            f"{part}.up", {f"{module}.{names[0]}": width}, self.hidden, bias=bias, output="gated"
        )
        yield self.linear(
            f"{part}.down", {f"{module}.{names[1]}": self.hidden}, width, bias=bias, input="gated", add=True
        )
