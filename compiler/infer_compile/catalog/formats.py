"""Weight formats and cache levels as a planner counts them: bits, and the arithmetic of their products."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict

Arithmetic = Literal["bf16", "fp8", "int8", "fp4"]
"""What a matrix product's inputs are rounded to; a device that has no such rate multiplies in bf16."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bits(_Frozen):
    """Bits per weight, scales included, by the part of the model. Vectors are always 16."""

    table: float = 16
    matrix: float
    expert: float
    head: float = 16


class WeightScheme(_Frozen):
    """A weight format as one engine stores it.

    ``experts_only``: in a model with experts the other matrices keep 16 bits. ``own_head``: a tied head is
    stored beside the table, in its own bits; otherwise both are one tensor.
    """

    name: str
    bits: Bits
    products: Arithmetic = "bf16"
    group: int = 0
    """Inputs that share a scale, of the formats that our own engine runs."""
    experts_only: bool = False
    own_head: bool = False
    calibrated: bool = False
    """Made with calibration text."""
    source: str


class CacheScheme(_Frozen):
    """A cache level: bits per cached number of keys and of values, and bytes of scales per vector of a head.

    ``exact_window``: the first and last pages of a sequence are kept in bf16.
    """

    name: str
    key_bits: float
    value_bits: float
    scale_bytes: float = 0
    exact_window: bool = False
    calibrated: bool = False
    source: str

    def bits(self, width: int) -> float:
        """Bits per cached number, of vectors of ``width`` numbers, scales included."""
        return (self.key_bits + self.value_bits) / 2 + 8 * self.scale_bytes / width


class Formats(_Frozen):
    """``weights`` are those of engines other than ours, whose formats are in ``runtime.formats``."""

    schema_version: Literal[1]
    weights: tuple[WeightScheme, ...]
    kv: tuple[CacheScheme, ...]

    @cached_property
    def _weights(self) -> dict[str, WeightScheme]:
        return {scheme.name: scheme for scheme in self.weights}

    @cached_property
    def _kv(self) -> dict[str, CacheScheme]:
        return {scheme.name: scheme for scheme in self.kv}

    def of_weights(self, name: str) -> WeightScheme:
        """Raises KeyError for a name without an entry."""
        return self._weights[name]

    def of_kv(self, name: str) -> CacheScheme:
        """Raises KeyError for a name without an entry."""
        return self._kv[name]
