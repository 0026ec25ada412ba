"""The cache of a sequence in bytes of one device: what it keeps, and what a step reads of it.

Numbers may be arrays, one entry per candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.choices import CacheChoices
from ...catalog.formats import CacheScheme
from ...graph.cost import Attention
from ...runtime.formats.kv import LEVELS, CacheLayout, LevelName, Plane, layer_cache, shared_window
from ...runtime.formats.latent import LATENT_LEVELS, LatentLayout, LatentLevel, latent_token_bytes
from ...runtime.formats.weights import BF16
from .layout import Ints
from .shape import Heads, Shape

Floats = float | NDArray[np.floating[Any]] | NDArray[np.int64]
"""One number, or one for each candidate."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A level, in pages. ``windows_freed``: pages that no query sees again are given back.

    ``own``: that of our own engine, which counts its bytes itself, and beside compressed pages keeps
    ``sink_pages`` first ones and ``recent_pages`` before a query's own exact, and has pages to spare for
    ``kept_tails`` ends of prompts and answers that others may go on behind. ``levels``: of each layer with
    a cache, where they are not all at the scheme's. ``table_bytes``: of the numbers that calibrated levels
    are read with, at most; every step reads them.
    """

    scheme: CacheScheme
    page_tokens: int
    sink_pages: int = 0
    recent_pages: int = 0
    kept_tails: int = 0
    windows_freed: bool = True
    own: bool = False
    levels: tuple[LevelName, ...] = ()
    table_bytes: int = 0

    @property
    def spare_pages(self) -> int:
        """Exact pages beyond those of the sequences."""
        return self.kept_tails * self.recent_pages

    @property
    def packs(self) -> bool:
        """Whether sealed pages are kept compressed, beside an exact window."""
        return self.own and self.scheme.name != "bf16"

    def bits(self, heads: Heads) -> float:
        """Bits per number that the layers of ``heads`` keep, on their average, scales included."""
        if not self.own:
            return self.scheme.bits(heads.width)
        if heads.rotary is not None:
            return _latent_bits(LATENT_LEVELS[self.scheme.name], heads.width, heads.rotary)
        if not self.levels:
            return _own_bits(LEVELS[self.scheme.name], heads.width)
        return sum(_own_bits(self.levels[layer], heads.width) for layer in heads.layers) / len(heads.layers)


@lru_cache
def _latent_bits(level: LatentLevel, width: int, rotary: int) -> float:
    return 8 * latent_token_bytes(level, width - rotary, rotary) / width


@lru_cache
def _own_bits(level: LevelName, width: int) -> float:
    return layer_cache(level, width).bits_per_element(width)


def own_cache(
    shape: Shape,
    scheme: CacheScheme,
    pages: CacheChoices,
    windows_freed: bool,
    levels: tuple[LevelName, ...] = (),
    evicts: bool = False,
) -> Cache:
    """The cache of our own engine at the level of ``scheme``, or each layer at its own. Where sequences
    outgrow the context (``evicts``), sinks are what stays, compressed or not."""
    packs = scheme.name != "bf16"
    cache = Cache(
        scheme=scheme,
        page_tokens=int(pages.page_tokens.value),
        sink_pages=int(pages.sink_pages.value) if packs or evicts else 0,
        recent_pages=int(pages.recent_pages.value) if packs else 0,
        kept_tails=int(pages.kept_tails.value),
        windows_freed=windows_freed,
        own=True,
        levels=levels,
    )
    return replace(cache, table_bytes=_table_bytes(cache_layout(shape, cache)) if shape.heads else 0)


def _table_bytes(layout: CacheLayout | LatentLayout) -> int:
    """Of the tables that calibration makes, at most: as if none of the values' transforms were folded into
    the weights."""
    if isinstance(layout, LatentLayout):
        return 0
    layers = tuple(
        layer.model_copy(update={"keys": _dense(layer.keys), "values": _dense(layer.values)})
        for layer in layout.layers
    )
    return sum(table.bytes for table in layout.model_copy(update={"layers": layers}).tables())


def _dense(plane: Plane) -> Plane:
    return plane.model_copy(update={"transform": "dense"}) if plane.calibrated else plane


def cache_layout(shape: Shape, cache: Cache) -> CacheLayout | LatentLayout:
    """The cache of our own engine, of a model whose layers all keep the same heads."""
    heads = shape.heads[0]
    windows = (group.window for group in shape.totals.attention)
    layers = sum(group.layers for group in shape.totals.attention)
    if heads.rotary is not None:
        return LatentLayout(
            level=LATENT_LEVELS[cache.scheme.name],
            page_tokens=cache.page_tokens,
            sink_pages=cache.sink_pages,
            recent_pages=cache.recent_pages,
            rank=heads.width - heads.rotary,
            rope=heads.rotary,
            layers=layers,
        )
    level = LEVELS[cache.scheme.name]
    levels = cache.levels or (level,) * layers
    planes = {name: layer_cache(name, heads.width) for name in set(levels)}
    return CacheLayout(
        level=level,
        page_tokens=cache.page_tokens,
        sink_pages=cache.sink_pages,
        recent_pages=cache.recent_pages,
        kv_heads=heads.kv_heads,
        head_dim=heads.width,
        layers=tuple(planes[name] for name in levels),
        window=shared_window(windows) if cache.windows_freed else None,
    )


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes that one token's attention reads in all layers."""

    exact: Floats
    packed: Floats

    def seconds(self, exact: float, packed: float) -> Floats:
        """At so many bytes a second of either."""
        return self.exact / exact + self.packed / packed


