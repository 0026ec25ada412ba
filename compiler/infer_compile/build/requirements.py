"""What a bundle's runtime needs from the package index, pinned to the versions installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ..runtime.errors import InferCompileError, Problem
from .ship import runtime_folder

TRACING = ("opentelemetry-sdk>=1.30", "opentelemetry-exporter-otlp-proto-http>=1.30")
"""What a server that traces its requests needs besides."""


def direct() -> list[str]:
    """What the modules of ``runtime/`` import, as requirements: no PyTorch, nothing of the compiler."""
    lines = (runtime_folder() / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line]


def on_gpus() -> list[tuple[str, str]]:
    """(name, version) of what the engine of GPUs needs besides: as the file has them, for they need not be
    installed where a bundle is built."""
    lines = (runtime_folder() / "requirements-cuda.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line]
    return [(one.name, next(iter(one.specifier)).version) for one in wanted]


def pinned(requirements: Iterable[str]) -> list[tuple[str, str]]:
    """(name, version) of ``requirements`` and of everything they need on a machine like this one, sorted.

    Raises IC341 for one that is not installed.
    """
    versions: dict[str, str] = {}
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in versions:
            continue
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise InferCompileError(
                Problem(
                    "IC341",
                    f'the package "{name}" is not installed',
                    because="the bundle's server needs it, and is pinned to the version installed here",
                    fix=f"python -m pip install {name}",
                )
            ) from error
        versions[name] = found.version
        waiting += [need for need in map(Requirement, found.requires or ()) if _holds(need, wanted)]
    return sorted(versions.items())


def _holds(need: Requirement, by: Requirement) -> bool:
    """Whether ``by`` brings ``need`` along here, with the extras that it asks for."""
    return need.marker is None or any(need.marker.evaluate({"extra": name}) for name in ("", *by.extras))
