"""The reference engine: the Program read operation by operation in plain PyTorch; every engine's oracle.

Values between operations are float32, as the Program says. Sums inside an operation are float64 and rounded
once, so that what else is in a batch, and how a prompt is cut into chunks, changes no bit of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from ..formats.latent import LatentLayout
from ..formats.program import (
    Activate,
    Attend,
    AttendLatent,
    Embed,
    ExpertLinear,
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
    Score,
    Select,
    Tensor,
)
from ..step import Float32, SequenceStep, StepResult
from .attention import Attention
from .latent import ExactLatents, LatentAttention, PackedLatents
from .mixture import expert_products, routed
from .pools import ExactDtype, ExactPool, PackedPool
from .rounding import rounded
from .rows import Rows, rows_of
from .sampling import draw

Load = Callable[[Tensor], Float32]
"""A tensor's numbers, dequantized: float32 ``[rows, cols]``."""


class ReferenceEngine:
    """Runs ``program`` on ``device`` with the weights that ``load`` gives and its cache's ``tables``.

    ``exact_dtype`` "f32" keeps exact pages in float32, twice the bytes: not what ships, but what a comparison
    with another implementation's float32 needs.
    """

    def __init__(
        self,
        program: Program,
        load: Load,
        *,
        tables: Mapping[str, Float32] = MappingProxyType({}),
        exact_dtype: ExactDtype = "bf16",
        device: str = "cpu",
    ) -> None:
        self.program = program
        self._device = torch.device(device)
        self._weights = {tensor.name: self._tensor(load(tensor)) for tensor in program.tensors}
        self._exact: ExactPool | ExactLatents
        self._packed: PackedPool | PackedLatents | None
        self._attention: Attention | LatentAttention
        cache, (exact, packed) = program.cache, program.pool_pages
        if isinstance(cache, LatentLayout):
            self._exact = latents = ExactLatents(cache, exact, exact_dtype)
            self._packed = coded = PackedLatents(cache, packed) if cache.compressed else None
            self._attention = LatentAttention(cache, latents, coded)
        else:
            self._exact = numbers = ExactPool(cache, exact, tables, exact_dtype)
            self._packed = codes = PackedPool(cache, packed, tables) if cache.compressed else None
            self._attention = Attention(cache, tables, numbers, codes, program.turns)

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        """Run one step. Raises InferCompileError
        IC521 where the batch breaks the step contract; nothing has run then, but for a mask that allows no
        token."""
        rows = rows_of(self.program, batch)
        values: dict[str, torch.Tensor] = {}
        for operation in self.program.operations:
            self._run(operation, values, rows)
        scores: Float32 = values["logits"].cpu().numpy()
        states: Float32 = values[self.program.hidden].cpu().numpy()
        return StepResult(
            tokens=_sampled(rows, scores),
            logits=scores if logits else None,
            hidden=states if hidden else None,
        )

    def pool(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the ``exact`` or ``packed`` pool, as a writable view; empty where there is none."""
        pool = {"exact": self._exact, "packed": self._packed}[name]
        return np.zeros(0, np.uint8) if pool is None else pool.bytes

    def close(self) -> None:
        """Nothing is held that outlives the object."""

    def _tensor(self, numbers: NDArray[np.float32] | NDArray[np.int32]) -> torch.Tensor:
        return torch.from_numpy(np.array(numbers)).to(self._device)

    def _run(self, operation: Operation, values: dict[str, torch.Tensor], rows: list[Rows]) -> None:
        match operation:
            case Embed():
                tokens = np.concatenate([part.step.tokens for part in rows]).astype(np.int32)
                values[operation.output] = self._weights[operation.table][self._tensor(tokens)]
            case Feed():
                fed = np.concatenate([part.step.features for part in rows if part.step.features is not None])
                width = self.program.buffers[operation.output]
                values[operation.output] = self._tensor(fed[:, operation.first : operation.first + width])
            case Place():
                self._place(values, operation.output, values[operation.input], operation.first)
            case Norm():
                weight = self._weights[operation.weight]
                values[operation.output] = _norm(values[operation.input], weight, operation.epsilon)
            case HeadNorm():
                heads = _heads(values[operation.buffer], operation)
                heads.copy_(_norm(heads, self._weights[operation.weight], operation.epsilon))
            case Quantize():
                values[operation.output] = rounded(values[operation.input], operation)
            case Linear():
                self._linear(operation, values)
            case Rotary():
                heads = _heads(values[operation.buffer], operation)
                heads.copy_(self._turn(heads, operation, rows))
            case Attend() if isinstance(self._attention, Attention):
                inputs = values[operation.input].cpu().numpy()
                values[operation.output] = self._tensor(self._attention.run(operation, inputs, rows))
            case Score():
                scores = values[operation.input].double() @ self._weights[operation.weight].double().T
                values[operation.output] = scores.float()
            case Route():
                weight = self._weights[operation.weight]
                bias = None if operation.bias is None else self._weights[operation.bias]
                values[operation.output] = routed(values[operation.input], weight, bias, operation)
            case ExpertLinear():
                weight, routes = self._weights[operation.weight], values[operation.routes]
                products = expert_products(values[operation.input], routes, weight, operation)
                before = values[operation.output] if operation.combine else 0
                values[operation.output] = before + products
            case AttendLatent() if isinstance(self._attention, LatentAttention):
                inputs, latents = (values[name].cpu().numpy() for name in (operation.query, operation.latent))
                weight = self._weights[operation.unfold].cpu().numpy()
                found = self._attention.run(operation, inputs, latents, weight, rows)
                values[operation.output] = self._tensor(found)
            case Gate():
                both = values[operation.input].double().unflatten(-1, (-1, 2, operation.width))
                gated = (torch.nn.functional.silu(both[..., 0, :]) * both[..., 1, :]).flatten(1)
                if operation.portion is not None:
                    gated = gated * torch.sigmoid(values[operation.portion].double())
                values[operation.output] = gated.float()
            case Activate():
                added = torch.nn.functional.silu(values[operation.input].double()).float()
                values[operation.output] = values[operation.output] + added
            case Select():
                kept = [row for part in rows for row in part.outputs]
                values[operation.output] = values[operation.input][kept]

    def _linear(self, operation: Linear, values: dict[str, torch.Tensor]) -> None:
        product = values[operation.input].double() @ self._weights[operation.weight].double().T
        if operation.bias is not None:
            product = product + self._weights[operation.bias].double()
        if operation.add:
            values[operation.output] = values[operation.output] + product.float()
        else:
            self._place(values, operation.output, product.float(), operation.first)

    def _place(self, values: dict[str, torch.Tensor], output: str, rows: torch.Tensor, first: int) -> None:
        """``rows`` from column ``first`` on, behind what was written before; a gap is zeros."""
        if first:
            before = values[output][:, :first]
            gap = before.new_zeros(len(rows), first - before.shape[1])
            rows = torch.cat([before, gap, rows], dim=1)
        values[output] = rows

    def _turn(self, heads: torch.Tensor, operation: Rotary, rows: list[Rows]) -> torch.Tensor:
        positions = np.concatenate([part.positions for part in rows])
        angles = np.outer(positions.astype(np.float64), np.array(operation.frequencies))[:, None]
        cosine = torch.from_numpy(np.cos(angles) * operation.scale).to(self._device)
        sine = torch.from_numpy(np.sin(angles) * operation.scale).to(self._device)
        first, second = heads.double().chunk(2, dim=-1)
        turned = torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
        return turned.float()


def _heads(buffer: torch.Tensor, operation: HeadNorm | Rotary) -> torch.Tensor:
    """The operation's heads of ``buffer`` as a view ``[rows, heads, head_dim]``."""
    first = operation.first_head * operation.head_dim
    part = buffer[:, first : first + operation.heads * operation.head_dim]
    return part.unflatten(-1, (operation.heads, operation.head_dim))


def _norm(values: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = values.double()
    mean = wide.square().mean(dim=-1, keepdim=True)
    return (wide * torch.rsqrt(mean + epsilon) * weight.double().flatten()).float()


def _sampled(rows: list[Rows], logits: Float32) -> list[NDArray[np.int32]]:
    """A token for each output row; it will stand one place behind the row's own."""
    tokens, row = [], 0
    for part in rows:
        count = part.step.outputs
        positions = part.positions[part.count - count :] + 1
        drawn = [
            draw(logits[row + i], part.step.sampling, part.step.mask, int(position))
            for i, position in enumerate(positions)
        ]
        tokens.append(np.array(drawn, np.int32))
        row += count
    return tokens
