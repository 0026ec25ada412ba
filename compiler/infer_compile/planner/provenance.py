"""Where each predicted number stems from: as good as the weakest figure that went into it."""

from __future__ import annotations

from ..catalog.coefficients import Basis, weakest
from ..catalog.target import Target
from .candidate import Candidate
from .deployment import Deployment
from .plan import Source


def target_basis(target: Target) -> Basis:
    """What the figures of a target are worth."""
    if target.measured:
        return "measurement"
    return "assumption" if target.confidence == "C" else "datasheet"


def sources(asked: Deployment, chosen: Candidate) -> dict[str, Source]:
    """One entry for each figure of ``predicted``."""
    engine, target = asked.engine, asked.target
    device = target_basis(target)
    reached = device if target.measured else weakest((device, engine.unmeasured_bandwidth.basis))
    speed = (
        "measured by a probe" if target.measured else f"of {target.name}'s file, grade {target.confidence}"
    )
    step = Source(
        basis=weakest((reached, engine.time_basis)),
        text=f"bytes and operations of the graph over bandwidth and matrix rate ({speed}) and the "
        f"coefficients of engine {engine.engine} on a {engine.kind} ({engine.time_basis})",
    )
    queueing = asked.facts.coefficients.queueing
    alone = chosen.forecast.load.concurrency == 1
    waiting = (
        step
        if alone
        else Source(
            basis=weakest((step.basis, queueing.basis)),
            text=f"the prefill, reckoned like a step, times a factor for waiting: {queueing.source}",
        )
    )
    exact = Source(basis="arithmetic", text="byte formulas of the formats on the shapes of the model; exact")
    found = {
        "ttft_ms": waiting,
        "itl_ms": step,
        "tokens_per_second": waiting,
        "tokens_per_second_per_user": step,
        "prefill_tokens_per_second": step,
        "bottleneck": step,
        "step_ms": step,
        "memory_gib.weights": exact,
        "memory_gib.kv": exact,
        "memory_gib.activations": exact,
        "memory_gib.draft": exact,
        "memory_gib.overhead": Source(
            basis=weakest((engine.overhead_gib.basis, engine.weight_overhead_fraction.basis)),
            text=f"{engine.overhead_gib.source}; {engine.weight_overhead_fraction.source}",
        ),
        "memory_gib.capacity": Source(
            basis=weakest((device, engine.memory_fraction.basis)),
            text=f"{engine.memory_fraction.value:g} of {target.memory_gb:g} GB "
            f"({target.source('memory_gb')}): {engine.memory_fraction.source}",
        ),
        "quality_loss_percent": Source(basis=chosen.loss.basis, text=chosen.loss.source),
    }
    if asked.spec.cost.usd_per_hour is not None:
        found["cost"] = Source(
            basis=waiting.basis, text="the price in the spec over the predicted tokens per second"
        )
    return found
