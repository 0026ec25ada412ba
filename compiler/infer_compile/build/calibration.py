"""Calibrated cache levels: the model is run over a text once, and every candidate's cache is fitted to it."""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluate.gauge import Pieces, whole
from ..quantize.cache.calibrated import FILE, Calibrated
from ..quantize.cache.requirement import require_torch
from ..quantize.checkpoint import Checkpoint
from ..runtime.formats.program import Program
from . import identity
from .inputs import Inputs
from .phase import Phase
from .progress import Advance

if TYPE_CHECKING:
    from ..quantize.cache.calibrate import Measured

NAME = "calibrate"
FOLDER = "calibration"
"""Where the calibrated cache lies until the engine takes it along."""


def is_calibrated(program: Program) -> bool:
    return any(True for _ in program.cache.tables())


class Calibration:
    """Of the model and the text of ``inputs``. Raises InferCompileError IC361 without PyTorch."""

    def __init__(self, inputs: Inputs) -> None:
        require_torch()
        self._inputs = inputs
        self._advance: Advance = lambda done, total: None

    def phase(self, program: Program) -> Phase:
        """Fit the cache of ``program``, which was planned; the model is run by the first such phase alone.

        Its work raises InferCompileError IC360 for a text that is too short.
        """

        def work(folder: Path, advance: Advance) -> None:
            from ..quantize.cache.calibrate import fit

            self._advance = advance
            found = fit(self._measured, program)
            (folder / FOLDER).mkdir()
            found.save(folder / FOLDER / FILE)

        inputs = self._inputs
        text = inputs.asked.calibration or ""
        parts = (program.digest, text, inputs.model_digest, identity.tool(inputs.toolchain))
        return Phase(NAME, (FOLDER,), identity.key(NAME, *parts), work, unit="tokens")

    @cached_property
    def _measured(self) -> Measured:
        # PyTorch is an extra, so what needs it is imported when it is needed.
        from ..quantize.cache.calibrate import CONTEXT, TOKENS, measure

        inputs = self._inputs
        text = inputs.calibration
        if text is None:
            raise ValueError("a calibrated plan has a text to calibrate on")
        pieces: Pieces = whole(text, inputs.folder, CONTEXT, TOKENS)
        checkpoint = Checkpoint.open(inputs.folder)
        return measure(checkpoint, inputs.program, pieces, name=text.name, progress=self._advance)


def read(folder: Path) -> Calibrated:
    """What the last phase left in ``folder``."""
    return Calibrated.load(folder / FOLDER / FILE)


def take_along(folder: Path, to: str) -> None:
    """Put the calibrated cache beside the engine in the folder ``to``."""
    engine = folder / to
    engine.mkdir(exist_ok=True)
    shutil.copyfile(folder / FOLDER / FILE, engine / FILE)