def kept_bytes(shape: Shape, cache: Cache, context: Ints, tensor: Ints = 1) -> Floats:
    """Bytes that a sequence of ``context`` tokens keeps, whole pages, its state among them.

    Layers with a window keep that much of it where pages are freed. What our own engine keeps is counted
    page by page, in ``memory``.
    """
    pages = -(-np.asarray(context) // cache.page_tokens)
    total: Floats = np.asarray(shape.totals.state_bytes / np.asarray(tensor))
    for group, heads in zip(shape.totals.attention, shape.heads, strict=True):
        held = pages * cache.page_tokens
        if group.window is not None and cache.windows_freed:
            # A window may straddle one page more than it fills.
            held = np.minimum(held, group.window + cache.page_tokens)
        total = total + held * token_bytes(group, heads, cache, tensor)
    index = shape.totals.index_elements_per_token
    return total + pages * cache.page_tokens * index * BF16.bits / 8


def read_bytes(shape: Shape, cache: Cache, context: Ints, tensor: Ints = 1) -> Read:
    """What the last of ``context`` tokens reads: the keys and values that it sees, the index over all keys
    where there is one, and its sequence's state, which is read and written."""
    state = 2 * shape.totals.state_bytes / np.asarray(tensor)
    index = np.asarray(context) * shape.totals.index_elements_per_token * BF16.bits / 8
    exact, packed = state + index, np.zeros(())
    for group, heads in zip(shape.totals.attention, shape.heads, strict=True):
        near, far = visible(cache, context, group)
        elements, bits = _elements(group, heads, tensor), cache.bits(heads)
        exact = exact + near * elements * (BF16.bits if cache.packs else bits) / 8
        packed = packed + far * elements * bits / 8
    return Read(exact, packed)


def packed_share(shape: Shape, cache: Cache, context: Ints) -> Floats:
    """Which share of what the last of ``context`` tokens sees it sees packed."""
    if not cache.packs:
        return np.zeros(())
    seen, packed = np.zeros(()), np.zeros(())
    for group in shape.totals.attention:
        near, far = visible(cache, context, group)
        packed = packed + far * group.cache_elements_per_token
        seen = seen + (near + far) * group.cache_elements_per_token
    share: Floats = packed / seen
    return share


def visible(cache: Cache, context: Ints, group: Attention) -> tuple[Floats, Floats]:
    """Tokens that the last of ``context`` tokens sees exact and packed, itself included.

    With a window it sees that many of the last ones alone; where an index selects, as many as that. Without
    an exact window none is packed: all are read in the one form that there is.
    """
    tokens = np.asarray(context)
    seen = tokens if group.window is None else np.minimum(tokens, group.window)
    if group.selected is not None:
        seen = np.minimum(seen, group.selected)
    if not cache.packs:
        return seen, np.zeros_like(seen)
    first = np.maximum(0, tokens - group.window) if group.window else 0
    sinks = np.minimum(tokens, cache.sink_pages * cache.page_tokens)
    own_page = (tokens - 1) // cache.page_tokens
    recent = np.maximum(sinks, (own_page - cache.recent_pages) * cache.page_tokens)
    exact = np.minimum(seen, np.maximum(0, sinks - first) + tokens - np.maximum(recent, first))
    return exact, seen - exact


def token_bytes(group: Attention, heads: Heads, cache: Cache, tensor: Ints = 1) -> Floats:
    """Bytes of one token in all layers of ``group``."""
    return _elements(group, heads, tensor) * cache.bits(heads) / 8


def all_token_bytes(shape: Shape, cache: Cache) -> float:
    """Bytes of one token over all layers, wherever they are."""
    groups = zip(shape.totals.attention, shape.heads, strict=True)
    return sum(float(token_bytes(group, heads, cache)) for group, heads in groups)


def _elements(group: Attention, heads: Heads, tensor: Ints) -> Floats:
    """Numbers per token on one of ``tensor`` devices: its own key heads, or a copy of one; what belongs to no
    head is on every device."""
    latent = group.latent_elements_per_token
    split = (
        (group.cache_elements_per_token - latent)
        * np.ceil(heads.kv_heads / np.asarray(tensor))
        / heads.kv_heads
    )
    return latent + split
