"""Seconds that a step waits for its draft."""

from __future__ import annotations

import numpy as np

from ..runtime.formats.weights import BF16
from .performance.cache import Floats
from .performance.latency import REDUCES_PER_LAYER, Speed
from .performance.layout import Layout
from .speculation import Drafting


def draft_seconds(one: Drafting, speed: Speed, layout: Layout, sequences: Floats, context: Floats) -> Floats:
    """The passes of the drafter for ``sequences`` sequences of a copy after about ``context`` tokens.

    The drafter is split as the model's layers are; it runs on the devices that read the model, one after the
    other.
    """
    tensor = np.asarray(layout.tensor)
    cached = sequences * context * one.draft_cache_elements_per_token * BF16.bits / 8
    reads = one.pass_bytes(sequences) / speed.weight_bandwidth + cached / speed.exact_bandwidth
    work = sequences * one.draft_flops_per_token / speed.decode_matrix_rate
    sums = np.where(tensor > 1, REDUCES_PER_LAYER * speed.reduce, 0.0)
    each = (reads + work) / tensor + one.draft_layers * (speed.layer + sums)
    waited: Floats = one.passes * each + one.host_seconds + sequences * one.host_seconds_per_sequence
    return waited
