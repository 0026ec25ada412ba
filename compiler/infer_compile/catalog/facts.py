"""All that the planner knows beside the spec, the graph and the target."""

from __future__ import annotations

from .choices import Choices
from .coefficients import Coefficients
from .data import read
from .engines import Engines
from .figure import Frozen
from .formats import Formats
from .quality import Quality
from .speculation import SpeculationFacts


class Facts(Frozen):
    engines: Engines
    coefficients: Coefficients
    formats: Formats
    quality: Quality
    speculation: SpeculationFacts
    choices: Choices


def load_facts() -> Facts:
    """The facts that ship with this version."""
    return Facts(
        engines=Engines.model_validate(read("engines.yaml")),
        coefficients=Coefficients.model_validate(read("coefficients.yaml")),
        formats=Formats.model_validate(read("formats.yaml")),
        quality=Quality.model_validate(read("quality.yaml")),
        speculation=SpeculationFacts.model_validate(read("speculation.yaml")),
        choices=Choices.model_validate(read("choices.yaml")),
    )
