"""Numbers for people."""

from __future__ import annotations

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def size(count: float) -> str:
    """``count`` bytes with three significant digits."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if count >= 0.1 * unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
