"""What a spec means here and now, decided before any work and without writing anything."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..bundle.files import model_digest
from ..catalog.source import ModelSource, fetch
from ..catalog.source import resolve as resolve_source
from ..catalog.target import Cpu, Gpu
from ..evaluate.machine import require_here
from ..evaluate.reference import require_measurable
from ..evaluate.text import Text
from ..graph.build import build, build_heads
from ..graph.graph import Graph
from ..graph.heads import Heads
from ..lower.lower import lower, lower_draft, telling
from ..planner.plan import Plan
from ..planner.recount import recount
from ..quantize.assets import require_same_tokens
from ..quantize.checkpoint import Checkpoint
from ..quantize.heads import Int32, joined, tokens
from ..quantize.layout import sources as require_sources
from ..runtime.errors import Exit, InferCompileError, Problem
from ..runtime.formats.manifest import Asked, Manifest, Serving, Source, Speculation
from ..runtime.formats.manifest import Draft as ListedDraft
from ..runtime.formats.program import Program
from ..spec import spec
from . import identity
from .device import Device, compilers, kind, this_processor
from .resolve import Resolved, draftings_of, name_of, plan_of, resolve
from .texts import texts_of


@dataclass(frozen=True, slots=True)
class Gate:
    """What the bundle's quality is held against: ``budget`` percent on ``text``. A ``pinned`` cache is not
    raised."""

    budget: float
    text: Text
    pinned: bool


@dataclass(frozen=True, slots=True)
class Draft:
    """What drafts, a model or ``heads``; ``digest`` is that of its folder, ``checkpoint`` has its tensors as
    ``program`` names them. ``tokens`` are the model's that its logits stand for, where it does not draft in
    the model's own."""

    model: ModelSource
    digest: str
    program: Program
    checkpoint: Checkpoint
    heads: Heads | None = None
    tokens: Int32 | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that decides a bundle's bytes. ``model.folder`` is there, ``program`` is that of the plan as
    it was decided. Without a ``gate`` nothing is measured."""

    spec: bytes
    serving: Serving
    plan: Plan
    resolved: Resolved
    program: Program
    gate: Gate | None
    calibration: Text | None
    """What a calibrated cache is fitted to; None where no layer's is."""
    model: ModelSource
    folder: Path
    model_digest: str
    draft: Draft | None
    device: Device
    measured_by: Cpu | None
    """This machine's processor, where the gate measures on it in place of ``device``."""
    toolchain: dict[str, str]

    @property
    def kind(self) -> str:
        """Of the engine, as the manifest has it."""
        return kind(self.device)

    @property
    def graph(self) -> Graph:
        return self.resolved.graph

    def lowered(self, plan: Plan) -> Program:
        """What runs by ``plan``: it tells what its heads read, where it has some. Raises as ``lower``."""
        return telling(lower(self.graph, plan), _read_layers(self.draft))

    def at(self, layers: tuple[str, ...]) -> Plan:
        """The plan with the caches of its layers at these levels; raises IC203 or IC222 as ``recount``."""
        if layers == self.plan.kv.layers:
            return self.plan
        found = self.resolved
        return recount(
            self.plan,
            layers,
            found.spec,
            found.graph,
            found.target_of(self.plan),
            facts=found.facts,
            where=found.loaded.where,
            draftings=draftings_of(found),
        )

    @property
    def source(self) -> Source:
        return _source(self.model, self.model_digest)

    @property
    def speculation(self) -> Speculation | None:
        """As the manifest has it; raises ValueError for a method that no bundle serves."""
        decided, found = self.plan.speculation, self.draft
        if not decided.tokens:
            return None
        draft = found and ListedDraft(source=_source(found.model, found.digest), program=found.program.digest)
        return Speculation.model_validate(
            {
                "method": decided.method,
                "tokens": decided.tokens,
                "width": decided.width,
                "columns": decided.columns,
                "acceptance": decided.acceptance,
                "sibling_acceptance": decided.sibling_acceptance or 0.0,
                "draft": draft,
            }
        )

    @property
    def asked(self) -> Asked:
        return Asked(
            program=self.program.digest,
            evaluation=self.gate.text.sha256 if self.gate else None,
            calibration=self.calibration.sha256 if self.calibration else None,
        )

    def differing(self, manifest: Manifest) -> list[str]:
        """In what a bundle of this manifest is not the one that these inputs give; empty if it is."""
        pairs = {
            "plan": (self.plan.digest, manifest.plan),
            "program": (self.asked.program, manifest.asked.program),
            "evaluation text": (self.asked.evaluation, manifest.asked.evaluation),
            "calibration text": (self.asked.calibration, manifest.asked.calibration),
            "model": (self.source, manifest.source),
            "speculation": (self.speculation, manifest.speculation),
            "serving": (self.serving, manifest.serving),
            **{
                name: (self.toolchain.get(name), manifest.toolchain.get(name))
                for name in sorted({*self.toolchain, *manifest.toolchain})
            },
        }
        return [name for name, (ours, theirs) in pairs.items() if ours != theirs]


