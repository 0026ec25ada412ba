"""The GPU kernels of mixtures of experts, run by Triton's interpreter, against the slow form."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
import ml_dtypes
import numpy as np
import pytest
import torch

from infer_compile.codegen.cuda_sources import kernel
from infer_compile.codegen.expert_launches import route_constants
from infer_compile.codegen.tiles import tiled, tiled_scales
from infer_compile.runtime.engines.mixture import expert_products, routed
from infer_compile.runtime.formats.launches import Blocks
from infer_compile.runtime.formats.program import ExpertLinear, Route, Routing

ROUTINGS = {
    "as-they-are": Routing(normalized=False),
    "normalized": Routing(normalized=True),
    "best-groups": Routing(normalized=False, groups=4, kept_groups=2, scale=1.5),
    "biased": Routing(normalized=True, likelihood="sigmoid", scale=2.5),
    "biased-best-groups": Routing(
        normalized=True, likelihood="sigmoid", groups=3, kept_groups=2, group_best=2
    ),
}


@pytest.mark.parametrize("name", ROUTINGS)
def test_a_router_chooses_as_the_slow_form_does(name: str) -> None:
    rows, experts, choices, cols = 9, 12, 3, 72
    torch.manual_seed(0)
    values = torch.randn(rows, cols) * 2
    weight = torch.randn(experts, cols).to(torch.bfloat16)
    weight[7] = weight[2]  # of equal ones the first
    scores, shares = torch.empty(rows, experts), torch.empty(rows, choices)
    chosen = torch.empty(rows, choices, dtype=torch.int32)
    module = kernel("route")
    module.score[(1, 2)](
        values, weight, scores, rows, EXPERTS=experts, COLS=cols, BLOCK_M=16, BLOCK_N=8, BLOCK_K=64
    )
    torch.testing.assert_close(scores, values @ weight.float().T, atol=1e-4, rtol=1e-5)
    bias = torch.randn(experts) / 4 if "biased" in name else None
    if bias is not None:
        bias[7] = bias[2]
    route = Route(
        weight="w",
        bias=None if bias is None else "b",
        input="x",
        output="y",
        per_token=choices,
        routing=ROUTINGS[name],
    )
    module.choose[(rows,)](scores, bias, chosen, shares, **route_constants(route, experts))
    expected = routed(values, weight.float(), bias, route)
    assert torch.equal(chosen.float(), expected[:, :choices])
    torch.testing.assert_close(shares, expected[:, choices:], atol=1e-6, rtol=1e-5)
    assert bool((chosen == 2).any()) and not bool(((chosen == 7).any(1) & ~(chosen == 2).any(1)).any())


# (rows, experts, choices, tile): one row; more than a block of choices; all of them on one expert.
DEALS = [(1, 6, 3, 16, False), (37, 5, 2, 16, False), (90, 4, 4, 64, False), (40, 7, 1, 16, True)]


def dealt(chosen: torch.Tensor, experts: int, tile: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tiles and their owners, as the kernels deal ``chosen`` [rows, choices]."""
    rows, choices = chosen.shape
    count = Blocks(of="rows", size=tile, each=choices, more=experts).programs(rows)
    counts = torch.full((experts,), -7, dtype=torch.int32)
    slots = torch.full((count * tile,), -7, dtype=torch.int32)
    owners = torch.full((count,), -7, dtype=torch.int32)
    module = kernel("experts")
    module.count[(experts,)](chosen, counts, rows, CHOICES=choices, BLOCK=32)
    sizes = {"CHOICES": choices, "EXPERTS": experts, "WIDE": 8, "TILE": tile, "BLOCK": 32}
    module.deal[(experts,)](chosen, counts, slots, owners, rows, **sizes)
    assert counts.tolist() == [(chosen == expert).sum().item() for expert in range(experts)]
    return slots.view(-1, tile), owners


