"""Weight formats: what a stored matrix looks like and how many bytes it takes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Activation = Literal["none", "int8", "fp8"]
Rounded = Literal["int8", "fp8"]
"""What the inputs of a product are rounded to, where they are."""


class WeightFormat(BaseModel):
    """How one matrix of ``rows x cols`` (outputs x inputs) is stored.

    Values are ``bits`` wide: integers symmetric around zero, or floating-point numbers (float32, bfloat16, or
    e4m3 in 8 bits). What is narrower than bfloat16 keeps bf16 scales: one per row and ``group`` consecutive
    inputs, or, where ``group`` is 0, one per row. ``activation`` names what inputs are rounded to before the
    product, in groups of the same size; the Program makes that rounding an operation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bits: int
    type: Literal["int", "float"] = "int"
    group: int = 0
    activation: Activation = "none"

    def fits(self, cols: int) -> bool:
        """Whether a row of ``cols`` inputs divides into whole groups."""
        return self.group == 0 or cols % self.group == 0

    @property
    def scaled(self) -> bool:
        """Whether values are multiples of scales."""
        return self.bits < 16

    def scale_group(self, cols: int) -> int:
        """Inputs of a row of ``cols`` that share a scale, of a format that is ``scaled``."""
        return self.group or cols

    def bytes(self, rows: int, cols: int) -> int:
        """Bytes of the values and their scales."""
        scales = cols // self.scale_group(cols) if self.scaled else 0
        return rows * (cols * self.bits // 8 + SCALE_BITS // 8 * scales)

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight with the scales of groups."""
        return self.bits + (SCALE_BITS / self.group if self.group else 0)

    @property
    def bits_per_row(self) -> int:
        """Bits of a scale that belongs to a whole row."""
        return SCALE_BITS if self.scaled and not self.group else 0


SCALE_BITS = 16
GROUPS = (32, 64, 128)
DEFAULT_GROUP = 64
F32 = WeightFormat(name="f32", bits=32, type="float")
"""Of the few numbers that are never rounded: no matrix is in it."""
BF16 = WeightFormat(name="bf16", bits=16, type="float")
FP8 = WeightFormat(name="fp8", bits=8, type="float", activation="fp8")


def weight_format(name: str, group: int = DEFAULT_GROUP) -> WeightFormat:
    """The descriptor of ``name``, in groups of that size if it has any; raises KeyError for a name without
    one."""
    return {
        "bf16": BF16,
        "fp8": FP8,
        "int8": WeightFormat(name="int8", bits=8, group=group, activation="int8"),
        "int4-rtn": WeightFormat(name="int4-rtn", bits=4, group=group, activation="int8"),
    }[name]


NAMES = ("bf16", "int8", "int4-rtn", "fp8")
GROUPED = tuple(name for name in NAMES if weight_format(name).group)
"""Formats with groups."""
