"""Sampling where the logits are: the sampler of sampling.py on rows of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..formats.launches import SETTINGS
from ..step import Sampling, SequenceStep
from .rows import Rows, need
from .sampling import uniform

LARGEST = 1024
"""Candidates of a row that are put in order first. Not tuned on a device yet."""
UNSETTLED = -1
"""Stands for a token that the largest logits do not tell."""


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
    ordered, ids = torch.sort(logits, dim=-1, descending=True, stable=True)
    return _drawn(ordered, ids, ordered, torch.full_like(ids[:, :1], logits.shape[1] + 1), settings)


def draw_among_largest(logits: torch.Tensor, settings: torch.Tensor, count: int = LARGEST) -> torch.Tensor:
    """The same, looking in order at the ``count`` largest logits alone: UNSETTLED where these do not tell.

    Selecting reads a row a few times; sorting it all writes it as often, with the ids.
    """
    if logits.shape[1] <= count:
        return draw(logits, settings)
    ids = torch.topk(logits, count, dim=-1, sorted=False).indices.sort(dim=-1).values
    ordered, places = torch.sort(logits.gather(-1, ids), dim=-1, descending=True, stable=True)
    # Others may be as large as the least of these.
    sure = (ordered > ordered[:, -1:]).sum(-1, keepdim=True)
    return _drawn(ordered, ids.gather(-1, places), logits, sure, settings)


def _drawn(
    ordered: torch.Tensor, ids: torch.Tensor, whole: torch.Tensor, sure: torch.Tensor, settings: torch.Tensor
) -> torch.Tensor:
    """A token of ``ids`` for each row, or UNSETTLED. ``ordered`` are the first candidates, of which the first
    ``sure`` stand where they do among all, ``whole``, in any order."""
    temperature, top_k, top_p, min_p, target = settings.T.unsqueeze(-1)
    greedy = temperature == 0
    divisor = torch.where(greedy, 1.0, temperature)
    most = ordered[:, :1].double() / divisor
    weights = torch.exp(ordered.double() / divisor - most)
    everything = torch.exp(whole.double() / divisor - most).sum(-1, keepdim=True)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    weights = torch.where((top_k == 0) | (rank < top_k), weights, 0.0)
    cumulative = weights.cumsum(-1)
    total = torch.where(top_k == 0, everything, cumulative[:, -1:])
    last = (cumulative < top_p * total).sum(-1, keepdim=True)
    heavy = weights >= min_p * weights[:, :1]
    weights = torch.where(((top_p >= 1) | (rank <= last)) & heavy, weights, 0.0)
    cumulative = weights.cumsum(-1)
    cut = (top_k > 0) | ((top_p < 1) & (last < sure)) | ((min_p > 0) & (heavy.sum(-1, keepdim=True) < sure))
    total = torch.where(cut, cumulative[:, -1:], everything)
    place = torch.where(greedy, 0, (cumulative <= target * total).sum(-1, keepdim=True))
    uncut = (top_k == 0) & (top_p >= 1) & (min_p == 0)
    settled = (greedy | ((top_k <= sure) & (cut | uncut))) & (place < sure)
    place = place.clamp(max=ordered.shape[1] - 1)
    return torch.where(settled, ids.gather(-1, place), UNSETTLED)[:, 0]
