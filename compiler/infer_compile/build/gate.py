"""The quality gate: the built engine is held against the spec's budget, and raised until it keeps it.

Every candidate is built in place by the ordinary phases and measured with its own compiled engine; for a GPU,
with an engine of the same program for this machine's processor. What was measured is noted in the journal, so
a rerun does not measure it again.
"""

from __future__ import annotations

from pathlib import Path

from ..evaluate.divergence import Divergence
from ..evaluate.gauge import Pieces, gauge, pieces
from ..evaluate.machine import host
from ..evaluate.quality import DEFAULT_CONTEXT, GATE_TOKENS
from ..evaluate.raising import Levels, Outcome, Trial, search
from ..evaluate.reference import exact_program, write_reference
from ..planner.diff.diff import runs
from ..planner.measured import Measured, Raised, raised
from ..planner.plan import Plan, Reason, significant
from ..runtime.errors import InferCompileError
from ..runtime.formats.program import Program
from ..runtime.formats.weights import BF16, WeightFormat
from . import identity, phases
from .inputs import Gate, Inputs
from .journal import Tried
from .line import Line
from .phase import Phase
from .phases import Made
from .progress import Advance
from .workshop import Workshop

REFERENCE = phases.SCRATCH["reference"]
"""Folder of the reference engine, for as long as the build goes on."""
BRIEF = 4
"""A brief trial takes so many times fewer tokens."""


def make(inputs: Inputs, line: Line) -> Made:
    """The engine of the plan; where the spec states a budget, measured and, if need be, raised.

    Raises InferCompileError as the phases do, and (exit 4) as ``raising.search`` where the budget cannot be
    kept; IC353 for an evaluation text that is too short, IC361 as ``Calibration``.
    """
    workshop = Workshop(inputs, line)
    line.run(phases.spec(inputs))
    plan, program = inputs.plan, inputs.program
    if inputs.gate is not None:
        bench = _Bench(inputs, inputs.gate, line, workshop)
        outcome = bench.search()
        plan = _told(inputs, inputs.gate, bench.context, inputs.at(outcome.levels), outcome)
        program = inputs.lowered(plan)
    return Made(plan, workshop.build(program))


