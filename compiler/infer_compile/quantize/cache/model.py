"""A Program's arithmetic in float32, many tokens at once, with an attention that can be replaced.

The reference engine runs what a bundle runs, step by step and in float64; this runs whole texts (teacher
forcing) as fast as float32 goes, layer by layer, so that a model's weights need not fit into memory at once.
Import it after ``requirement.require_torch()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from ...runtime.engines.mixture import expert_products, routed
from ...runtime.engines.rounding import rounded
from ...runtime.formats.program import (
    Attend,
    Embed,
    ExpertLinear,
    Gate,
    HeadNorm,
    Linear,
    Norm,
    Operation,
    Program,
    Quantize,
    Rotary,
    Route,
    Score,
    Select,
    Tensor,
)
from ..checkpoint import Checkpoint

Load = Callable[[Tensor], NDArray[np.float32]]
"""A tensor's numbers: float32 ``[rows, cols]``; ``quantize.read.reference_loader`` gives those of a written
model folder, ``bf16_loader`` those of the checkpoint it is made from."""

CHUNK_TOKENS = 4096
"""Tokens of a layer's buffers that are held at once (at least one sequence)."""
_QUERY_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Heads:
    """What one layer's attention is given for a few sequences of ``n`` tokens at positions 0 to n - 1.

    ``queries`` [sequences, heads, n, head_dim] and ``keys`` [sequences, kv_heads, n, head_dim] are rotated
    already; ``values`` are shaped as keys. Query heads of one key-value head are neighbours. ``sequences``
    says which of the run's sequences these are.
    """

    layer: int
    sequences: slice
    queries: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    scale: float
    window: int | None

    def visible(self, first: int, last: int) -> torch.Tensor:
        """Whether queries ``first`` to ``last - 1`` see the tokens before ``last``, ``[queries, last]``."""
        queries, keys = torch.arange(first, last)[:, None], torch.arange(last)[None]
        seen = keys <= queries
        return seen if self.window is None else seen & (keys > queries - self.window)


Hook = Callable[[Heads], torch.Tensor]
"""One layer's attention: ``[sequences, heads, n, head_dim]``, before the output projection."""


def exact(heads: Heads) -> torch.Tensor:
    """Attention as the model has it, in float32."""
    group = heads.queries.shape[1] // heads.keys.shape[1]
    keys = heads.keys.repeat_interleave(group, dim=1)
    values = heads.values.repeat_interleave(group, dim=1)
    out = torch.empty_like(heads.queries)
    for first in range(0, heads.queries.shape[2], _QUERY_BLOCK):
        last = min(first + _QUERY_BLOCK, heads.queries.shape[2])
        out[:, :, first:last] = torch.nn.functional.scaled_dot_product_attention(
            heads.queries[:, :, first:last],
            keys[:, :, :last],
            values[:, :, :last],
            attn_mask=heads.visible(first, last),
            scale=heads.scale,
        )
    return out


def bf16_loader(checkpoint: Checkpoint) -> Load:
    """Reads a Program's tensors from the checkpoint that it was made from, rounded to bf16."""

    def load(tensor: Tensor) -> NDArray[np.float32]:
        parts = [checkpoint.read(name) for name in tensor.sources]
        if tensor.rows == 1:
            parts = [part.reshape(1, -1) for part in parts]
        whole = np.concatenate(parts, axis=1 if tensor.rows == 1 else 0)
        return whole.astype(ml_dtypes.bfloat16).astype(np.float32)

    return load


