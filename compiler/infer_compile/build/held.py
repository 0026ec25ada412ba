"""A spec held against its lock: which input changed since, and what that does to the plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..catalog.target import THIS_MACHINE
from ..planner.diff.diff import Change, Diff, compare, fields_of
from ..planner.diff.text import phrase
from ..planner.plan import Plan
from ..runtime.errors import Problem
from ..spec.load import load
from .lock import Lock, LockedModel, lock, lock_path, read
from .resolve import Resolved, plan_of, resolve

_SHOWN = 4
"""Changes of one input that a message names."""


@dataclass(frozen=True, slots=True)
class Held:
    """``found`` is the lock that would be written now; without ``problems`` the spec is as locked."""

    path: Path
    locked: Lock
    found: Lock
    diff: Diff
    problems: tuple[Problem, ...]


def hold(spec: Path, path: Path | None = None) -> Held:
    """Hold ``spec`` against its lock in ``path`` (default: beside it).

    Problems: IC442 the spec changed, IC443 the model, IC447 the model that drafts, IC444 a device, IC445 the
    facts, IC446 the plan.
    Raises InferCompileError: IC440 and IC441 (exit 5) for the lock itself, and what planning the spec raises.
    """
    load(spec)
    path = path or lock_path(spec)
    locked = read(path, spec)
    resolved = resolve(spec)
    plan = plan_of(resolved)
    found = lock(resolved, plan)
    changed = differences(locked, found, plan)
    return Held(path, locked, found, changed, tuple(_problems(path, locked, found, changed, resolved)))


def differences(locked: Lock, found: Lock, plan: Plan) -> Diff:
    """What changed from one lock to the other; ``plan`` is the one of ``found`` and gives its reasons."""
    reasons = fields_of(plan)["reasons"]
    return compare(_fields(locked, found, reasons), _fields(found, locked, reasons))


def _fields(one: Lock, other: Lock, reasons: Sequence[Any]) -> dict[str, Any]:
    """A lock in the keys of a plan, what went in beside: ``spec``, ``model``, ``draft``, ``targets``,
    ``facts``."""
    return {
        **one.plan,
        "reasons": reasons,
        "tool": one.tool,
        "spec": one.spec.says,
        "model": _model(one.model, other.model),
        "draft": _model(one.draft, other.draft),
        "targets": {each.id: {**each.figures, "digest": each.digest} for each in one.targets},
        "facts": one.facts,
    }


def _model(one: LockedModel | None, other: LockedModel | None) -> dict[str, Any]:
    if one is None:
        return {}
    fields = one.model_dump(mode="json")
    if other is not None and other.commit is None:
        # What a branch stands for is known only where the model was fetched: ignorance is no difference.
        del fields["commit"]
    return fields


def _problems(path: Path, locked: Lock, found: Lock, changed: Diff, resolved: Resolved) -> list[Problem]:
    """One for each input that changed and one for the plan; the last tells what to run."""
    spec = resolved.loaded
    versions = f"; locked by version {locked.tool}, this is {found.tool}" if locked.tool != found.tool else ""
    parts = ("spec", "model", "draft", "targets", "facts")
    said, model, draft, targets, facts = (_under(changed, part) for part in parts)
    problems = []
    if said:
        where = spec.where(said[0].key.removeprefix("spec."))
        problems.append(Problem("IC442", "the spec has changed since it was locked", where, _named(said)))
    if model:
        where = spec.where("model.source")
        problems.append(Problem("IC443", "the model is not the locked one", where, _named(model)))
    if draft:
        where = spec.where("model.draft")
        problems.append(Problem("IC447", "the model that drafts is not the locked one", where, _named(draft)))
    if targets:
        measured = any(each.id == THIS_MACHINE for each in (*locked.targets, *found.targets))
        fix = (
            "a plan for this-machine holds where it was measured; for a device that stays what it is: "
            "infer-compile probe -o machine.yaml, and target: ./machine.yaml"
        )
        message = "the device is not the locked one"
        where = spec.where("target")
        problems.append(Problem("IC444", message, where, _named(targets), fix if measured else ""))
    if facts:
        message = "the catalog knows other facts than when the spec was locked"
        problems.append(Problem("IC445", message, str(path), f"{_named(facts)}{versions}"))
    if locked.digest != found.digest:
        message = "the spec no longer gives the locked plan"
        because = "only its explanations differ" if changed.same else changed.total
        problems.append(Problem("IC446", message, str(path), f"{because}{versions}"))
    if problems:
        last = problems[-1]
        again = f"infer-compile lock {spec.path}" + ("" if path == lock_path(spec.path) else f" -o {path}")
        fix = "; ".join(filter(None, [last.fix, f"if this is wanted: {again}, and commit {path}"]))
        problems[-1] = replace(last, fix=fix)
    return problems


def _under(changed: Diff, part: str) -> tuple[Change, ...]:
    return tuple(change for change in changed.changes if change.key.startswith(f"{part}."))


def _named(changes: Sequence[Change]) -> str:
    """The first of the changes in words; digests only where there is nothing else to show."""
    clear = [change for change in changes if not change.is_digest] or changes
    words = [
        (f"{change.symbol} " if change.symbol != "~" else "") + phrase(change).partition(".")[2]
        for change in clear[:_SHOWN]
    ]
    more = len(clear) - _SHOWN
    return "; ".join(words) + (f"; and {more} more" if more > 0 else "")
