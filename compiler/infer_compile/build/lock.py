"""The lock of a spec: what its names stood for, and the plan that came of it, committed beside it.

A lock is a function of the spec, the model, the devices, the catalog and the version of infer-compile: no
time and no path of a machine enters. It is YAML with sorted keys: a reviewer reads its history as a diff.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from ..catalog.model import load_card
from ..catalog.source import ModelSource, known_commit
from ..catalog.source import resolve as resolve_source
from ..catalog.target import Target
from ..planner.diff.diff import TEXTS, fields_of, runs
from ..planner.plan import Plan
from ..quantize.checkpoint import Checkpoint
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.document import read as read_document
from .identity import tool_version
from .operand import said
from .resolve import Resolved

ENDING = ".lock.yaml"
_HEAD = (
    "# Written by `infer-compile lock`: commit it with the spec; `infer-compile check` holds it against it.\n"
)
# What a device's file says beside the figures that a plan is reckoned with; its digest covers all of it.
_REMARKS = frozenset({"id", "note", "vendor", "sources"})
# Parts of a plan that the lock has elsewhere.
_ELSEWHERE = frozenset({"schema", "model"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LockedSpec(_Frozen):
    """What the spec says, defaults not filled in; comments and the order of keys do not count."""

    digest: str
    says: dict[str, JsonValue]


class LockedModel(_Frozen):
    """``config`` and ``headers`` are digests: of config.json (or the catalog's part of it), and of the names,
    types, shapes and places of all tensors in the files of a local checkpoint."""

    source: str
    revision: str | None
    commit: str | None
    """That ``revision`` stands for; None where it is not known without asking the hub."""
    config: str
    headers: str | None


class LockedTarget(_Frozen):
    id: str
    digest: str
    """Of all that the device's file says."""
    figures: dict[str, JsonValue]
    """What a plan is reckoned with; of ``this-machine`` what was measured."""


class Lock(_Frozen):
    schema_: Literal[1] = Field(default=1, alias="schema")
    tool: str
    """Version of infer-compile."""
    spec: LockedSpec
    model: LockedModel
    draft: LockedModel | None = None
    """The model that drafts: the one that the spec names, or that the plan chose; None where there is none,
    or what drafts is no model of its own, as the plan says."""
    targets: tuple[LockedTarget, ...]
    """In the order of the spec."""
    facts: dict[str, str]
    """Digest of each part of what the planner knows beside the spec, the model and the devices."""
    digest: str
    """Of the plan, reasons and alternatives included."""
    plan: dict[str, JsonValue]
    """The decisions and predictions of the plan, with the keys of plan.json."""

    def to_yaml(self) -> str:
        fields = self.model_dump(mode="json", by_alias=True)
        return _HEAD + yaml.safe_dump(fields, sort_keys=True, allow_unicode=True, width=110)


def lock_path(spec: Path) -> Path:
    """``chat.lock.yaml`` beside ``chat.yaml``."""
    return spec.with_name(spec.stem + ENDING)


def lock(resolved: Resolved, plan: Plan) -> Lock:
    """The lock of a spec whose plan is ``plan``.

    Of a local checkpoint only the headers are read. Raises InferCompileError (IC12x) for a damaged one.
    """
    stated = said(resolved.loaded.path)
    facts = resolved.facts.model_dump(mode="json")
    return Lock(
        tool=tool_version(),
        spec=LockedSpec(digest=_digest(stated), says=stated),
        model=_model(resolved.source),
        draft=_model(drafts) if (drafts := _draft(resolved, plan)) else None,
        targets=tuple(_target(target) for target in resolved.targets),
        facts={name: _digest(part) for name, part in facts.items() if isinstance(part, dict)},
        digest=plan.digest,
        plan={key: _clear(part) for key, part in _told(fields_of(plan)) if key not in _ELSEWHERE},
    )


def read(path: Path, spec: Path) -> Lock:
    """The lock of ``spec`` in ``path``.

    Raises InferCompileError (exit 5): IC440 there is none, IC441 it cannot be read.
    """
    write = f"infer-compile lock {spec}"
    if not path.exists():
        problem = Problem("IC440", "the spec has no lock", str(path), fix=f"{write}, and commit {path}")
        raise InferCompileError(problem, Exit.MISMATCH)
    try:
        document = read_document(path)
        mistakes = [each.message for each in document.problems]
        if not mistakes:
            return Lock.model_validate_json(json.dumps(document.value))
    except InferCompileError as error:
        mistakes = [f"{each.message} {each.because}".strip() for each in error.problems]
    except ValidationError as error:
        mistakes = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
    because = "; ".join(mistakes[:3])
    fix = f"take it again from version control, or write it anew: {write}"
    raise InferCompileError(
        Problem("IC441", "the lock cannot be read", str(path), because, fix), Exit.MISMATCH
    )


def _draft(resolved: Resolved, plan: Plan) -> ModelSource | None:
    if resolved.draft is not None:
        return resolved.draft
    name = plan.speculation.draft
    # Drafters that are no models of their own have no card.
    return resolve_source(name, None, resolved.loaded.base) if name and load_card(name) else None


def _model(found: ModelSource) -> LockedModel:
    return LockedModel(
        source=found.source,
        revision=found.revision,
        commit=known_commit(found),
        config=_digest(dict(found.config)),
        headers=_headers(found.folder) if found.folder else None,
    )


def _headers(folder: Path) -> str | None:
    """None for a folder that has only a config.json: a plan needs no more."""
    if not any(folder.glob("*.safetensors")):
        return None
    checkpoint = Checkpoint.open(folder)
    return _digest(
        {
            name: [shard.path.name, entry.dtype, entry.shape, entry.begin, entry.end]
            for name, shard in checkpoint.shards.items()
            for entry in (shard.entries[name],)
        }
    )


def _target(target: Target) -> LockedTarget:
    fields = target.model_dump(mode="json", exclude_none=True)
    figures = {key: part for key, part in fields.items() if key not in _REMARKS}
    return LockedTarget(id=target.id, digest=_digest(fields), figures=figures)


def _told(fields: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, part) for key, part in fields.items() if key not in TEXTS and part is not None]


def _clear(value: Any) -> Any:
    """A part of a plan without its texts and without what is null; a list of plain values is one line."""
    if isinstance(value, Mapping):
        return {key: _clear(part) for key, part in _told(value)}
    if isinstance(value, Sequence) and not isinstance(value, str):
        plain = not any(isinstance(part, Mapping | list) for part in value)
        return runs(value) if plain else [_clear(part) for part in value]
    return value


def _digest(value: object) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
