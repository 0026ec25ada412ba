"""What is served, and within which limits."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from ..chat import ChatTemplate
from ..grammar import Grammars
from ..loop import EngineLoop
from ..measure import Measured
from ..tokenizer import Tokenizer
from .calls import Form, form_of
from .drain import Drain
from .metrics import Metrics
from .traces import Traces


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for; more is refused before it costs anything."""

    body_bytes: int = 8 * 2**20
    header_bytes: int = 16 * 2**10
    prompt_tokens: int | None = None
    """None: as many as the context holds."""
    choices: int = 64
    """Prompts times ``n``."""


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    fingerprint: str
    version: dict[str, Any]
    engine: EngineLoop
    tokenizer: Tokenizer
    template: ChatTemplate | None
    grammars: Grammars
    metrics: Metrics
    measured: Measured
    limits: Limits = field(default_factory=Limits)
    traces: Traces | None = None
    drain: Drain = field(default_factory=Drain)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def vocabulary(self) -> int:
        return self.engine.engine.program.vocabulary

    @property
    def form(self) -> Form | None:
        """How the model's chat template has tools called."""
        return form_of(self.template.source) if self.template is not None else None
