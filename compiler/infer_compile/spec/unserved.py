"""Names and keys of the spec that this version does not serve yet: refused by name, not guessed at.

A name leaves this file when the line serves it from end to end.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic_core import PydanticCustomError

_LLAMA_CPP_WEIGHTS = {"q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k", "iq4_xs"}
UNSERVED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "weights": frozenset(
            {"fp8", "int4-awq", "int4-gptq", "int4-hqq", "nvfp4", "mxfp4"} | _LLAMA_CPP_WEIGHTS
        ),
        "kv": frozenset({"fp8", "int8", "k8v4", "tq4", "tq2", "ct4", "ct3", "ct2"}),
        "engine": frozenset({"tensorrt-llm", "vllm", "sglang", "llama.cpp"}),
        "speculation": frozenset({"draft", "ngram", "eagle3", "medusa", "mtp", "lookahead"}),
    }
)
_NOUNS = MappingProxyType(
    {"weights": "weight format", "kv": "kv level", "engine": "engine", "speculation": "speculation"}
)

KEYS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "quality.calibration": (
            "no weight format or kv level of this version is calibrated",
            "remove calibration",
        ),
        "quality.evaluation": ("this version does not measure the quality of a bundle", "remove evaluation"),
    }
)
"""Dotted key to (because, fix)."""


def nearest(name: str, names: Sequence[str]) -> str | None:
    """The one of ``names`` that ``name`` was probably meant to be."""
    folded = {candidate.lower(): candidate for candidate in reversed(names)}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def served_name(key: str, value: str, names: tuple[str, ...]) -> str:
    """``value`` if it is one of ``names``; otherwise raises IC009 (to come) or IC008 (not a name at all)."""
    if value in names:
        return value
    served = ", ".join(names)
    if value in UNSERVED[key]:
        raise PydanticCustomError(
            "IC009",
            '{noun} "{value}" is not served by this version',
            {
                "noun": _NOUNS[key],
                "value": value,
                "because": f"it serves {served}",
                "fix": f"{key}: {names[-1]}",
            },
        )
    close = nearest(value, names)
    raise PydanticCustomError(
        "IC008",
        'there is no {noun} "{value}"',
        {
            "noun": _NOUNS[key],
            "value": value,
            "because": f"the names are {served}",
            "fix": f"{key}: {close}" if close else "",
        },
    )
