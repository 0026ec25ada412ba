"""What a config says of rotary embedding: ``rope_parameters``, or ``rope_theta`` and ``rope_scaling``.

Names, precedence and defaults are those of transformers 5.23, ``modeling_rope_utils.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..runtime.errors import Problem
from .fields import Fields
from .rotary import YARN_BETA_FAST, YARN_BETA_SLOW, LinearScaling, Llama3Scaling, Scaling, YarnScaling

DEFAULT_THETA = 10_000.0
"""The base where a config names none: arXiv 2104.09864, and transformers."""

KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class Rope:
    """The base, the scaling and the positions they were made for."""

    theta: float
    scaling: Scaling | None
    max_context: int


def read(fields: Fields) -> Rope:
    """Rotary settings; records in ``fields`` what is missing, wrong, contradictory or of an unknown kind."""
    trained = fields.integer("max_position_embeddings")
    section = _section(fields)
    if section is None:
        return Rope(_theta(fields, None), None, trained)
    nested = sorted(key for key, value in section.config.items() if isinstance(value, dict))
    if nested:
        fields.refuse(
            Problem(
                "IC114",
                f"rotary settings for each kind of layer ({', '.join(nested)})",
                section.where,
                "these architectures have one rotary embedding for all layers",
                "give one set of settings",
            )
        )
        return Rope(DEFAULT_THETA, None, trained)
    for part in (fields, section):
        if part.number("partial_rotary_factor", 1.0) != 1.0:
            part.wrong("partial_rotary_factor", "1: these architectures turn the whole head")
    scaling = _scaling(fields, section, trained)
    # YaRN stretches the trained context to this; the other kinds are counted in max_position_embeddings.
    reach = int(scaling.factor * scaling.original_context) if isinstance(scaling, YarnScaling) else 0
    return Rope(_theta(fields, section), scaling, max(trained, reach))


def _section(fields: Fields) -> Fields | None:
    newer, older = fields.section("rope_parameters"), fields.section("rope_scaling")
    if newer is not None and older is not None and newer.config != older.config:
        fields.contradiction(
            "rope_parameters and rope_scaling differ",
            "they are the new and the old name of the same settings",
            "keep rope_parameters",
        )
    return newer or older


def _theta(fields: Fields, section: Fields | None) -> float:
    theta = fields.number("rope_theta", DEFAULT_THETA)
    if section is not None and section.has("rope_theta"):
        inner = section.number("rope_theta")
        if fields.has("rope_theta") and inner != theta:
            fields.contradiction(
                f"rope_theta is {theta:g} and, inside the rotary settings, {inner:g}",
                "both name the base of the rotary embedding",
                "keep one",
            )
        theta = inner
    if theta <= 1:
        fields.wrong("rope_theta", "a number above 1")
    return theta


def _scaling(fields: Fields, section: Fields, trained: int) -> Scaling | None:
    kind = section.text("rope_type", section.text("type", "default"))
    if kind not in KINDS:
        fields.refuse(
            Problem(
                "IC114",
                f"rotary scaling {kind!r} is not known",
                section.where,
                f"known kinds: {', '.join(KINDS)}",
                "choose a model that uses one of these",
            )
        )
        return None
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(_factor(section))
    # A trained length beside the settings counts more than one among them.
    original = fields.integer(
        "original_max_position_embeddings", section.integer("original_max_position_embeddings", trained)
    )
    if kind == "llama3":
        low, high = section.number("low_freq_factor"), section.number("high_freq_factor")
        if section.sound("low_freq_factor", "high_freq_factor") and high <= low:
            section.contradiction(
                f"high_freq_factor {high:g} is not above low_freq_factor {low:g}",
                "pairs between the two are interpolated",
            )
            high = low + 1
        return Llama3Scaling(_factor(section), low, high, original)
    implied = "factor" in section.config and not section.has("factor")
    fast, slow = section.number("beta_fast", YARN_BETA_FAST), section.number("beta_slow", YARN_BETA_SLOW)
    if fast < slow:
        section.contradiction(
            f"beta_fast {fast:g} is below beta_slow {slow:g}", "pairs between the two are interpolated"
        )
    return YarnScaling(
        factor=trained / original if implied else _factor(section),
        original_context=original,
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=section.number("attention_factor") if section.has("attention_factor") else None,
        mscale=section.number("mscale") if section.has("mscale") else 0.0,
        mscale_all=section.number("mscale_all_dim") if section.has("mscale_all_dim") else 0.0,
        truncate=section.boolean("truncate", True),
    )


def _factor(section: Fields) -> float:
    factor = section.number("factor")
    if factor < 1:
        section.wrong("factor", "at least 1")
    return factor