def prepare(path: Path, plan: Path | None) -> Inputs:
    """Load the spec, find the model, plan and lower.

    A model of the hub is downloaded here, once it is known that its plan can be built, and planned again with
    the config that came with it. ``plan`` is a file that must hold the plan of this spec (IC330 unreadable,
    IC331 it does not). Raises also what the stages raise: IC0xx of the spec, IC1xx of the model, IC2xx of
    planning, IC311 or IC313 without a compiler, IC315 for a model that the kernels of a GPU do not run, IC359
    for one whose loss cannot be measured.
    """
    resolved = resolve(path)
    decided = plan_of(resolved)
    decided.require_buildable()
    if resolved.source.folder is None:
        source = fetch(resolved.source)
        graph = build(source.config, name_of(source.source))
        resolved = replace(resolved, source=source, graph=graph)
        decided = plan_of(resolved)
    if plan is not None:
        _require_same(_read_plan(plan), decided, plan)
    return _inputs(resolved, decided)


def _inputs(resolved: Resolved, plan: Plan) -> Inputs:
    device, folder = resolved.target_of(plan).compiled_for, resolved.source.folder
    if device is None or folder is None:
        raise ValueError("the target of a plan that can be built is known, and its model has been fetched")
    draft = _draft(resolved, plan, folder)
    program = telling(lower(resolved.graph, plan), _read_layers(draft))
    calibrated = any(True for _ in program.cache.tables())
    gate = _gate(resolved, device)
    measured_by = None
    if gate is not None and isinstance(device, Gpu):
        require_measurable(program, resolved.loaded.where("quality.max_loss_percent"))
        measured_by = this_processor()
    return Inputs(
        spec=resolved.loaded.path.read_bytes(),
        serving=_serving(resolved.spec.serving),
        plan=plan,
        resolved=resolved,
        program=program,
        gate=gate,
        calibration=texts_of(resolved.loaded).calibration if calibrated else None,
        model=resolved.source,
        folder=folder,
        model_digest=model_digest(folder),
        draft=draft,
        device=device,
        measured_by=measured_by,
        toolchain=identity.toolchain(compilers(device, program, measured_by)),
    )


def _serving(asked: spec.Serving) -> Serving:
    fraction = asked.shadow.fraction if asked.shadow else 0.0
    return Serving(port=asked.port, shadow_fraction=fraction, traces=asked.traces)


def _draft(resolved: Resolved, plan: Plan, model: Path) -> Draft | None:
    """The model that drafts, fetched and lowered; None where none does. Raises IC132 for one of other tokens
    than ``model``, and as ``build_heads`` and ``_heads``."""
    name = plan.speculation.draft
    if name is None:
        return None
    found = fetch(resolved.draft or resolve_source(name, None, resolved.loaded.base))
    if found.folder is None:
        raise ValueError("a model that was fetched lies in a folder")
    digest, checkpoint = model_digest(found.folder), Checkpoint.open(found.folder)
    heads = build_heads(found.config, resolved.graph, name_of(name))
    if heads is not None:
        return _heads(found, digest, checkpoint, heads, plan, Checkpoint.open(model))
    require_same_tokens(found.folder, model)
    return Draft(found, digest, lower_draft(build(found.config, name_of(name)), plan), checkpoint)


def _heads(
    found: ModelSource, digest: str, own: Checkpoint, heads: Heads, plan: Plan, model: Checkpoint
) -> Draft:
    """Raises IC128 to IC130 for tensors that are missing or not as config.json says, IC138 as ``tokens``."""
    program = lower_draft(heads.graph(plan.speculation.tokens), plan)
    checkpoint = joined(own, model, program, heads.names)
    require_sources(program, checkpoint)
    mapped = tokens(own, program) if heads.method == "eagle3" else None
    return Draft(found, digest, program, checkpoint, heads, mapped)


def _read_layers(draft: Draft | None) -> tuple[int, ...]:
    return draft.heads.layers if draft is not None and draft.heads is not None else ()


def _source(model: ModelSource, digest: str) -> Source:
    return Source(source=model.source, revision=model.revision, sha256=digest)


def _gate(resolved: Resolved, device: Device) -> Gate | None:
    """None without a stated budget. Raises IC357 where a processor's engine would not run on this one."""
    budget = resolved.spec.quality.max_loss_percent
    if budget is None:
        return None
    where = resolved.loaded.where("quality.max_loss_percent")
    if isinstance(device, Cpu):
        require_here(device.isa, device.architecture, where)
    return Gate(budget, texts_of(resolved.loaded).evaluation, resolved.spec.pin.kv is not None)


def _read_plan(path: Path) -> Plan:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InferCompileError(
            Problem(
                "IC330",
                "the plan cannot be read",
                str(path),
                str(error),
                "name a file of `infer-compile plan -o`",
            ),
            Exit.USAGE,
        ) from error
    return Plan.from_json(text, str(path))


def _require_same(given: Plan, decided: Plan, path: Path) -> None:
    """A plan is a promise: build exactly it, or say what has changed since it was made."""
    if given == decided:
        return
    changed = [
        f"the {name}" for name in ("spec", "graph", "target") if _input(given, name) != _input(decided, name)
    ]
    raise InferCompileError(
        Problem(
            "IC331",
            "this is not the plan of the spec any more",
            str(path),
            f"changed since it was made: {' and '.join(changed) or 'the planner, or the file by hand'}",
            "plan again and look at what differs: infer-compile plan SPEC --format json -o PLAN",
        ),
        Exit.MISMATCH,
    )


def _input(plan: Plan, name: str) -> str:
    digest: str = getattr(plan.inputs, name)
    return digest
