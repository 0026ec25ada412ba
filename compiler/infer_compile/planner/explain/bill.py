"""What a plan costs, in words: read off the plan itself."""

from __future__ import annotations

from ..plan import Plan
from . import words
from .note import Figure

NOT_KNOWN = "not known"


def bill(plan: Plan) -> list[Figure]:
    """Money and energy; ``not known`` where there is no price."""
    paid = plan.predicted.cost
    if paid.usd_per_hour is None and paid.watts is None:
        return [Figure("price and power", NOT_KNOWN, "", "cost.usd_per_hour states a price")]
    watts = "" if paid.watts is None else f"drawing {paid.watts:,g} W at most"
    rows = [
        ("per million tokens", paid.usd_per_million_tokens, "USD", "generated"),
        ("per query", paid.usd_per_query, "USD", f"of {plan.predicted.workload.output_tokens:,} tokens"),
        ("per hour", paid.usd_per_hour, "USD", "of all devices"),
        ("per month", paid.usd_per_month, "USD", "730 hours"),
        ("electricity", paid.kwh_per_million_tokens, "kWh per million tokens", watts),
        ("bandwidth", paid.bandwidth_gbs_per_usd_hour, "GB/s per dollar and hour", ""),
    ]
    found = [
        Figure(name, NOT_KNOWN if value is None else f"{words.whole(value)} {unit}", "", note)
        for name, value, unit, note in rows
    ]
    if paid.energy_usd_per_month is not None:
        value = f"{words.whole(paid.energy_usd_per_month)} USD"
        found.append(Figure("electricity per month", value, "", "at the spec's price"))
    return found + _break_even(plan)


def _break_even(plan: Plan) -> list[Figure]:
    paid = plan.predicted.cost
    if paid.break_even_tokens_per_month is None or paid.break_even_utilization is None:
        return []
    share = paid.break_even_utilization
    value = f"{words.count(paid.break_even_tokens_per_month)} tokens a month"
    note = (
        f"from there on cheaper than the API: {share:.0%} of what it can generate"
        if share <= 1
        else f"never cheaper than the API: that is {words.times(share)} what it can generate"
    )
    return [Figure("break-even", value, "", note)]
