"""A graph in given formats becomes a Program: tensors, activation rounding and buffers made concrete."""

from __future__ import annotations

from collections.abc import Iterable

from ..graph import operations as model
from ..graph.graph import Graph
from ..graph.latent import Unfolding
from ..graph.storage import (
    QUANTIZED,
    misfits,
    output_buffers,
    stored_format,
    stores_head,
    token_buffers,
)
from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats import program as concrete
from ..runtime.formats.kv import CacheLayout, shared_window
from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.program import Limits, Program, Tensor
from ..runtime.formats.weights import WeightFormat

INTO, BACK = "{}.into", "{}.back"
"""The tensors of a layer's experts."""
BIAS = "{}.bias"


def assemble(
    graph: Graph, weights: WeightFormat, cache: CacheLayout | LatentLayout, limits: Limits
) -> Program:
    """The Program of ``graph`` with its layers' matrices in ``weights``.

    Raises InferCompileError: IC280 for a model that the native engine does not run, IC281 for groups that do
    not divide a matrix.
    """
    _refuse(graph, weights, limits)
    window = shared_window(operation.window for operation in graph.attention)
    return Program(
        model=graph.name,
        architecture=graph.architecture,
        vocabulary=graph.vocabulary,
        buffers=token_buffers(graph, weights) | output_buffers(graph),
        tensors=tuple(tensor for operation in graph.operations for tensor in _tensors(operation, weights)),
        prologue=_lowered(graph.prologue, weights),
        layers=tuple(_lowered(layer, weights) for layer in graph.by_layer()),
        epilogue=_lowered(graph.epilogue, weights),
        cache=cache.model_copy(update={"window": window}),
        limits=limits,
        states=graph.states,
    )


def _refuse(graph: Graph, weights: WeightFormat, limits: Limits) -> None:
    because = graph.native_reason
    if not because and limits.overflow == "evict" and graph.latent is not None:
        because = "rotary keys of latent attention are not turned back when tokens before them are dropped"
    if because:
        raise InferCompileError(
            Problem("IC280", "the native engine does not run this model", graph.name, because)
        )
    problems = [
        Problem(
            "IC281",
            f"{matrix.name} has {matrix.cols} inputs, not a multiple of the group of {weights.group}",
            graph.name,
            "a scale belongs to a whole group",
            "choose a smaller group, or bf16",
        )
        for matrix in misfits(graph, weights)
    ]
    if problems:
        raise InferCompileError(problems)


def _tensors(operation: model.Operation, weights: WeightFormat) -> Iterable[Tensor]:
    """What ``operation`` reads; a tensor has the operation's name."""
    match operation:
        case model.Embed():
            rows, cols = operation.table.shape
            form = stored_format("table", weights)
            yield _tensor(operation.name, rows, cols, form, (operation.table,))
        case model.Norm() | model.HeadNorm():
            form = stored_format("vector", weights)
            yield _tensor(operation.name, 1, operation.weight.elements, form, (operation.weight,))
        case model.Linear():
            if operation.role != "head" or stores_head(operation.tied, weights):
                form = stored_format(operation.role, weights)
                yield _tensor(operation.name, operation.rows, operation.cols, form, operation.weights)
            if operation.biases:
                form = stored_format("vector", weights)
                yield _tensor(BIAS.format(operation.name), 1, operation.rows, form, operation.biases)
        case model.Score() | model.Route():
            rows, cols = operation.weight.shape
            form = stored_format("vector", weights)
            yield _tensor(operation.name, rows, cols, form, (operation.weight,))
            if isinstance(operation, model.Route) and operation.bias:
                form = stored_format("single", weights)
                yield _tensor(BIAS.format(operation.name), 1, rows, form, (operation.bias,))
        case model.Experts():
            form = stored_format("matrix", weights)
            into, back = 2 * operation.inner * operation.experts, operation.inputs * operation.experts
            yield _tensor(INTO.format(operation.name), into, operation.inputs, form, operation.into)
            yield _tensor(BACK.format(operation.name), back, operation.inner, form, operation.back)
        case _:
            pass


def _tensor(name: str, rows: int, cols: int, form: WeightFormat, sources: tuple[model.Source, ...]) -> Tensor:
    return Tensor(
        name=name, rows=rows, cols=cols, format=form, sources=tuple(source.name for source in sources)
    )


def _lowered(operations: Iterable[model.Operation], weights: WeightFormat) -> tuple[concrete.Operation, ...]:
    return tuple(lowered for operation in operations for lowered in _lower(operation, weights))


