"""Money and energy: what an hour of the devices costs, over what an hour gives."""

from __future__ import annotations

from dataclasses import dataclass

from ..catalog.figure import Basis
from ..catalog.target import Target
from ..spec.spec import Spec
from .candidate import Candidate
from .deployment import Deployment
from .plan import Cost, significant

HOURS_PER_MONTH = 730
OWNED_HOURS = 3 * 8760
"""A purchase is spread over three years of running day and night."""


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per hour of all devices; ``owned``: electricity comes on top."""

    usd_per_hour: float | None
    owned: bool
    basis: Basis
    source: str


def price(spec: Spec, target: Target, devices: int) -> Price:
    """What the spec states; else what the target's file knows of rents, or of a purchase spread over time."""
    stated = spec.cost.hourly(target.id)
    if stated is not None:
        return Price(stated, False, "measurement", "the spec")
    known = target.price
    if known is not None and known.rent_usd_per_hour is not None:
        middle = sum(known.rent_usd_per_hour) / 2
        return Price(middle * devices, False, "published", f"middle of {target.source('price')}")
    if known is not None and known.purchase_usd is not None:
        share = known.purchase_usd * devices / OWNED_HOURS
        return Price(share, True, "assumption", f"spread over three years: {target.source('price')}")
    return Price(None, False, "assumption", "no price is known; cost.usd_per_hour states one")


def cost(asked: Deployment, one: Candidate) -> Cost:
    """What ``one`` costs at the load of its forecast."""
    spec, target, devices = asked.spec, asked.target, asked.devices
    paid = price(spec, target, devices)
    per_second = float(one.forecast.tokens_per_second)
    watts = None if target.tdp_w is None else target.tdp_w * devices
    kwh_per_hour = None if watts is None else watts / 1000
    energy = _times(kwh_per_hour, spec.cost.usd_per_kwh)
    usd = paid.usd_per_hour
    if usd is not None and paid.owned:
        usd += energy or 0.0
    monthly = _times(usd, HOURS_PER_MONTH)
    api = spec.cost.api_usd_per_million_tokens
    even = None if monthly is None or not api else monthly / api * 1e6
    capacity = per_second * 3600 * HOURS_PER_MONTH
    return Cost(
        usd_per_hour=_rounded(usd),
        basis=paid.basis,
        source=paid.source,
        usd_per_million_tokens=_rounded(None if usd is None else usd_per_million_tokens(usd, per_second)),
        usd_per_query=_rounded(
            None if usd is None else usd_per_million_tokens(usd, per_second) * asked.output_tokens / 1e6
        ),
        usd_per_month=_rounded(monthly),
        watts=watts,
        kwh_per_million_tokens=_rounded(
            None if kwh_per_hour is None else usd_per_million_tokens(kwh_per_hour, per_second)
        ),
        energy_usd_per_month=_rounded(_times(energy, HOURS_PER_MONTH)),
        break_even_tokens_per_month=_rounded(even),
        break_even_utilization=_rounded(None if even is None else even / capacity),
        bandwidth_gbs_per_usd_hour=_rounded(target.bandwidth_gbs * devices / usd if usd else None),
    )


def usd_per_million_tokens(per_hour: float, tokens_per_second: float) -> float:
    """Of dollars, or of anything else that is spent by the hour."""
    return per_hour / (3600 * tokens_per_second) * 1e6


def _times(figure: float | None, factor: float | None) -> float | None:
    return None if figure is None or factor is None else figure * factor


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else significant(figure)
