"""Cache levels: what a cached token looks like, how many bytes it takes, and who sees which form of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from .paging import Paging, Table

LevelName = Literal["bf16", "fp8", "int8", "k8v4", "tq4", "tq3", "tq2", "ct4", "ct3", "ct2"]
Transform = Literal["none", "hadamard", "dense", "diagonal"]
Side = Literal["keys", "values"]
SIDES: tuple[Side, Side] = ("keys", "values")
HEAD_DIMS = (64, 96, 128, 256)
GRANULE = 16
"""Columns come in multiples of this; one bit of so many columns is two bytes of every vector."""
STRIP_BITS = 4
"""The widest code that is looked up in one table, and multiplied in bytes."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Segment(_Frozen):
    """Neighbouring ``columns`` of a transformed vector whose codes have ``bits`` (1 to 8) each."""

    bits: int
    columns: int

    @property
    def wide(self) -> bool:
        """Whether its integers are odd and evenly apart, and multiplied as numbers of 16 bits."""
        return self.bits > STRIP_BITS


class Strip(_Frozen):
    """How codes of a segment lie in a page: ``bits`` (1 to 4) of them from bit ``shift`` on, of ``columns``
    columns from ``first`` on."""

    bits: int
    first: int
    columns: int
    shift: int = 0


class Plane(_Frozen):
    """How one vector (a key or a value of one head) is stored.

    ``codes`` of the segments follow a ``transform``: ``hadamard`` needs no data and keeps one fp16 scale per
    vector; ``dense`` and ``diagonal`` read tables that were calibrated. Dimensions beyond the columns of all
    segments keep nothing.
    """

    kind: Literal["bf16", "fp8", "codes"]
    transform: Transform = "none"
    segments: tuple[Segment, ...] = ()
    scale_bytes: int = 0

    @property
    def calibrated(self) -> bool:
        return self.transform in ("dense", "diagonal")

    @property
    def columns(self) -> int:
        return sum(segment.columns for segment in self.segments)

    def vector_bytes(self, head_dim: int) -> int:
        """Bytes of one vector of ``head_dim`` elements, its scale included."""
        if self.kind != "codes":
            return head_dim * (2 if self.kind == "bf16" else 1)
        return sum(segment.bits * segment.columns for segment in self.segments) // 8 + self.scale_bytes

    @property
    def strips(self) -> tuple[Strip, ...]:
        """The segments as they are stored: more than 4 bits are the upper 4 and then the rest."""
        return tuple(self._strips())

    def _strips(self) -> Iterator[Strip]:
        first = 0
        for segment in self.segments:
            low = max(0, segment.bits - STRIP_BITS)
            yield Strip(bits=segment.bits - low, first=first, columns=segment.columns, shift=low)
            if low:
                yield Strip(bits=low, first=first, columns=segment.columns)
            first += segment.columns


class LayerCache(_Frozen):
    """One layer's keys and values at ``level``."""

    level: LevelName
    keys: Plane
    values: Plane

    def plane(self, side: Side) -> Plane:
        return self.keys if side == "keys" else self.values

    def token_bytes(self, head_dim: int, kv_heads: int) -> int:
        """Bytes of one token in this layer: a key and a value per head."""
        return kv_heads * (self.keys.vector_bytes(head_dim) + self.values.vector_bytes(head_dim))

    def bits_per_element(self, head_dim: int) -> float:
        """Marginal bits per cached number, scales included."""
        return 8 * self.token_bytes(head_dim, 1) / (2 * head_dim)


_BF16 = Plane(kind="bf16")
_FP8 = Plane(kind="fp8")


def _rotated(bits: int, head_dim: int) -> Plane:
    segment = Segment(bits=bits, columns=head_dim)
    return Plane(kind="codes", transform="hadamard", segments=(segment,), scale_bytes=2)


def _flat(bits: int, head_dim: int, transform: Transform) -> Plane:
    """As many bytes as ``_rotated``: what a scale takes is one bit more for the leading columns."""
    segments = (
        Segment(bits=bits + 1, columns=GRANULE),
        Segment(bits=bits, columns=head_dim - GRANULE),
    )
    return Plane(kind="codes", transform=transform, segments=segments)


