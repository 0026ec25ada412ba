"""What a container may use of the machine: the limits of this process's control group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


def memory_limit(root: Path = ROOT, membership: Path = SELF) -> int | None:
    """Bytes, the tightest from this group up to the root; None where nothing limits."""
    found = [
        int(text)
        for folder in _folders(root, membership, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _text(folder / name)).isdigit()
    ]
    # The first version writes "no limit" as the largest multiple of a page.
    limits = [limit for limit in found if limit < 1 << 60]
    return min(limits, default=None)


def cpu_quota(root: Path = ROOT, membership: Path = SELF) -> float | None:
    """Processors' worth of time per second, the tightest; None where nothing limits."""
    quotas = []
    for folder in _folders(root, membership, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def _folders(root: Path, membership: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of those around it, for version 2 and version 1."""
    for line in _text(membership).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        if controllers and not top.is_dir():
            top = root / controller
        inner = Path(path.lstrip("/"))
        # Inside a container the group's own path may not be visible: its root then is the container's group.
        yield from (top / each for each in (inner, *inner.parents) if (top / each).is_dir())


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