def _lower(operation: model.Operation, weights: WeightFormat) -> Iterable[concrete.Operation]:
    match operation:
        case model.Embed():
            yield concrete.Embed(table=operation.name, output=operation.output)
        case model.Norm():
            yield concrete.Norm(
                weight=operation.name,
                epsilon=operation.epsilon,
                input=operation.input,
                output=operation.output,
            )
        case model.HeadNorm():
            yield concrete.HeadNorm(
                weight=operation.name,
                epsilon=operation.epsilon,
                buffer=operation.buffer,
                first_head=operation.first_head,
                heads=operation.heads,
                head_dim=operation.head_dim,
            )
        case model.Linear(role="unfolding"):
            # Latent attention reads its matrix.
            return
        case model.Linear():
            yield from _linear(operation, weights)
        case model.Score():
            yield concrete.Score(weight=operation.name, input=operation.input, output=operation.output)
        case model.Route():
            yield concrete.Route(
                weight=operation.name,
                bias=BIAS.format(operation.name) if operation.bias else None,
                input=operation.input,
                output=operation.output,
                per_token=operation.experts_per_token,
                routing=operation.routing,
            )
        case model.Experts():
            yield from _experts(operation, stored_format("matrix", weights))
        case model.Rotary():
            yield concrete.Rotary(
                buffer=operation.buffer,
                first_head=operation.first_head,
                heads=operation.heads,
                head_dim=operation.head_dim,
                frequencies=operation.rotation.frequencies,
                scale=operation.rotation.scale,
            )
        case model.Attend():
            yield concrete.Attend(
                layer=operation.layer,
                input=operation.input,
                output=operation.output,
                heads=operation.heads,
                kv_heads=operation.kv_heads,
                head_dim=operation.head_dim,
                scale=operation.scale,
                window=operation.window,
            )
        case model.LatentAttend(unfolding=Unfolding() as unfolding):
            yield concrete.AttendLatent(
                layer=operation.layer,
                query=unfolding.query,
                latent=unfolding.latent,
                output=operation.output,
                unfold=unfolding.weight,
                heads=operation.heads,
                rank=operation.value_dim,
                nope=unfolding.nope_dim,
                rope=unfolding.rope_dim,
                value=operation.head_value_dim,
                scale=unfolding.scale,
                frequencies=unfolding.rotation.frequencies,
                rotary_scale=unfolding.rotation.scale,
                neighbours=unfolding.neighbours,
            )
        case model.Feed():
            yield concrete.Feed(output=operation.output, first=operation.first)
        case model.Place():
            yield concrete.Place(input=operation.input, output=operation.output, first=operation.first)
        case model.Activate():
            yield concrete.Activate(input=operation.input, output=operation.output)
        case model.Gate():
            yield concrete.Gate(
                input=operation.input,
                output=operation.output,
                width=operation.width,
                portion=operation.portion,
            )
        case model.Select():
            yield concrete.Select(input=operation.input, output=operation.output)


def _rounded(source: str, cols: int, form: WeightFormat) -> tuple[str, tuple[concrete.Quantize, ...]]:
    """What a product with a matrix of ``cols`` inputs reads of ``source``, and what has to run before it."""
    if form.activation == "none":
        return source, ()
    quantize = concrete.Quantize(
        input=source, output=QUANTIZED, group=form.scale_group(cols), to=form.activation
    )
    return QUANTIZED, (quantize,)


def _experts(operation: model.Experts, form: WeightFormat) -> Iterable[concrete.Operation]:
    source, rounding = _rounded(operation.input, operation.inputs, form)
    yield from rounding
    yield concrete.ExpertLinear(
        weight=INTO.format(operation.name),
        routes=operation.routes,
        input=source,
        output=operation.output,
        rows=2 * operation.inner,
        per_token=operation.experts_per_token,
        combine=False,
    )
    yield concrete.Gate(input=operation.output, output=operation.gated, width=operation.inner)
    source, rounding = _rounded(operation.gated, operation.inner, form)
    yield from rounding
    yield concrete.ExpertLinear(
        weight=BACK.format(operation.name),
        routes=operation.routes,
        input=source,
        output=operation.sum,
        rows=operation.inputs,
        per_token=operation.experts_per_token,
        combine=True,
    )


def _linear(operation: model.Linear, weights: WeightFormat) -> Iterable[concrete.Operation]:
    form = stored_format(operation.role, weights)
    source, rounding = _rounded(operation.input, operation.cols, form)
    yield from rounding
    shared = operation.role == "head" and not stores_head(operation.tied, weights)
    yield concrete.Linear(
        weight="embed" if shared else operation.name,
        bias=BIAS.format(operation.name) if operation.biases else None,
        input=source,
        output=operation.output,
        add=operation.add,
        first=operation.first,
    )
