"""What a build measured, beside what the planner expected."""

from __future__ import annotations

from ..catalog.figure import Frozen


class Raised(Frozen):
    """``layers`` whose cache a build keeps at ``after``: with ``before``, as planned, too much was lost."""

    layers: tuple[int, ...]
    before: str
    after: str


class Measured(Frozen):
    """Quality of the built bundle on ``tokens`` tokens of a text, in ``contexts`` contexts of up to
    ``context_tokens``. Divergences are in nats, losses in percent, as ``Predicted.quality_loss_percent``."""

    quality_loss_percent: float
    standard_error_percent: float
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    tokens: int
    contexts: int
    context_tokens: int
    text: str
    text_sha256: str
    budget_percent: float
    planned_loss_percent: float
    """At the levels that were planned; more than the budget where layers were raised."""
    weights_loss_percent: float | None
    """With every layer's cache in bf16; None where that was not needed to know."""
    raised: tuple[Raised, ...]
    stand_in: bool = False
    """Not the bundle's engine was measured, whose device the building machine need not have, but one of the
    same program for its processor."""


def raised(planned: tuple[str, ...], layers: tuple[str, ...]) -> tuple[Raised, ...]:
    """In which layers ``layers`` differ from the planned ones, by the levels before and after."""
    pairs = list(zip(planned, layers, strict=True))
    changed = dict.fromkeys(pair for pair in pairs if pair[0] != pair[1])
    return tuple(
        Raised(
            layers=tuple(index for index, pair in enumerate(pairs) if pair == (before, after)),
            before=before,
            after=after,
        )
        for before, after in changed
    )
