"""The checkpoint of heads under the names that their graph has, with what they take from the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.program import Program
from .checkpoint import Checkpoint
from .shard import Shard

Int32 = NDArray[np.int32]
SHARED = {"embed_tokens.weight": "model.embed_tokens.weight"}
"""Tensors that heads may leave out, since they are the model's: their name in the model's checkpoint."""
OFFSETS = "d2t"
"""What to add to a token of the heads' vocabulary to get the model's."""


def joined(
    heads: Checkpoint, model: Checkpoint, program: Program, names: Callable[[str], tuple[str, ...]]
) -> Checkpoint:
    """The tensors of ``program`` from ``heads``, which may have each under any of its ``names``, or from
    ``model``. What neither has is left out."""
    shards: dict[str, Shard] = {}
    for wanted in (source for tensor in program.tensors for source in tensor.sources):
        places = [(heads, name) for name in names(wanted)] + [(model, SHARED.get(wanted, ""))]
        for checkpoint, name in places:
            if name in checkpoint.shards:
                shard = checkpoint.shards[name]
                shards[wanted] = replace(shard, entries={wanted: shard.entries[name]})
                break
    return Checkpoint(heads.folder, dict(sorted(shards.items())))


def tokens(heads: Checkpoint, program: Program) -> Int32:
    """The model's tokens that the logits of ``program`` stand for.

    Raises InferCompileError: IC128 where the heads have a vocabulary of their own and do not say, IC129 where
    they say it of another number of tokens, IC138 where they name tokens that the model does not have.
    """
    own = np.arange(program.logits)
    if OFFSETS not in heads.shards:
        if program.logits == program.vocabulary:
            return own.astype(np.int32)
        raise InferCompileError(
            Problem(
                "IC128",
                f"the checkpoint lacks the tensor {OFFSETS}",
                str(heads.folder),
                f"its vocabulary of {program.logits} is not the model's of {program.vocabulary}",
                "check that config.json and the weights are of one drafter",
            )
        )
    offsets = heads.read(OFFSETS)
    if offsets.shape != own.shape or offsets.dtype.kind != "i":
        raise InferCompileError(
            Problem(
                "IC129",
                f"the tensor {OFFSETS} is {offsets.dtype} of shape {list(offsets.shape)}",
                str(heads.folder),
                f"it has to hold a whole number for each of {program.logits} tokens",
                "check that config.json and the weights are of one drafter",
            )
        )
    found = own + offsets
    if len(found) and (found.min() < 0 or found.max() >= program.vocabulary):
        raise InferCompileError(
            Problem(
                "IC138",
                "the heads were made for another model",
                str(heads.folder),
                f"{OFFSETS} names tokens from {found.min()} to {found.max()}, and the model has "
                f"{program.vocabulary}",
                "name heads that were trained with this model, or model: {draft: none}",
            )
        )
    return found.astype(np.int32)