class _Bench:
    """Where candidates are built and measured."""

    def __init__(self, inputs: Inputs, gate: Gate, line: Line, workshop: Workshop) -> None:
        self._inputs, self._gate, self._line, self._workshop = inputs, gate, line, workshop
        plan = inputs.plan
        context = min(plan.limits.max_context, DEFAULT_CONTEXT)
        self.context = context
        self._pieces = {
            brief: pieces(gate.text, inputs.folder, context, GATE_TOKENS // (BRIEF if brief else 1))
            for brief in (False, True)
        }
        self._reference = self._exact()
        self._plans: dict[Levels, Plan | None] = {}
        self._reference_key = identity.key(
            REFERENCE,
            self._reference.digest,
            inputs.model_digest,
            str(host()),
            identity.tool(inputs.toolchain),
        )

    def _exact(self, weights: WeightFormat = BF16) -> Program:
        plan = self._inputs.plan
        graph, limits = self._inputs.graph, plan.program_limits
        return exact_program(graph, limits, plan.kv.page_tokens, self.context, weights)

    def _plan(self, levels: Levels) -> Plan | None:
        """The plan with its layers at ``levels``; None where that keeps not every limit."""
        if levels not in self._plans:
            try:
                self._plans[levels] = self._inputs.at(levels)
            except InferCompileError:
                self._plans[levels] = None
        return self._plans[levels]

    def _program(self, levels: Levels) -> Program:
        """Of the plan with its layers at ``levels``. A cache in bf16 throughout need not fit the device: the
        weights' own loss is measured with it, with pages for the contexts of the measurement alone."""
        plan = self._plan(levels)
        if plan is not None:
            return self._inputs.lowered(plan)
        return self._exact(self._inputs.plan.weights.descriptor)

    def search(self) -> Outcome:
        """Build and measure whatever the search wants to know."""
        planned, gate = self._inputs.plan.kv.layers, self._gate
        wanted = search(
            planned, gate.budget, pinned=gate.pinned, fits=lambda levels: self._plan(levels) is not None
        )
        trial = next(wanted)
        while True:
            try:
                trial = wanted.send(self._measured(trial))
            except StopIteration as stop:
                outcome: Outcome = stop.value
                return outcome

    def _measured(self, trial: Trial) -> Divergence:
        line, program = self._line, self._program(trial.levels)
        known = line.journal.trials.get(key := self._key(trial, program))
        if known is None:
            built = self._workshop.measurable(program)
            line.run(self._write_reference())
            line.run(self._measure(trial, key, built))
            known = line.journal.trials[key]
            line.reporter.say(f"  {_words(trial, known.measured, self._gate.budget)}")
        return known.measured

    def _key(self, trial: Trial, program: Program) -> str:
        """Of all that a measurement depends on."""
        tokens = b"".join(piece.tobytes() for piece in self._pieces[trial.brief]).hex()
        fitted = self._inputs.asked.calibration or ""
        measured = str(self._inputs.measured_by or self._inputs.device)
        return identity.key("gate", program.digest, fitted, self._reference_key, measured, tokens)

    def _write_reference(self) -> Phase:
        def work(folder: Path, advance: Advance) -> None:
            architecture, isa = host()
            if architecture is None:
                raise ValueError("a machine that a bundle is measured on has an architecture that is known")
            write_reference(self._inputs.model, self._reference, architecture, isa, folder / REFERENCE)

        return Phase(REFERENCE, (REFERENCE,), self._reference_key, work)

    def _measure(self, trial: Trial, key: str, built: str) -> Phase:
        def work(folder: Path, advance: Advance) -> None:
            contexts: Pieces = self._pieces[trial.brief]
            found = gauge(folder / built, folder / REFERENCE, contexts, advance)
            self._line.journal.note(key, Tried(levels=trial.levels, brief=trial.brief, measured=found))

        return Phase("gate", (), key, work, unit="tokens")


def _words(trial: Trial, found: Divergence, budget: float) -> str:
    levels = runs(trial.levels)
    if trial.brief:
        return f"cache {levels}: divergence {found.kl_mean:.5f} on {found.tokens} tokens"
    return (
        f"cache {levels}: loss {found.loss_percent:.3g} % (budget {budget:g} %, standard error "
        f"{found.standard_error_percent:.2g}), divergence {found.kl_mean:.5f}"
    )


def _told(inputs: Inputs, gate: Gate, context: int, plan: Plan, outcome: Outcome) -> Plan:
    """``plan`` with what was measured and, where it is not what was planned, why."""
    found, first = outcome.measured, outcome.planned
    changes = raised(inputs.plan.kv.layers, outcome.levels)
    measured = Measured(
        quality_loss_percent=significant(found.loss_percent),
        standard_error_percent=significant(found.standard_error_percent),
        perplexity=significant(found.perplexity),
        reference_perplexity=significant(found.reference_perplexity),
        kl_mean=significant(found.kl_mean),
        kl_p99=significant(found.kl_p99),
        top1_agreement=significant(found.top1_agreement),
        tokens=found.tokens,
        contexts=found.contexts,
        context_tokens=context,
        text=gate.text.name,
        text_sha256=gate.text.sha256,
        budget_percent=gate.budget,
        planned_loss_percent=significant(first.loss_percent),
        weights_loss_percent=None if outcome.weights is None else significant(outcome.weights.loss_percent),
        raised=changes,
        stand_in=inputs.measured_by is not None,
    )
    reasons = tuple(
        Reason(
            key="kv.layers",
            value=f"{change.after} in {_layers(change)}",
            why=f"as planned the build measured a loss of {first.loss_percent:.3g} %, over the budget of "
            f"{gate.budget:g} %; this is where a step up takes most of it away",
            source="measured by the build",
        )
        for change in changes
    )
    return plan.model_copy(update={"measured": measured, "reasons": (*plan.reasons, *reasons)})


def _layers(change: Raised) -> str:
    return f"layer{'s' if len(change.layers) > 1 else ''} {', '.join(map(str, change.layers))}"