@pytest.mark.parametrize(("rows", "experts", "choices", "tile", "one"), DEALS)
def test_every_choice_is_dealt_once_to_a_tile_of_its_expert(
    rows: int, experts: int, choices: int, tile: int, one: bool
) -> None:
    rng = np.random.default_rng(rows)
    drawn = [rng.permutation(experts)[:choices] * (not one) + (experts - 2) * one for _ in range(rows)]
    chosen = torch.from_numpy(np.stack(drawn).astype(np.int32))
    slots, owners = dealt(chosen, experts, tile)
    used = owners >= 0
    assert not bool((slots[used] == -7).any()) and set(owners[~used].tolist()) <= {-1}
    held = slots[used]
    assert sorted(held[held >= 0].tolist()) == list(range(rows * choices))
    for tiles, owner in zip(held, owners[used], strict=True):
        mine = tiles[tiles >= 0].long()
        assert bool((chosen.view(-1)[mine] == owner).all()) and len(mine)
        assert mine.tolist() == sorted(mine.tolist())


@pytest.mark.parametrize("form", ["bf16", "e4m3", "int8", "int4"])
@pytest.mark.parametrize("combine", [False, True])
def test_products_are_those_of_the_slow_form(form: str, combine: bool) -> None:
    bits = {"bf16": 16, "int4": 4}.get(form, 8)
    rows, experts, choices, size, cols, group, tile = 21, 5, 2, 48, 96, 32, 16
    rng = np.random.default_rng(bits)
    torch.manual_seed(bits)
    chosen = torch.from_numpy(
        np.stack([rng.permutation(experts)[:choices] for _ in range(rows)]).astype(np.int32)
    )
    shares = torch.rand(rows, choices)
    slots, owners = dealt(chosen, experts, tile)
    places = choices if combine else 1
    inputs = torch.randn(rows * places, cols).to(torch.bfloat16)
    shape = {"ROWS": size, "COLS": cols, "SHARED": 1 if combine else choices, "TILE": tile, "BLOCK_N": 32}
    output = torch.full((rows * choices, size), float("nan"))
    grid, module = (2, len(owners)), kernel("experts")
    if form == "e4m3":
        codes, weight = (
            torch.randn(*size_of).to(torch.float8_e4m3fn)
            for size_of in (inputs.shape, (experts * size, cols))
        )
        steps, factors = torch.rand(rows * places) + 0.5, torch.rand(experts * size) + 0.5
        numbers, matrix = codes.float() * steps[:, None], weight.float() * factors[:, None]
        bytes_of = (codes.view(torch.int8), steps, weight.view(torch.int8), factors)
        module.multiply_e4m3[grid](*bytes_of, slots, owners, output, BLOCK_K=64, **shape)
    elif form == "bf16":
        weight = torch.randn(experts * size, cols).to(torch.bfloat16)
        numbers, matrix = inputs.float(), weight.float()
        module.multiply[grid](inputs, weight, slots, owners, output, BLOCK_K=64, **shape)
    else:
        top = 2 ** (bits - 1) - 1
        values = rng.integers(-top, top + 1, (experts * size, cols)).astype(np.int8)
        factors = rng.uniform(0.5, 1.5, (experts * size, cols // group)).astype(ml_dtypes.bfloat16)
        matrix = torch.from_numpy(values * np.repeat(factors.astype(np.float32), group, axis=1))
        steps = torch.from_numpy(rng.uniform(0.5, 1.5, (rows * places, cols // group)).astype(np.float32))
        codes = torch.from_numpy(rng.integers(-127, 128, (rows * places, cols)).astype(np.int8))
        numbers = codes.float() * steps.repeat_interleave(group, dim=1)
        module.multiply_codes[grid](
            codes,
            steps,
            torch.from_numpy(tiled(values, bits, group)),
            torch.from_numpy(tiled_scales(factors, bits)).view(torch.bfloat16),
            slots,
            owners,
            output,
            rows,
            BITS=bits,
            GROUP=group,
            ROUNDED=True,
            CHOICES=choices,
            **shape,
        )
    operation = ExpertLinear(
        weight="w", routes="r", input="x", output="y", rows=size, per_token=choices, combine=combine
    )
    routes = torch.cat([chosen.float(), shares], dim=1)
    expected = expert_products(numbers.view(rows, -1), routes, matrix, operation)
    found = output.view(rows, -1)
    if combine:
        before = torch.randn(rows, size)
        found, expected = before.clone(), before + expected
        module.combine[(rows, 2)](output, shares, found, CHOICES=choices, WIDTH=size, BLOCK=32)
    assert (found - expected).abs().max() / expected.std() < 1e-5
