"""Mixtures of experts, slowly: the oracle of the kernels."""

from __future__ import annotations

import torch

from ..formats.program import LEAST_SUM, ExpertLinear, Route, Routing


def routed(
    values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, operation: Route
) -> torch.Tensor:
    """The choices of ``operation`` for ``values`` [..., inputs]: numbers, then what they count,
    [..., 2 * per_token]."""
    routing, scores = operation.routing, values.double() @ weight.double().T
    likely = torch.softmax(scores, dim=-1) if routing.likelihood == "softmax" else torch.sigmoid(scores)
    ranks = likely if bias is None else likely + bias.double().flatten()
    numbers = _first(_among_groups(ranks, routing), operation.per_token)
    shares = likely.gather(-1, numbers)
    if routing.normalized:
        shares = shares / (shares.sum(dim=-1, keepdim=True) + LEAST_SUM)
    return torch.cat([numbers.float(), (shares * routing.scale).float()], dim=-1)


def _among_groups(ranks: torch.Tensor, routing: Routing) -> torch.Tensor:
    """``ranks`` of experts outside the best groups at minus infinity."""
    grouped = ranks.unflatten(-1, (routing.groups, -1))
    best = grouped.topk(routing.group_best, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(-1, _first(best, routing.kept_groups), True)
    return grouped.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(-2)


def _first(ranks: torch.Tensor, count: int) -> torch.Tensor:
    """Where the ``count`` largest are, of equal ones the first."""
    return torch.sort(ranks, dim=-1, descending=True, stable=True).indices[..., :count]


def expert_products(
    values: torch.Tensor, routes: torch.Tensor, weight: torch.Tensor, operation: ExpertLinear
) -> torch.Tensor:
    """What ``operation`` writes or, if it combines, adds: float32 [..., per_token * rows] or [..., rows]."""
    count = operation.per_token
    numbers, shares = routes[..., :count].long(), routes[..., count:].double()
    if operation.combine:
        places = values.unflatten(-1, (count, -1))
    else:
        places = values.unsqueeze(-2).expand(*values.shape[:-1], count, values.shape[-1])
    experts = weight.unflatten(0, (-1, operation.rows))
    products = torch.zeros(*places.shape[:-1], operation.rows, dtype=torch.float64, device=values.device)
    for expert in numbers.unique().tolist():
        chosen = numbers == expert
        products[chosen] = places[chosen].double() @ experts[expert].double().T
    if operation.combine:
        return (products * shares.unsqueeze(-1)).sum(dim=-2).float()
    return products.flatten(-2).float()
