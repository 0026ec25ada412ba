"""From a spec's path to everything that planning needs: the model found, its graph, the devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import get_args

from ..catalog.facts import Facts, load_facts
from ..catalog.model import load_card
from ..catalog.source import ModelSource
from ..catalog.source import resolve as resolve_source
from ..catalog.speculation import Method, SpeculationFacts
from ..catalog.target import THIS_MACHINE, Target, load_target, target_names
from ..graph.build import build, build_heads
from ..graph.graph import Graph
from ..graph.heads import Heads, method_of
from ..planner.deployment import Draftings
from ..planner.plan import Plan
from ..planner.rank import rank
from ..planner.speculation import WIDTHS, Drafting, choices
from ..probe.machine import this_machine
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.document import read
from ..spec.load import LoadedSpec, load
from ..spec.spec import Spec
from .texts import text_problems


@dataclass(frozen=True, slots=True)
class Resolved:
    """A spec and what its names stand for here and now. ``targets`` are in the order of the spec; ``draft``
    is the drafting model that it names, or what it has for ``heads``."""

    loaded: LoadedSpec
    source: ModelSource
    graph: Graph
    targets: tuple[Target, ...]
    facts: Facts
    draft: ModelSource | None = None
    heads: Heads | None = None

    @property
    def spec(self) -> Spec:
        return self.loaded.spec

    @property
    def target(self) -> Target:
        """The first candidate; a spec that names one has no other."""
        return self.targets[0]

    def target_of(self, plan: Plan) -> Target:
        """The candidate that ``plan`` chose."""
        return next(target for target in self.targets if target.id == plan.target.id)


def resolve(spec_path: Path) -> Resolved:
    """Load the spec in ``spec_path`` and find its model and its devices; ``this-machine`` is measured, once.

    Weights are not read and not downloaded. Raises InferCompileError with the problems of the spec, the model
    (IC1xx, with the spec's line in front) and the targets, all at once where they do not hide one another.
    """
    loaded = _loaded(spec_path)
    problems: list[Problem] = []
    status: Exit | None = None
    source: ModelSource | None = None
    graph: Graph | None = None
    draft: ModelSource | None = None
    heads: Heads | None = None
    targets: list[Target] = []
    model, facts = loaded.spec.model, load_facts()
    try:
        source = resolve_source(model.source, model.revision, loaded.base)
        graph = build(source.config, name_of(model.source))
    except InferCompileError as error:
        problems += (_placed(problem, loaded.where("model.source")) for problem in error.problems)
        status = error.exit
    if model.draft not in ("auto", "none", *_checkpoints(facts.speculation)):
        try:
            draft = resolve_source(model.draft, None, loaded.base)
            heads = build_heads(draft.config, graph, name_of(model.draft)) if graph is not None else None
        except InferCompileError as error:
            problems += (_placed(problem, loaded.where("model.draft")) for problem in error.problems)
            status = status or error.exit
    if draft is not None and (stray := _stray_method(loaded, draft)):
        problems.append(stray)
        status = status or Exit.USAGE
    for index, group in enumerate(loaded.spec.targets):
        where = (
            loaded.where("target.device")
            if "target.device" in loaded.lines
            else loaded.where(f"target.{index}")
        )
        try:
            targets.append(find_target(group.device, loaded.base, where))
        except InferCompileError as error:
            problems += error.problems
            status = status or error.exit
    if texts := list(text_problems(loaded)):
        problems += texts
        status = status or Exit.USAGE
    if source is None or graph is None or problems:
        raise InferCompileError(problems, status or Exit.FAILED)
    return Resolved(loaded, source, graph, tuple(targets), facts, draft, heads)


def _stray_method(loaded: LoadedSpec, draft: ModelSource) -> Problem | None:
    """IC139 for a pinned method that is not what the draft is made for."""
    pinned, kind = loaded.spec.pin.speculation, method_of(draft.config) or "draft"
    if pinned is None or pinned.method in (kind, "none", "ngram", "lookahead"):
        return None
    what = "a model of its own" if kind == "draft" else f"a checkpoint of {kind} heads"
    return Problem(
        "IC139",
        f"the draft is not made for speculation {pinned.method}",
        loaded.where("pin.speculation"),
        f"{draft.source} is {what}",
        f"speculation: {kind}, or another model.draft",
    )


def _checkpoints(facts: SpeculationFacts) -> tuple[str, ...]:
    """Drafters of the catalog that are no models of their own."""
    return tuple(one.id for one in (*facts.eagle3.checkpoints, *facts.medusa.checkpoints))


def _loaded(spec_path: Path) -> LoadedSpec:
    """The spec; where it is wrong, with the names of devices that are unknown besides."""
    try:
        return load(spec_path)
    except InferCompileError as error:
        raise InferCompileError((*error.problems, *_unknown_devices(spec_path)), error.exit) from error


def _unknown_devices(spec_path: Path) -> Iterator[Problem]:
    """Of a spec that cannot be loaded: what can be said of its targets all the same."""
    try:
        document = read(spec_path)
    except InferCompileError:
        return
    target = document.value.get("target")
    device = target.get("device") if isinstance(target, dict) else None
    named = {"target": target, "target.device": device}
    if isinstance(target, list):
        named |= {f"target.{index}": name for index, name in enumerate(target)}
    for key, name in named.items():
        if isinstance(name, str) and name and name != THIS_MACHINE:
            try:
                load_target(name, spec_path.resolve().parent, document.where(key))
            except InferCompileError as error:
                yield from error.problems


def plan_of(resolved: Resolved) -> Plan:
    """The plan for the best of the spec's targets; where none will do, devices that would are named."""
    return rank(
        resolved.spec,
        resolved.graph,
        resolved.targets,
        facts=resolved.facts,
        where=resolved.loaded.where,
        neighbours=lambda: tuple(load_target(name, Path()) for name in target_names()),
        draftings=draftings_of(resolved),
    )


def draftings_of(resolved: Resolved) -> Draftings:
    """What the spec's model can be drafted for with: drafters of the catalog, or the one that is named."""
    wanted = resolved.spec.model.draft
    card = load_card(resolved.spec.model.source.removeprefix("hf://"))

    @cache
    def graph_of(name: str) -> Graph | None:
        if resolved.draft is not None and name == wanted:
            # Heads are no model of their own.
            if resolved.heads is not None:
                return None
            return build(resolved.draft.config, name_of(name))
        found = load_card(name)
        return build(found.config, found.id) if found else None

    @cache
    def draftings(methods: tuple[str, ...], vocabulary_slack: int) -> tuple[Drafting, ...]:
        # A drafting model is another model to download and keep: it is used where the spec lets it.
        served = [name for name in methods if name != "none" and (wanted != "none" or name != "draft")]
        return choices(
            resolved.graph,
            card.id if card else "",
            resolved.source.config,
            resolved.facts.speculation,
            graph_of,
            [name for name in get_args(Method) if name in served],
            widths=WIDTHS,
            draft=None if wanted in ("none", "auto") else wanted,
            heads=resolved.heads,
            vocabulary_slack=vocabulary_slack,
        )

    return draftings


def find_target(name: str, base: Path, where: str) -> Target:
    """A device of the catalog, of a file, or the machine that this runs on."""
    return this_machine() if name == THIS_MACHINE else load_target(name, base, where)


def name_of(source: str) -> str:
    """A model's name for people: the last part of where it comes from."""
    return source.rstrip("/").rpartition("/")[2]


def _placed(problem: Problem, where: str) -> Problem:
    """``problem`` with the line of the spec that led to it, if it has no place of its own."""
    if problem.where:
        return problem
    return Problem(problem.code, problem.message, where, problem.because, problem.fix)
