"""The one error that users see: a code, the place, the cause and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum


class Exit(IntEnum):
    """Exit status of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INFEASIBLE = 3
    GATE = 4
    MISMATCH = 5


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong.

    ``code`` is stable (``IC004``) and listed in docs/errors.md; ``where`` is a place the user can open
    (``specs/chat.yaml:21``) or an empty string; ``because`` and ``fix`` may be empty, never misleading.
    """

    code: str
    message: str
    where: str = ""
    because: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        lines = [f"error[{self.code}]: {place}{self.message}"]
        if self.because:
            lines.append(f"  because: {self.because}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class InferCompileError(Exception):
    """Carries every problem found, so that a user mends them all at once."""

    def __init__(self, problems: Problem | Sequence[Problem], exit: Exit = Exit.FAILED) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.exit = exit
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type[InferCompileError], tuple[tuple[Problem, ...], Exit]]:
        """Between processes."""
        return type(self), (self.problems, self.exit)
