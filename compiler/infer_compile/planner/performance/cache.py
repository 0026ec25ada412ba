"""The cache of a sequence in bytes of one device: what it keeps, and what a step reads of it.

Numbers may be arrays, one entry per candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...catalog.formats import CacheScheme
from ...graph.cost import Attention
from ...runtime.formats.weights import BF16
from .layout import Ints
from .shape import Heads, Shape

Floats = float | NDArray[np.floating[Any]] | NDArray[np.int64]
"""One number, or one for each candidate."""


@dataclass(frozen=True, slots=True)
class Cache:
    """A level, in pages. Where the scheme keeps a window exact, it is ``sink_pages`` first pages and
    ``recent_pages`` before a query's own. ``windows_freed``: pages that no query sees again are given back.
    """

    scheme: CacheScheme
    page_tokens: int
    sink_pages: int = 0
    recent_pages: int = 0
    windows_freed: bool = True


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes that one token's attention reads in all layers."""

    exact: Floats
    packed: Floats


def kept_bytes(shape: Shape, cache: Cache, context: Ints, tensor: Ints = 1) -> Floats:
    """Bytes that a sequence of ``context`` tokens keeps, whole pages, its state among them.

    Layers with a window keep that much of it where pages are freed; a level with an exact window keeps that
    part a second time.
    """
    pages = -(-np.asarray(context) // cache.page_tokens)
    total: Floats = np.asarray(shape.totals.state_bytes / np.asarray(tensor))
    for group, heads in zip(shape.totals.attention, shape.heads, strict=True):
        held = pages * cache.page_tokens
        if group.window is not None and cache.windows_freed:
            # A window may straddle one page more than it fills.
            held = np.minimum(held, group.window + cache.page_tokens)
        total = total + held * token_bytes(group, heads, cache.scheme, tensor)
        if cache.scheme.exact_window:
            exact = np.minimum(pages, cache.sink_pages + cache.recent_pages + 2) * cache.page_tokens
            total = total + exact * _elements(group, heads, tensor) * BF16.bits / 8
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
        elements = _elements(group, heads, tensor)
        exact = exact + near * elements * (
            BF16.bits / 8 if cache.scheme.exact_window else _bytes(heads, cache.scheme)
        )
        packed = packed + far * elements * _bytes(heads, cache.scheme)
    return Read(exact, packed)


def visible(cache: Cache, context: Ints, group: Attention) -> tuple[Floats, Floats]:
    """Tokens that the last of ``context`` tokens sees exact and packed, itself included.

    With a window it sees that many of the last ones alone; where an index selects, as many as that. Without
    an exact window none is packed: all are read in the one form that there is.
    """
    tokens = np.asarray(context)
    seen = tokens if group.window is None else np.minimum(tokens, group.window)
    if group.selected is not None:
        seen = np.minimum(seen, group.selected)
    if not cache.scheme.exact_window:
        return seen, np.zeros_like(seen)
    first = np.maximum(0, tokens - group.window) if group.window else 0
    sinks = np.minimum(tokens, cache.sink_pages * cache.page_tokens)
    own_page = (tokens - 1) // cache.page_tokens
    recent = np.maximum(sinks, (own_page - cache.recent_pages) * cache.page_tokens)
    exact = np.minimum(seen, np.maximum(0, sinks - first) + tokens - np.maximum(recent, first))
    return exact, seen - exact


def token_bytes(group: Attention, heads: Heads, scheme: CacheScheme, tensor: Ints = 1) -> Floats:
    """Bytes of one token in all layers of ``group``."""
    return _elements(group, heads, tensor) * _bytes(heads, scheme)


def _bytes(heads: Heads, scheme: CacheScheme) -> float:
    return scheme.bits(heads.width) / 8


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
