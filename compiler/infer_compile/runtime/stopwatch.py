"""How long the parts of something took that is waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from .journal import Line


@dataclass(slots=True)
class Stopwatch:
    """Seconds of each phase."""

    began: float = field(default_factory=time.monotonic)
    phases: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        """``phase`` has ended just now."""
        self.phases[phase] = round(time.monotonic() - self.began - sum(self.phases.values()), 3)

    def line(self, event: str) -> Line:
        seconds = {f"{phase}_s": taken for phase, taken in self.phases.items()}
        return Line(event, seconds | {"seconds": round(sum(self.phases.values()), 3)})
