"""A Hugging Face ``config.json`` becomes a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..runtime.errors import InferCompileError, Problem
from . import decoder
from .architectures import llama, mistral, qwen2, qwen3
from .decoder import Decoder
from .fields import Fields
from .graph import Graph

Reader = Callable[[Fields], Decoder]

ARCHITECTURES: Mapping[str, Reader] = {module.NAME: module.read for module in (llama, mistral, qwen2, qwen3)}
"""Hugging Face class name to what reads its config."""


def build(config: Mapping[str, object], name: str = "") -> Graph:
    """The graph of the model that ``config`` describes; ``name`` is for people.

    Raises InferCompileError with everything that is wrong: IC110 an architecture that is not known, IC111 a
    missing field, IC112 a wrong value, IC113 fields that contradict each other, IC114 rotary settings that
    are not known.
    """
    where = f"config.json of {name}" if name else "config.json"
    architecture = _architecture(config, where)
    fields = Fields(config, where)
    shape = ARCHITECTURES[architecture](fields)
    fields.finish()
    return decoder.graph(shape, architecture, name)


def _architecture(config: Mapping[str, object], where: str) -> str:
    known = ", ".join(ARCHITECTURES)
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or len(named) != 1 or not isinstance(named[0], str):
        message = "architectures is missing" if named is None else f"architectures is {named!r}"
        raise InferCompileError(
            Problem("IC110", message, where, "it names the model's class", f"one of: {known}")
        )
    if named[0] not in ARCHITECTURES:
        raise InferCompileError(
            Problem(
                "IC110",
                f"architecture {named[0]!r} is not known",
                where,
                f"known: {known}",
                "choose a model of one of these architectures",
            )
        )
    return named[0]
