"""Names of the spec that this version does not serve yet: refused by name, not guessed at.

A name leaves this file when the line serves it from end to end.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic_core import PydanticCustomError

UNSERVED: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "weights": MappingProxyType({"int4-hqq": "int4-rtn"}),
        "kv": MappingProxyType({}),
        "engine": MappingProxyType({}),
        "speculation": MappingProxyType({}),
    }
)
"""Key of a pin to the names that no engine serves, each with what comes nearest."""
NOUNS: Mapping[str, str] = MappingProxyType(
    {"weights": "weight format", "kv": "kv level", "engine": "engine", "speculation": "speculation"}
)


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
    instead = UNSERVED[key].get(value)
    if instead is not None:
        raise PydanticCustomError(
            "IC009",
            '{noun} "{value}" is not served by this version',
            {
                "noun": NOUNS[key],
                "value": value,
                "because": f"its engines serve {served}",
                "fix": f"{key}: {instead}",
            },
        )
    close = nearest(value, names)
    raise PydanticCustomError(
        "IC008",
        'there is no {noun} "{value}"',
        {
            "noun": NOUNS[key],
            "value": value,
            "because": f"the names are {served}",
            "fix": f"{key}: {close}" if close else "",
        },
    )
