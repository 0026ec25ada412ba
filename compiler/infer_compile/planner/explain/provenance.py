"""Where each predicted number stems from: as good as the weakest figure that went into it."""

from __future__ import annotations

from collections.abc import Mapping

from ...catalog.figure import Basis, weakest
from ...catalog.target import Target
from ..candidate import Candidate
from ..cost import cost, price
from ..deployment import Deployment
from ..plan import Source

_REACH: Mapping[str, str] = {
    "device": "measured on this device",
    "class": "measured on devices of this class",
    "family": "carried over from related devices",
    "engine": "carried over from other devices",
    "prior": "not measured",
}
"""How far the coefficients of an engine were carried, in words."""

TIMES = (
    *("ttft_ms", "itl_ms", "e2e_s"),
    *("tokens_per_second", "tokens_per_second_per_user", "prefill_tokens_per_second", "bottleneck"),
)


def target_basis(target: Target) -> Basis:
    """What the figures of a target are worth."""
    if target.measured:
        return "measurement"
    return "assumption" if target.confidence == "C" else "datasheet"


def sources(asked: Deployment, chosen: Candidate) -> dict[str, Source]:
    """One entry for each figure of ``predicted`` by its dotted key, and for those of the drafting."""
    priced = cost(asked, chosen).model_dump()
    return (
        _times(asked, chosen)
        | _memory(asked, chosen)
        | _quality(chosen)
        | {f"cost.{name}": one for name, one in _cost(asked, chosen).items() if priced[name] is not None}
        | _speculation(chosen)
        | {
            f"workload.{name}": _load(asked, name)
            for name in ("input_tokens", "output_tokens", "context_tokens")
        }
        | {"workload.concurrency": _in_flight(asked, chosen)}
    )


def reckoned(asked: Deployment, chosen: Candidate) -> Source:
    """A time without drafts: bytes and operations are exact, what they are divided by is not."""
    target, speed = asked.target, chosen.speed
    bases: list[Basis] = [target_basis(target), speed.basis]
    device = f"{target.name}: {target.source('bandwidth_gbs')}"
    if target.kind == "cpu" and not target.measured:
        bases.append("assumption")
        device += f"; {asked.facts.coefficients.sustained_source}"
    engine = f"{chosen.engine.name}, {_REACH[speed.reach]}: {speed.source}"
    return Source(basis=weakest(bases), text=f"bytes and operations over the rates of {device}; {engine}")


def _times(asked: Deployment, chosen: Candidate) -> dict[str, Source]:
    plain = reckoned(asked, chosen)
    drafted = _with_drafts(plain, chosen)
    found = {
        f"step_ms.{name}": plain for name in ("weights", "cache", "compute", "fixed", "links", "prefill")
    }
    found |= dict.fromkeys(TIMES, drafted) | {"prefill_tokens_per_second": plain}
    ends = Source(
        basis=drafted.basis,
        text="four of five ratios of measured to predicted time lie within, of what was left out of the fit "
        f"({chosen.speed.source}); to the power of {chosen.speed.widen:g}, as far as the fit was carried",
    )
    for name in ("ttft_ms", "itl_ms", "e2e_s"):
        found |= {f"{name}_low": ends, f"{name}_high": ends}
    return found


def _with_drafts(plain: Source, chosen: Candidate) -> Source:
    one = chosen.drafting
    if not one.tokens:
        return plain
    return Source(
        basis=weakest((plain.basis, one.basis)), text=f"as the parts of a step; drafts accepted: {one.source}"
    )


