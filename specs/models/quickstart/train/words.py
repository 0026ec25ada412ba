"""What the steps share: the names of the recall task and how token files are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

ADJECTIVES = (
    *("amber", "violet", "silver", "hollow", "distant", "quiet", "broken", "golden"),
    *("crimson", "northern", "paper", "frozen", "gentle", "rusty", "hidden", "marble"),
)
NOUNS = (
    *("falcon", "harbor", "engine", "lantern", "meadow", "compass", "cabin", "river"),
    *("signal", "garden", "anchor", "mirror", "tower", "ribbon", "kettle", "bridge"),
)
PAIRS = [(adjective, noun) for adjective in ADJECTIVES for noun in NOUNS]

BEGIN, END = 0, 1


def write_tokens(path: Path, ids: Sequence[int]) -> None:
    """Token ids as unsigned 16-bit numbers, little end first."""
    np.array(ids, dtype="<u2").tofile(path)
