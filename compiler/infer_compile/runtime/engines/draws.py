"""Sampling where the logits are: the sampler of sampling.py on rows of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..step import Sampling, SequenceStep
from .rows import Rows, need
from .sampling import uniform

SETTINGS = 5
"""Numbers that a row is drawn with: temperature, top_k, top_p, min_p, and the uniform number."""


@dataclass(frozen=True, slots=True)
class Draws:
    """What the rows of a step are drawn with: ``settings`` [rows, SETTINGS] float64, and, where any row has
    some, masks and adjustments."""

    settings: np.ndarray
    steps: tuple[SequenceStep, ...]

    @property
    def greedy(self) -> bool:
        """Whether every row takes the largest of its own logits."""
        return not self.settings[:, 0].any() and not self.altered

    @property
    def altered(self) -> bool:
        """Whether some logits are changed before the draw."""
        return any(
            step.outputs and (step.mask is not None or step.sampling.ids is not None) for step in self.steps
        )


def draws_of(batch: Sequence[Rows], vocabulary: int) -> Draws:
    """Raises InferCompileError IC521 for a mask that allows no token."""
    settings: list[tuple[float, ...]] = []
    for part in batch:
        sampling, mask = part.step.sampling, part.step.mask
        if mask is not None and part.step.outputs:
            words = np.zeros(-(-vocabulary // 32), np.uint32)
            words[: len(mask)] = mask[: len(words)]
            words[-1] &= np.uint32((1 << ((vocabulary - 1) % 32 + 1)) - 1)
            need(bool(words.any()), "the mask allows no token")
        for row in part.outputs:
            position = int(part.positions[row - part.first]) + 1
            settings.append(_settings(sampling, position))
    return Draws(np.array(settings, np.float64).reshape(-1, SETTINGS), tuple(part.step for part in batch))


def _settings(sampling: Sampling, position: int) -> tuple[float, ...]:
    drawn = uniform(sampling.seed, position) if sampling.temperature else 0.0
    return (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p, drawn)


def altered(logits: torch.Tensor, steps: Sequence[SequenceStep]) -> torch.Tensor:
    """A copy of ``logits`` [rows, vocabulary] with adjustments, and masks as minus infinity."""
    logits = logits.clone()
    first = 0
    for step in steps:
        own = logits[first : first + step.outputs]
        first += step.outputs
        if step.outputs:
            _adjust(own, step.sampling)
            _mask(own, step.mask)
    return logits


def _adjust(rows: torch.Tensor, sampling: Sampling) -> None:
    if sampling.ids is None:
        return
    ids = torch.from_numpy(sampling.ids.astype(np.int64)).to(rows.device)
    chosen = rows[:, ids]
    if sampling.penalty is not None:
        penalty = torch.from_numpy(sampling.penalty).to(rows.device)
        chosen = torch.where(chosen > 0, chosen / penalty, chosen * penalty)
    if sampling.bias is not None:
        chosen = chosen + torch.from_numpy(sampling.bias).to(rows.device)
    rows[:, ids] = chosen


def _mask(rows: torch.Tensor, mask: np.ndarray | None) -> None:
    if mask is None:
        return
    words = torch.from_numpy(np.ascontiguousarray(mask, "<u4").view(np.int32)).to(rows.device)
    bits = words[:, None] >> torch.arange(32, dtype=torch.int32, device=rows.device) & 1
    allowed = bits.flatten()[: rows.shape[1]] != 0
    rows[:, : len(allowed)].masked_fill_(~allowed, -torch.inf)
    rows[:, len(allowed) :] = -torch.inf


def draw(logits: torch.Tensor, settings: torch.Tensor) -> torch.Tensor:
    """A token for each row of ``logits``, as sampling.py draws it: candidates by falling logit, lower ids
    first among equals; probabilities are float64."""
    temperature, top_k, top_p, min_p, target = settings.T.unsqueeze(-1)
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    greedy = temperature == 0
    scaled = ordered.double() / torch.where(greedy, 1.0, temperature)
    weights = torch.exp(scaled - scaled[:, :1])
    rank = torch.arange(logits.shape[1], device=logits.device)
    weights = torch.where((top_k == 0) | (rank < top_k), weights, 0.0)
    cumulative = weights.cumsum(-1)
    last = (cumulative < top_p * cumulative[:, -1:]).sum(-1, keepdim=True)
    weights = torch.where((top_p >= 1) | (rank <= last), weights, 0.0)
    weights = torch.where(weights >= min_p * weights[:, :1], weights, 0.0)
    cumulative = weights.cumsum(-1)
    place = (cumulative <= target * cumulative[:, -1:]).sum(-1, keepdim=True)
    return ids.gather(-1, torch.where(greedy, 0, place))[:, 0]