class Model:
    """Runs ``program`` with the weights that ``load`` gives.

    The state between layers is the residual stream, float32 ``[sequences, n, hidden]``. With ``resident``
    weights are kept in memory once they were used, else those of one layer at a time. Gradients flow where
    the caller has not switched them off (``torch.no_grad()``); rounding of activations passes them on.

        states = model.run(model.embed(tokens), hook)
        logits = model.logits(states[:, 100:200])
    """

    def __init__(self, program: Program, load: Load, *, resident: bool = True) -> None:
        self.program = program
        self._load = load
        self._resident = resident
        self._tensors = {tensor.name: tensor for tensor in program.tensors}
        self._weights: dict[str, torch.Tensor] = {}
        self._part: int | None = None

    @property
    def layers(self) -> int:
        return len(self.program.layers)

    def embed(self, tokens: NDArray[np.int32] | torch.Tensor) -> torch.Tensor:
        """``tokens`` [sequences, n] to the state before the first layer."""
        self._enter(None)
        values: dict[str, torch.Tensor] = {"tokens": torch.as_tensor(tokens, dtype=torch.int64)}
        for operation in self.program.prologue:
            self._run(operation, values, exact, slice(0, len(tokens)))
        return values[self.stream]

    def run(
        self, states: torch.Tensor, hook: Hook = exact, *, first: int = 0, last: int | None = None
    ) -> torch.Tensor:
        """The state after layers ``first`` to ``last - 1`` (by default all that follow), ``hook`` called once
        for each layer and chunk of sequences, layer by layer. ``states`` is left as it is."""
        for layer in range(first, self.layers if last is None else last):
            states = self.layer(layer, states, hook)
        return states

    def layer(self, index: int, states: torch.Tensor, hook: Hook = exact, *, start: int = 0) -> torch.Tensor:
        """The state after layer ``index``. The sequences begin at position ``start``, which rotary sees:
        the model's own arithmetic does not depend on it, keys and queries do."""
        self._enter(index)
        step = max(1, CHUNK_TOKENS // states.shape[1])
        parts = []
        for begin in range(0, len(states), step):
            own = slice(begin, min(begin + step, len(states)))
            values = {self.stream: states[own]}
            for operation in self.program.layers[index]:
                self._run(operation, values, hook, own, start)
            parts.append(values[self.stream])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """``states`` [..., hidden] after the last layer to ``[..., vocabulary]``."""
        self._enter(None)
        rows = states.reshape(1, -1, states.shape[-1])
        values = {self.stream: rows}
        for operation in self.program.epilogue:
            self._run(operation, values, exact, slice(0, 1))
        return values["logits"].reshape(*states.shape[:-1], -1)

    def _enter(self, part: int | None) -> None:
        """A layer, or None for what lies before and behind them, is about to run."""
        if part != self._part and not self._resident:
            self._weights.clear()
        self._part = part

    @property
    def stream(self) -> str:
        """The buffer that goes from layer to layer."""
        return next(operation.output for operation in self.program.prologue if isinstance(operation, Embed))

    def weight(self, name: str) -> torch.Tensor:
        """A tensor of the Program, float32 ``[rows, cols]``."""
        found = self._weights.get(name)
        if found is None:
            found = torch.from_numpy(np.array(self._load(self._tensors[name]), np.float32))
            self._weights[name] = found
        return found

    def _run(
        self,
        operation: Operation,
        values: dict[str, torch.Tensor],
        hook: Hook,
        sequences: slice,
        start: int = 0,
    ) -> None:
        """Buffers are ``[sequences, n, width]``."""
        match operation:
            case Embed():
                table = self.weight(operation.table)
                values[operation.output] = torch.nn.functional.embedding(values["tokens"], table)
            case Norm():
                weight = self.weight(operation.weight)
                values[operation.output] = _norm(values[operation.input], weight, operation.epsilon)
            case HeadNorm():
                weight = self.weight(operation.weight)
                turned = _norm(_heads(values[operation.buffer], operation), weight, operation.epsilon)
                values[operation.buffer] = _replaced(values[operation.buffer], operation, turned)
            case Quantize():
                values[operation.output] = _rounded(values[operation.input], operation)
            case Linear():
                bias = None if operation.bias is None else self.weight(operation.bias).flatten()
                product = torch.nn.functional.linear(
                    values[operation.input], self.weight(operation.weight), bias
                )
                values[operation.output] = values[operation.output] + product if operation.add else product
            case Rotary():
                turned = _turn(_heads(values[operation.buffer], operation), operation, start)
                values[operation.buffer] = _replaced(values[operation.buffer], operation, turned)
            case Attend():
                values[operation.output] = _attend(values[operation.input], operation, hook, sequences)
            case Gate():
                both = values[operation.input].unflatten(-1, (-1, 2, operation.width))
                gated = (torch.nn.functional.silu(both[..., 0, :]) * both[..., 1, :]).flatten(-2)
                if operation.portion is not None:
                    gated = gated * torch.sigmoid(values[operation.portion])
                values[operation.output] = gated
            case Score():
                values[operation.output] = values[operation.input] @ self.weight(operation.weight).T
            case Route():
                weight = self.weight(operation.weight)
                bias = None if operation.bias is None else self.weight(operation.bias)
                values[operation.output] = routed(values[operation.input], weight, bias, operation)
            case ExpertLinear():
                weight, routes = self.weight(operation.weight), values[operation.routes]
                products = expert_products(values[operation.input], routes, weight, operation)
                before = values[operation.output] if operation.combine else 0
                values[operation.output] = before + products
            case Select():
                values[operation.output] = values[operation.input]


def token_rows(tokens: Sequence[int] | NDArray[np.int32], context: int) -> NDArray[np.int32]:
    """``tokens`` in sequences of ``context``, what is left over dropped: ``[sequences, context]``."""
    whole = len(tokens) // context * context
    return np.asarray(tokens[:whole], np.int32).reshape(-1, context)


def _attend(inputs: torch.Tensor, operation: Attend, hook: Hook, sequences: slice) -> torch.Tensor:
    heads = inputs.unflatten(-1, (-1, operation.head_dim)).transpose(1, 2)
    queries, keys, values = heads.split([operation.heads, operation.kv_heads, operation.kv_heads], dim=1)
    given = Heads(operation.layer, sequences, queries, keys, values, operation.scale, operation.window)
    return hook(given).transpose(1, 2).flatten(-2)


def _bounds(operation: HeadNorm | Rotary) -> tuple[int, int]:
    first = operation.first_head * operation.head_dim
    return first, first + operation.heads * operation.head_dim


def _heads(buffer: torch.Tensor, operation: HeadNorm | Rotary) -> torch.Tensor:
    """``[sequences, n, heads, head_dim]``."""
    first, last = _bounds(operation)
    return buffer[..., first:last].unflatten(-1, (operation.heads, operation.head_dim))


def _replaced(buffer: torch.Tensor, operation: HeadNorm | Rotary, heads: torch.Tensor) -> torch.Tensor:
    """``buffer`` with the operation's heads replaced; a new tensor, for the sake of gradients."""
    first, last = _bounds(operation)
    return torch.cat([buffer[..., :first], heads.flatten(-2), buffer[..., last:]], dim=-1)


def _turn(heads: torch.Tensor, operation: Rotary, start: int) -> torch.Tensor:
    frequencies = torch.tensor(operation.frequencies, dtype=torch.float64)
    positions = torch.arange(start, start + heads.shape[1], dtype=torch.float64)
    angles = torch.outer(positions, frequencies)[:, None]
    cosine = (angles.cos() * operation.scale).float()
    sine = (angles.sin() * operation.scale).float()
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    mean = values.square().mean(dim=-1, keepdim=True)
    return values * torch.rsqrt(mean + epsilon) * weight.flatten()


def _rounded(values: torch.Tensor, operation: Quantize) -> torch.Tensor:
    """As engines round activations; gradients pass as if they did not."""
    return values + (rounded(values.detach(), operation) - values).detach()
