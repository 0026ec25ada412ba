"""A mixture of experts: the router, the experts, and those that every token passes through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..runtime.formats.program import Routing
from .experts import Experts, Route, Score
from .fields import Fields
from .layer import Layer
from .operations import Operation

NAMES = ("gate_proj", "up_proj", "down_proj")
PORTION = "portion"
"""How much of the shared expert counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureShape:
    """``experts`` of ``width``, ``per_token`` of them for each token.

    ``router`` and ``corrections`` are tensors under ``module``: the matrix, and vectors of an entry per
    expert. ``names`` are the modules of an expert, the last leads back. ``inputs``: what experts read, where
    it is not the hidden size. ``shared``: the module that every token passes through, of ``shared_width``;
    ``shared_bias`` is for one without a gate, ``shared_gate`` the module of one row that tells how much of it
    counts. ``routing``: how experts are chosen, by the one correction if there is one; None where the router
    is only counted.
    """

    experts: int
    per_token: int
    width: int
    module: str = "mlp"
    router: str = "gate.weight"
    corrections: tuple[str, ...] = ()
    names: tuple[str, ...] = NAMES
    inputs: int | None = None
    shared: str = ""
    shared_width: int = 0
    shared_names: tuple[str, ...] | None = None
    shared_bias: bool = False
    shared_gate: str = ""
    activation: str = "silu"
    routing: Routing | None = None


def chosen(fields: Fields, experts: str, key: str = "num_experts_per_tok") -> int:
    """The experts that a token passes through, under ``key``: of those under ``experts``, at most all."""
    per_token, among = fields.integer(key), fields.integer(experts)
    if fields.sound(key, experts) and per_token > among:
        fields.contradiction(
            f"{key} {per_token} is more than {experts} {among}", "a token passes through some of the experts"
        )
    return per_token


def mix(layer: Layer, shape: MixtureShape) -> Iterator[Operation]:
    """The operations from ``normed`` to the sum with ``x``, for experts that are a tensor each."""
    yield route(layer, shape)
    inputs = shape.inputs or layer.hidden
    sizes = [(shape.width, inputs)] * (len(shape.names) - 1) + [(inputs, shape.width)]
    stem = f"{shape.module}.experts.{{}}"
    yield Experts(
        name=layer.name("mlp.experts"),
        layer=layer.index,
        experts=shape.experts,
        experts_per_token=shape.per_token,
        inputs=inputs,
        inner=shape.width,
        weights=tuple(
            layer.source(f"{stem}.{name}.weight", shape.experts, *size)
            for name, size in zip(shape.names, sizes, strict=True)
        ),
        output="expert",
    )
    yield from share(layer, shape)


def mix_stacked(
    layer: Layer,
    shape: MixtureShape,
    tensors: tuple[tuple[str, tuple[int, int]], ...],
    biases: tuple[tuple[str, int], ...] = (),
) -> Iterator[Operation]:
    """The same for experts that lie in one tensor: names under the layer, and shapes of one expert."""
    yield route(layer, shape)
    yield Experts(
        name=layer.name("mlp.experts"),
        layer=layer.index,
        experts=shape.experts,
        experts_per_token=shape.per_token,
        inputs=shape.inputs or layer.hidden,
        inner=shape.width,
        weights=tuple(layer.source(name, shape.experts, *size) for name, size in tensors),
        biases=tuple(layer.source(name, shape.experts, size) for name, size in biases),
        output="expert",
    )
    yield from share(layer, shape)


def route(layer: Layer, shape: MixtureShape) -> Operation:
    """The router."""
    module = shape.module
    if shape.routing is None:
        return layer.control(
            "mlp.router",
            {f"{module}.{shape.router}": (shape.experts, layer.hidden)},
            {f"{module}.{name}": (shape.experts,) for name in shape.corrections},
        )
    biases = [layer.source(f"{module}.{name}", shape.experts) for name in shape.corrections]
    return Route(
        name=layer.name("mlp.router"),
        layer=layer.index,
        weight=layer.source(f"{module}.{shape.router}", shape.experts, layer.hidden),
        bias=biases[0] if biases else None,
        experts_per_token=shape.per_token,
        routing=shape.routing,
    )


def share(layer: Layer, shape: MixtureShape) -> Iterator[Operation]:
    """The expert that every token passes through, if there is one."""
    if not shape.shared:
        return
    module, portion = shape.shared, None
    names = shape.shared_names or shape.names
    if shape.shared_gate:
        portion = PORTION
        weight = layer.source(f"{shape.shared_gate}.weight", 1, layer.hidden)
        yield Score(name=layer.name("mlp.shared.portion"), layer=layer.index, weight=weight, output=portion)
    if len(names) == 2 and names[0] == "up_proj":
        yield from layer.plain(
            "mlp.shared", module, shape.shared_width, (names[0], names[1]), shape.shared_bias
        )
    else:
        yield from layer.gated("mlp.shared", module, shape.shared_width, shape.activation, names, portion)