LEVELS: Mapping[str, LevelName] = MappingProxyType({name: name for name in get_args(LevelName)})
"""Every level under its name."""


def layer_cache(level: LevelName, head_dim: int) -> LayerCache:
    """A layer at ``level``. Of a calibrated level this is what it takes on average over the layers: which
    columns get how many bits is found at build."""
    match level:
        case "bf16":
            keys = values = _BF16
        case "fp8":
            keys = values = _FP8
        case "int8":
            keys = values = _rotated(8, head_dim)
        case "k8v4":
            keys, values = _FP8, _rotated(4, head_dim)
        case "tq4" | "tq3" | "tq2":
            keys = values = _rotated(int(level[-1]), head_dim)
        case "ct4" | "ct3" | "ct2":
            bits = int(level[-1])
            keys, values = _flat(bits, head_dim, "dense"), _flat(bits, head_dim, "diagonal")
    return LayerCache(level=level, keys=keys, values=values)


class CacheLayout(Paging):
    """The cache of one model: keys and values of ``kv_heads`` heads in every layer. Layers may differ in
    level; one at bf16 among compressed ones keeps a copy in bf16 as its compressed form."""

    level: LevelName
    kv_heads: int
    head_dim: int
    layers: tuple[LayerCache, ...]
    signs: str = ""
    """Signs of the rotation, one bit per dimension, hexadecimal, least significant bit first in each byte."""

    @property
    def cached_layers(self) -> int:
        return len(self.layers)

    @cached_property
    def token_bytes(self) -> int:
        """Marginal bytes of one more token over all layers."""
        return sum(layer.token_bytes(self.head_dim, self.kv_heads) for layer in self.layers)

    @property
    def exact_token_bytes(self) -> int:
        """Bytes of one exact (bf16) token over all layers."""
        return len(self.layers) * layer_cache("bf16", self.head_dim).token_bytes(self.head_dim, self.kv_heads)

    @property
    def unpacked(self) -> CacheLayout:
        """What a sequence without compressed pages sees: the same, and every page exact."""
        layers = uniform("bf16", len(self.layers), self.head_dim)
        # Not copied: a copy would keep the bytes that were counted for these layers.
        return CacheLayout.model_validate(self.model_dump() | {"level": "bf16", "layers": layers})

    def tables(self) -> Iterator[Table]:
        """What calibrated planes read, in order, named ``layers.{layer}.{keys|values}.{what}``.

        ``mean`` [kv_heads, head_dim] is taken from every vector when it is appended. ``dense``: ``encode``
        and ``decode`` [kv_heads, columns, head_dim], in units of the integer tables: y = encode x,
        x = decode^T y. ``diagonal``: ``scale`` [kv_heads, columns]: y = x / scale.
        """
        for index, layer in enumerate(self.layers):
            for side in SIDES:
                plane = layer.plane(side)
                if not plane.calibrated:
                    continue
                prefix = f"layers.{index}.{side}"
                yield Table(name=f"{prefix}.mean", shape=(self.kv_heads, self.head_dim))
                if plane.transform == "diagonal":
                    yield Table(name=f"{prefix}.scale", shape=(self.kv_heads, plane.columns))
                else:
                    shape = (self.kv_heads, plane.columns, self.head_dim)
                    yield Table(name=f"{prefix}.encode", shape=shape)
                    yield Table(name=f"{prefix}.decode", shape=shape)


def uniform(level: LevelName, layers: int, head_dim: int) -> tuple[LayerCache, ...]:
    """``layers`` layers at one level."""
    return (layer_cache(level, head_dim),) * layers


def shared_window(windows: Iterable[int | None]) -> int | None:
    """The tokens that some layer still sees, of each layer's window: None where one sees everything."""
    each = tuple(windows)
    found = [window for window in each if window is not None]
    return max(found) if found and len(found) == len(each) else None
