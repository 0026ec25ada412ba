"""Mixtures of experts, slowly: the oracle of the kernels."""

from __future__ import annotations

import torch

from ..formats.program import ExpertLinear, Route


def routed(values: torch.Tensor, weight: torch.Tensor, operation: Route) -> torch.Tensor:
    """The choices of ``operation`` for ``values`` [..., inputs]: numbers, then probabilities,
    [..., 2 * per_token]."""
    likely = torch.softmax(values.double() @ weight.double().T, dim=-1)
    best, numbers = torch.sort(likely, dim=-1, descending=True, stable=True)
    best = best[..., : operation.per_token]
    if operation.normalized:
        best = best / best.sum(dim=-1, keepdim=True)
    return torch.cat([numbers[..., : operation.per_token].float(), best.float()], dim=-1)


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
