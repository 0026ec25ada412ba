"""Where a model comes from: a folder, a repository of the Hugging Face hub, or a name of the catalog.

``resolve`` finds the model's config, without the network wherever the catalog knows the geometry; ``fetch``
brings the weights here, pinned to a commit.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import InferCompileError, Problem
from .hub import cached_commit, fetch_file, fetch_model, is_commit
from .model import card_names, load_card

CONFIG = "config.json"
_SCHEME = "hf://"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model that was found. ``folder`` is None until its weights are here."""

    source: str
    """As a user may write it again: the folder as given, or ``hf://organisation/name``."""
    revision: str | None
    """A commit of the hub once anything was fetched; before that what the user asked for, or None."""
    folder: Path | None
    config: Mapping[str, Any]
    """The model's config.json, or the catalog's part of it."""


def resolve(source: str, revision: str | None, base: Path) -> ModelSource:
    """Find a model: a folder (relative to ``base``), ``hf://organisation/name``, or a name of the catalog.

    A hub model that the catalog knows needs no network; of another one config.json is fetched.
    Raises InferCompileError: IC100 nothing of that name, IC101 a malformed hub name, IC102 to IC105 as
    ``fetch``, IC106 no config.json, IC107 a damaged one, IC109 weights that are quantized already.
    """
    if source.startswith(_SCHEME):
        return _resolve_hub(source, revision)
    folder = base / source
    if folder.is_dir():
        return ModelSource(source, None, folder, _read_config(folder / CONFIG, source))
    card = load_card(source)
    if card is None:
        raise InferCompileError(_unknown(source, folder))
    return ModelSource(_SCHEME + card.hf_id, revision, None, card.config)


def fetch(model: ModelSource) -> ModelSource:
    """Download the weights, config and tokenizer of a hub model, or find them in the hub's cache.

    The result has the folder, the commit, and the config as downloaded. A folder is returned as it is.
    Raises InferCompileError: IC102 the hub cannot be reached and the cache lacks the model, IC103 no such
    repository, IC104 access must be granted first, IC105 no such revision, IC108 the repository has no
    safetensors, IC140 the disk is full; IC106, IC107, IC109 as ``resolve``.
    """
    if model.folder is not None:
        return model
    folder = fetch_model(_repository(model.source), model.revision)
    # The cache names a snapshot's folder by its commit.
    return ModelSource(model.source, folder.name, folder, _read_config(folder / CONFIG, model.source))


def known_commit(model: ModelSource) -> str | None:
    """The commit of the hub that ``model`` is, None where that is not known without asking.

    It is known if it is pinned, if something was fetched, or if a cache of the hub holds it.
    """
    if model.revision and is_commit(model.revision):
        return model.revision
    if model.folder is None:
        return cached_commit(_repository(model.source), model.revision, CONFIG)
    folder = model.folder.resolve()
    return folder.name if folder.parent.name == "snapshots" and is_commit(folder.name) else None


def _resolve_hub(source: str, revision: str | None) -> ModelSource:
    repository = _repository(source)
    card = load_card(repository)
    if card is not None:
        return ModelSource(source, revision, None, card.config)
    path = fetch_file(repository, revision, CONFIG)
    return ModelSource(source, path.parent.name, None, _read_config(path, source))


def _repository(source: str) -> str:
    repository = source.removeprefix(_SCHEME)
    if not _REPOSITORY.fullmatch(repository):
        raise InferCompileError(
            Problem(
                "IC101",
                f"{source!r} is not a model of the hub",
                because="a hub model is written hf://organisation/name",
                fix="to pin a commit, give it as revision",
            )
        )
    return repository


def _read_config(path: Path, source: str) -> Mapping[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InferCompileError(
            Problem(
                "IC106",
                f"the model has no {CONFIG}",
                source,
                "its geometry is read from that file",
                "name a folder in Hugging Face layout: config.json, tokenizer.json, *.safetensors",
            )
        ) from error
    except (OSError, ValueError) as error:
        raise InferCompileError(
            Problem("IC107", f"{CONFIG} cannot be read", f"{source}/{CONFIG}", str(error), "fetch it again")
        ) from error
    if not isinstance(config, dict):
        kind = type(config).__name__
        raise InferCompileError(
            Problem(
                "IC107",
                f"{CONFIG} cannot be read",
                f"{source}/{CONFIG}",
                f"it holds a {kind}",
                "fetch it again",
            )
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise InferCompileError(
            Problem(
                "IC109",
                "the model's weights are quantized already",
                f"{source}/{CONFIG}",
                f"quantization_config is {method or quantization}; quantizing twice loses twice",
                "name the model that it was made from, in bfloat16, float16 or float32",
            )
        )
    return config


def _unknown(source: str, folder: Path) -> Problem:
    near = difflib.get_close_matches(source.lower(), card_names(), n=1)
    if near:
        fix = f"did you mean {near[0]}?"
    elif _REPOSITORY.fullmatch(source):
        fix = f"if it is a model of the hub, write {_SCHEME}{source}"
    else:
        fix = "infer-compile models lists the catalog; a model of the hub is written hf://organisation/name"
    kind = "is a file" if folder.exists() else "does not exist"
    return Problem(
        "IC100",
        f"no model {source!r}",
        because=f"the catalog has no such name, and the folder {folder} {kind}",
        fix=fix,
    )
