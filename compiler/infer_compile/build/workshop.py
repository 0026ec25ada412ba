"""Where an engine is built: the phases from a program as planned to its compiled engine."""

from __future__ import annotations

from ..bundle import layout
from ..lower.lower import fitted
from ..runtime.formats.program import Program
from . import calibration, phases
from .calibration import Calibration
from .inputs import Inputs
from .line import Line


class Workshop:
    """Builds in place, one program after the other. Raises IC361 where a cache is to be calibrated without
    PyTorch."""

    def __init__(self, inputs: Inputs, line: Line) -> None:
        self._inputs = inputs
        self._line = line
        self._calibration = None if inputs.calibration is None else Calibration(inputs)

    def build(self, planned: Program) -> Program:
        """The program that was built: of ``planned``, with what calibration found for its cache."""
        program, text = self._prepared(planned)
        self._line.run(phases.engine(self._inputs, program, text))
        return program

    def measurable(self, planned: Program) -> str:
        """The folder of an engine of ``planned`` that runs on this machine: the bundle's, or what stands in
        for it."""
        if self._inputs.measured_by is None:
            self.build(planned)
            return layout.ENGINE
        program, text = self._prepared(planned)
        self._line.run(phases.stand_in(self._inputs, program, text, self._inputs.measured_by))
        return phases.STAND_IN

    def _prepared(self, planned: Program) -> tuple[Program, str]:
        """The program and its weights are written; with the digest of what its cache was fitted to.

        Where the plan asked for a calibrated cache, values lie in its basis in every program, so that all
        have the same weights.
        """
        inputs, line = self._inputs, self._line
        program, bases, text = planned, {}, ""
        if self._calibration is not None:
            calibrated = calibration.is_calibrated(planned)
            line.run(self._calibration.phase(planned if calibrated else inputs.program))
            found = calibration.read(line.folder)
            bases = dict(found.bases)
            if calibrated:
                program, text = fitted(planned, found.layers), inputs.asked.calibration or ""
        line.run(phases.program(program))
        line.run(phases.weights(inputs, program, bases))
        return program, text
