"""Instruction sets that engines are compiled for, and what a processor must have for each."""

from __future__ import annotations

from pathlib import Path

_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
TILES = frozenset({"amx_tile", "amx_int8"})
NEEDED: dict[str, frozenset[str]] = {
    "amx": _AVX512 | TILES,
    "avx512": _AVX512,
    "avx2": _AVX2,
    "portable": frozenset(),
}
"""Largest first. Flags as /proc/cpuinfo names them."""


def flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """The flags of this machine's processor; None where there is no such file."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def lacking(isa: str, has: frozenset[str] | None) -> list[str]:
    """Flags that code compiled for ``isa`` needs and a processor with ``has`` lacks; none where that is not
    known."""
    return sorted(NEEDED.get(isa, frozenset()) - has) if has is not None else []