def _memory(asked: Deployment, chosen: Candidate) -> dict[str, Source]:
    engine, target = chosen.engine.on(asked.target.kind), asked.target
    exact = Source(basis="arithmetic", text="byte formulas of the formats on the shapes of the model; exact")
    stored = (
        exact
        if chosen.engine.architectures.own
        else Source(
            basis="published",
            text=f"bits of {chosen.scheme.name} on the shapes of the model: {chosen.scheme.source}",
        )
    )
    activations = (
        exact
        if engine.activations is None
        else Source(basis="published", text=f"a rule of {chosen.engine.name}: {engine.activations.source}")
    )
    overhead = Source(
        basis=weakest((engine.overhead_gib.basis, engine.weight_overhead_fraction.basis)),
        text=f"{engine.overhead_gib.source}; {engine.weight_overhead_fraction.source}",
    )
    capacity = Source(
        basis=weakest((target_basis(target), engine.memory_fraction.basis)),
        text=f"{engine.memory_fraction.value:g} of {target.memory_gb:g} GB ({target.source('memory_gb')}): "
        f"{engine.memory_fraction.source}",
    )
    parts = {"weights": stored, "kv": exact, "activations": activations, "draft": exact, "overhead": overhead}
    total = Source(
        basis=weakest(part.basis for part in parts.values()),
        text="the sum of the parts, as good as the weakest",
    )
    return {
        f"memory_gib.{name}": source
        for name, source in (*parts.items(), ("total", total), ("capacity", capacity))
    }


def _quality(chosen: Candidate) -> dict[str, Source]:
    loss = Source(basis=chosen.loss.basis, text=chosen.loss.source)
    return {f"quality_loss_percent.{end}": loss for end in ("low", "expected", "high")}


def _cost(asked: Deployment, chosen: Candidate) -> dict[str, Source]:
    paid = price(asked.spec, asked.target, asked.devices)
    money = Source(basis=paid.basis, text=paid.source)
    speed = _with_drafts(reckoned(asked, chosen), chosen)
    each = Source(
        basis=weakest((paid.basis, speed.basis)),
        text=f"the price ({paid.source}) over the predicted tokens per second",
    )
    watts = Source(basis=target_basis(asked.target), text=f"power limit: {asked.target.source('tdp_w')}")
    energy = Source(
        basis=weakest((watts.basis, speed.basis)), text="the power limit over the predicted tokens per second"
    )
    stated = Source(
        basis=weakest((watts.basis, "measurement")), text="the power limit at the spec's price of electricity"
    )
    return {
        "usd_per_hour": money,
        "usd_per_month": money,
        "usd_per_million_tokens": each,
        "usd_per_query": each,
        "break_even_tokens_per_month": money,
        "break_even_utilization": each,
        "bandwidth_gbs_per_usd_hour": Source(
            basis=weakest((paid.basis, target_basis(asked.target))),
            text=f"bandwidth of {asked.target.name} ({asked.target.source('bandwidth_gbs')}) over the price",
        ),
        "watts": watts,
        "kwh_per_million_tokens": energy,
        "energy_usd_per_month": stated,
    }


def _speculation(chosen: Candidate) -> dict[str, Source]:
    one = chosen.drafting
    if not one.tokens:
        return {}
    source = Source(basis=one.basis, text=one.source)
    return dict.fromkeys(
        ("speculation.acceptance", "speculation.tokens_per_step", "speculation.pays_up_to"), source
    )


def _load(asked: Deployment, name: str) -> Source:
    stated = asked.spec.workload.model_fields_set
    if name == "context_tokens":
        return Source(basis="arithmetic", text="the prompt and half of the answer")
    return Source(basis="arithmetic", text="the spec" if name in stated else "a default of the spec")


def _in_flight(asked: Deployment, chosen: Candidate) -> Source:
    if asked.rate is not None:
        plain = _with_drafts(reckoned(asked, chosen), chosen)
        return Source(basis=plain.basis, text="the rate of the spec times the predicted time of a request")
    if asked.spec.objective == "capacity":
        basis = weakest((_memory(asked, chosen)["memory_gib.capacity"].basis, reckoned(asked, chosen).basis))
        return Source(basis=basis, text="as many as keep every limit")
    stated = "concurrency" in asked.spec.workload.model_fields_set
    return Source(basis="arithmetic", text="the spec" if stated else "a default of the spec")
