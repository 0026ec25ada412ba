"""Rotary position embedding: the frequencies of each kind of scaling, in one place.

Sources. Plain: Su et al. 2021, arXiv 2104.09864, section 3.2.2. Linear: Chen et al. 2023, arXiv 2306.15595.
YaRN: Peng et al. 2023, arXiv 2309.00071, sections 3.2 to 3.4. Llama 3: the reference code of Llama 3.1
(meta-llama/llama-models, ``apply_scaling``). Conventions where these leave room: transformers 5.23,
``modeling_rope_utils.py``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

YARN_BETA_FAST = 32.0
YARN_BETA_SLOW = 1.0
"""Turns over the trained context above which a pair is kept and below which it is stretched (arXiv
2309.00071, section 3.2, the values for Llama)."""


@dataclass(frozen=True, slots=True)
class Rotation:
    """Pair j of a head turns by ``position * frequencies[j]`` radians; sine, cosine are times ``scale``."""

    frequencies: tuple[float, ...]
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by ``factor``."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Slow pairs divided by ``factor``, fast ones kept, a ramp over the turns between them."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """The same with a ramp over the pair's index, and sharper attention.

    ``mscale`` and ``mscale_all`` are 0 where a config names none; ``truncate`` rounds the ends of the ramp
    outwards to whole pairs.
    """

    factor: float
    original_context: int
    beta_fast: float = YARN_BETA_FAST
    beta_slow: float = YARN_BETA_SLOW
    attention_factor: float | None = None
    mscale: float = 0.0
    mscale_all: float = 0.0
    truncate: bool = True


Scaling = LinearScaling | Llama3Scaling | YarnScaling


def rotation(head_dim: int, theta: float, scaling: Scaling | None = None) -> Rotation:
    """Frequencies of the ``head_dim // 2`` pairs for the base ``theta``; the factor of sine and cosine."""
    plain = tuple(theta ** (-2 * pair / head_dim) for pair in range(head_dim // 2))
    match scaling:
        case None:
            return Rotation(plain)
        case LinearScaling():
            return Rotation(tuple(frequency / scaling.factor for frequency in plain))
        case Llama3Scaling():
            return Rotation(tuple(_llama3(frequency, scaling) for frequency in plain))
        case YarnScaling():
            stretched = _yarn_ramp(head_dim, theta, scaling)
            frequencies = (
                f * (1 - s) + f / scaling.factor * s for f, s in zip(plain, stretched, strict=True)
            )
            return Rotation(tuple(frequencies), _yarn_scale(scaling))


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    turns = scaling.original_context * frequency / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    kept = min(1.0, max(0.0, (turns - low) / (high - low)))
    return frequency * (kept + (1 - kept) / scaling.factor)


def _yarn_ramp(head_dim: int, theta: float, scaling: YarnScaling) -> tuple[float, ...]:
    """The stretched share of each pair."""

    def pair(turns: float) -> float:
        return head_dim * math.log(scaling.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    # A ramp without length is a step; transformers gives it this one.
    length = high - low if high != low else 0.001
    return tuple(min(1.0, max(0.0, (index - low) / length)) for index in range(head_dim // 2))


def sharpened(factor: float, mscale: float) -> float:
    """``0.1 mscale ln(factor) + 1`` (arXiv 2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _yarn_scale(scaling: YarnScaling) -> float:
    """``sharpened`` unless the config says otherwise."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all:
        return sharpened(scaling.factor, scaling.mscale) / sharpened(scaling.factor, scaling.mscale_all)
    return sharpened(scaling.factor, 1.0)
