"""A candidate again under other loads, or with other drafts."""

from __future__ import annotations

import numpy as np

from ..block import Block, Counts, Solved, at
from ..candidate import Candidate
from ..deployment import Deployment
from ..performance.layout import Layout
from ..speculation import Drafting


def replay(
    asked: Deployment, one: Candidate, sequences: Counts, draftings: tuple[Drafting, ...] | None = None
) -> Solved:
    """``one`` with so many sequences in flight, each replaced when it ends: all of ``sequences`` with the
    first of ``draftings`` (default: its own), then all with the next."""
    drafts = draftings or (one.drafting,)
    size, spread = len(drafts) * len(sequences), one.layout
    layout = Layout(
        tensor=np.full(size, spread.tensor),
        pipeline=np.full(size, spread.pipeline),
        expert=np.full(size, spread.expert),
        data=np.full(size, spread.data),
        per_node=spread.per_node,
    )
    block = Block(
        engine=one.engine,
        weights=one.weights,
        stored=one.stored,
        cache=one.cache,
        speed=one.speed,
        layout=layout,
        draftings=drafts,
        drafted=np.repeat(np.arange(len(drafts)), len(sequences)),
        budget=np.full(size, one.budget),
        loss_of_weights=one.loss_of_weights,
        loss_of_cache=one.loss_of_cache,
    )
    return at(asked, block, np.tile(sequences, len(drafts)))
