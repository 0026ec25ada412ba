"""What inputs of products are rounded to: the definition that every engine follows."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from ..formats.program import Quantize
from ..formats.weights import Rounded

MOST: Mapping[Rounded, float] = MappingProxyType({"int8": 127.0, "fp8": 448.0})
"""What the largest magnitude of a group becomes; 448 is the largest number of e4m3."""


def rounded(values: torch.Tensor, operation: Quantize) -> torch.Tensor:
    """``values`` as ``operation`` rounds them, in float32 as engines do it."""
    groups = values.unflatten(-1, (-1, operation.group))
    most = MOST[operation.to]
    scale = groups.abs().amax(dim=-1, keepdim=True) / most
    inverse = torch.where(scale > 0, 1 / scale, 0)
    multiples = groups * inverse
    if operation.to == "fp8":
        multiples = multiples.clamp(-most, most).to(torch.float8_e4m3fn).float()
    else:
        multiples = torch.round(multiples)
    return (multiples * scale).flatten(-2)
