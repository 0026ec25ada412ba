"""Weight formats: what a stored matrix looks like and how many bytes it takes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Activation = Literal["none", "int8"]


class WeightFormat(BaseModel):
    """How one matrix of ``rows x cols`` (outputs x inputs) is stored.

    Values are ``bits`` wide. A format with ``group > 0`` keeps one bf16 scale per row and ``group``
    consecutive inputs and is symmetric around zero. ``activation`` names what its inputs are rounded to
    before the product, in groups of the same size; the Program makes that rounding an operation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bits: int
    group: int = 0
    activation: Activation = "none"

    def fits(self, cols: int) -> bool:
        """Whether a row of ``cols`` inputs divides into whole groups."""
        return self.group == 0 or cols % self.group == 0

    def bytes(self, rows: int, cols: int) -> int:
        """Bytes of the values and their scales."""
        scales = 2 * rows * (cols // self.group) if self.group else 0
        return rows * cols * self.bits // 8 + scales

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight with the scales."""
        return self.bits + (16 / self.group if self.group else 0)


GROUPS = (32, 64, 128)
DEFAULT_GROUP = 64
BF16 = WeightFormat(name="bf16", bits=16)


def weight_format(name: str, group: int = DEFAULT_GROUP) -> WeightFormat:
    """The descriptor of ``name``; raises KeyError for a name without one."""
    return {
        "bf16": BF16,
        "int8": WeightFormat(name="int8", bits=8, group=group, activation="int8"),
        "int4-rtn": WeightFormat(name="int4-rtn", bits=4, group=group, activation="int8"),
    }[name]


NAMES = ("bf16", "int8", "int4-rtn")
