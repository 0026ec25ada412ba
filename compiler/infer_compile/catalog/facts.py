"""All that the planner knows beside the spec, the graph and the target."""

from __future__ import annotations

from pathlib import Path

import yaml

from .choices import Choices
from .coefficients import Coefficients
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
        engines=Engines.model_validate(_read("engines.yaml")),
        coefficients=Coefficients.model_validate(_read("coefficients.yaml")),
        formats=Formats.model_validate(_read("formats.yaml")),
        quality=Quality.model_validate(_read("quality.yaml")),
        speculation=SpeculationFacts.model_validate(_read("speculation.yaml")),
        choices=Choices.model_validate(_read("choices.yaml")),
    )


def _read(name: str) -> object:
    text = (Path(__file__).parent / name).read_text(encoding="utf-8")
    # libyaml, where PyYAML was built with it, is ten times faster.
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
