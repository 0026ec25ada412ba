"""A Hugging Face ``config.json`` becomes a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..catalog.formats import checkpoint_format
from ..runtime.errors import InferCompileError, Problem
from . import counted, decoder, eagle3, medusa
from .architectures import (
    deepseek_v2,
    deepseek_v3,
    deepseek_v4,
    deepseek_v32,
    gemma2,
    gemma3,
    gemma4,
    glm_moe_dsa,
    gpt_oss,
    kimi_k25,
    llama,
    llama4,
    mimo,
    mimo_v2_flash,
    minimax_m2,
    minimax_m3,
    mistral,
    mixtral,
    nemotron_h,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_5,
    qwen3_moe,
    step3p7,
)
from .counted import Counted
from .decoder import Decoder
from .fields import Fields
from .graph import Graph
from .heads import Heads, method_of

ARCHITECTURES: Mapping[str, Callable[[Fields], Decoder]] = {
    module.NAME: module.read for module in (llama, mistral, mixtral, qwen2, qwen2_moe, qwen3, qwen3_moe)
}
"""Hugging Face class name to what reads its config: the Llama family, which the native engine runs."""

_COUNTED: tuple[tuple[tuple[str, ...], Callable[[Fields], Counted]], ...] = (
    (deepseek_v2.NAMES, deepseek_v2.read),
    (deepseek_v3.NAMES, deepseek_v3.read),
    (deepseek_v32.NAMES, deepseek_v32.read),
    (deepseek_v4.NAMES, deepseek_v4.read),
    (gemma2.NAMES, gemma2.read),
    (gemma3.NAMES, gemma3.read),
    (gemma4.NAMES, gemma4.read),
    (glm_moe_dsa.NAMES, glm_moe_dsa.read),
    (gpt_oss.NAMES, gpt_oss.read),
    (kimi_k25.NAMES, kimi_k25.read),
    (llama4.NAMES, llama4.read),
    (mimo.NAMES, mimo.read),
    (mimo_v2_flash.NAMES, mimo_v2_flash.read),
    (minimax_m2.NAMES, minimax_m2.read),
    (minimax_m3.NAMES, minimax_m3.read),
    (nemotron_h.NAMES, nemotron_h.read),
    (phi.NAMES, phi.read),
    (phi3.NAMES, phi3.read),
    (qwen3_5.NAMES, qwen3_5.read),
    (step3p7.NAMES, step3p7.read),
)

COUNTED: Mapping[str, Callable[[Fields], Counted]] = {
    name: read for names, read in _COUNTED for name in names
}
"""Models of other shapes, for a planner to count and other engines to run."""

NATIVE = frozenset((*ARCHITECTURES, *deepseek_v2.NAMES, *deepseek_v3.NAMES))
"""Those that the native engine runs, where their configs ask for nothing strange."""


def build(config: Mapping[str, object], name: str = "") -> Graph:
    """The graph of the model that ``config`` describes; ``name`` is for people.

    Raises InferCompileError with everything that is wrong: IC110 an architecture that is not known, IC111 a
    missing field, IC112 a wrong value, IC113 fields that contradict each other, IC114 rotary settings that
    are not known.
    """
    where = f"config.json of {name}" if name else "config.json"
    architecture = _architecture(config, where)
    fields = Fields(config, where)
    if architecture in ARCHITECTURES:
        shape = ARCHITECTURES[architecture](fields)
        fields.finish()
        built = decoder.graph(shape, architecture, name)
    else:
        model = COUNTED[architecture](fields)
        fields.finish()
        built = counted.graph(model, architecture, name)
    return replace(built, stored_as=checkpoint_format(config))


def build_heads(config: Mapping[str, object], model: Graph, name: str = "") -> Heads | None:
    """The heads that ``config`` describes, which draft for ``model``; None for a model of its own.

    Raises InferCompileError with everything that is wrong: IC111 to IC114 as ``build``, IC138 heads of a
    model of another shape.
    """
    method = method_of(config)
    if method is None:
        return None
    fields = Fields(config, f"config.json of {name}" if name else "config.json")
    read = {"medusa": medusa.read, "eagle3": eagle3.read}[method]
    found = read(fields, model, name)
    fields.finish()
    return found


def _architecture(config: Mapping[str, object], where: str) -> str:
    known = ", ".join((*ARCHITECTURES, *COUNTED))
    named = config.get("architectures")
    if not isinstance(named, list | tuple) or len(named) != 1 or not isinstance(named[0], str):
        message = "architectures is missing" if named is None else f"architectures is {named!r}"
        raise InferCompileError(
            Problem("IC110", message, where, "it names the model's class", f"one of: {known}")
        )
    if named[0] not in ARCHITECTURES and named[0] not in COUNTED:
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
