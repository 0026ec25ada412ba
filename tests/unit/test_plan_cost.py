"""Money and energy, by hand."""

from __future__ import annotations

from typing import Any

import pytest
from planning import cpu, spec, tiny

from infer_compile.planner.cost import price, usd_per_million_tokens
from infer_compile.planner.plan import Cost, Plan
from infer_compile.planner.rank import rank
from infer_compile.planner.search import plan


def made(**fields: Any) -> tuple[Cost, Plan]:
    target = cpu(**fields.pop("device", {}))
    found = plan(spec(**fields), tiny(), target)
    return found.predicted.cost, found


def test_what_the_spec_states_comes_first() -> None:
    rented = {"price": {"rent_usd_per_hour": (1.0, 3.0)}}
    assert made(device=rented, cost={"usd_per_hour": 5})[0].usd_per_hour == 5
    middle = made(device=rented)[0]
    assert (middle.usd_per_hour, middle.basis) == (2, "published")
    owned = made(device={"price": {"purchase_usd": 26_280}})[0]
    assert (owned.usd_per_hour, owned.basis) == (1, "assumption")
    unknown = made()[0]
    assert unknown.usd_per_hour is None and unknown.usd_per_million_tokens is None


def test_a_token_a_query_a_month() -> None:
    cost, found = made(cost={"usd_per_hour": 2})
    tokens = found.predicted.tokens_per_second
    assert usd_per_million_tokens(3.6, 1000) == pytest.approx(1)
    assert cost.usd_per_million_tokens == pytest.approx(2 / 3600 / tokens * 1e6, rel=1e-3)
    assert cost.usd_per_query == pytest.approx(128 * 2 / 3600 / tokens, rel=1e-3)
    assert cost.usd_per_month == 1460
    assert cost.bandwidth_gbs_per_usd_hour == 0.5


def test_energy() -> None:
    cost, found = made(device={"tdp_w": 500}, cost={"usd_per_hour": 2, "usd_per_kwh": 0.2})
    assert cost.watts == 500
    assert cost.energy_usd_per_month == pytest.approx(0.5 * 730 * 0.2)
    per_token = 500 / 3.6e6 / found.predicted.tokens_per_second
    assert cost.kwh_per_million_tokens == pytest.approx(per_token * 1e6, rel=1e-3)
    # Rent includes it; what is owned pays for it.
    assert cost.usd_per_hour == 2
    owned = made(device={"tdp_w": 500, "price": {"purchase_usd": 26_280}}, cost={"usd_per_kwh": 0.2})[0]
    assert owned.usd_per_hour == pytest.approx(1.1)


def test_break_even_against_an_api() -> None:
    cost, found = made(cost={"usd_per_hour": 2, "api_usd_per_million_tokens": 4})
    assert cost.break_even_tokens_per_month == pytest.approx(365e6)
    most = found.predicted.tokens_per_second * 3600 * 730
    assert cost.break_even_utilization == pytest.approx(365e6 / most, rel=1e-3)


def test_a_group_costs_as_much_as_its_devices() -> None:
    target = cpu(price={"rent_usd_per_hour": (1.0, 1.0)})
    assert price(spec(), target, 8).usd_per_hour == 8


def test_the_cheaper_token_ranks_first_where_prices_are_known() -> None:
    slow, fast = cpu(id="slow"), cpu(id="fast", bandwidth_gbs=2.0, rates={"bf16_tflops": 0.002})
    asked = spec(target=["slow", "fast"], objective="cost", cost={"usd_per_hour": {"slow": 1, "fast": 5}})
    assert rank(asked, tiny(), (slow, fast)).target.id == "slow"
    even = spec(target=["slow", "fast"], objective="cost", cost={"usd_per_hour": {"slow": 1, "fast": 1.1}})
    best = rank(even, tiny(), (slow, fast))
    assert best.target.id == "fast"
    assert "per dollar" in best.reasons[0].why
