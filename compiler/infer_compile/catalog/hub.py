"""Files of a model on the Hugging Face hub, brought into the hub library's cache or found there.

Only weights in safetensors, JSON and text files of the tokenizer are fetched: nothing that can carry code.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm

from ..runtime.errors import InferCompileError, Problem

_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*"]
# Subfolders hold other forms of the same model.
_SUBFOLDERS = ["*/*"]
_REFUSALS = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError)
# The hub library moved between HTTP clients; what its own error derives from is each client's base class.
_NETWORK = (OSError, *HfHubHTTPError.__bases__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE = 10.0
"""Seconds to wait for the hub's first answer."""


class _Bar(tqdm):  # type: ignore[misc]
    """The hub library's progress bar, on a terminal only."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings | {"disable": not sys.stderr.isatty()})


def is_commit(revision: str) -> bool:
    """Whether a revision is a commit and no branch or tag, which may move."""
    return _COMMIT.fullmatch(revision) is not None


def cached_commit(repository: str, revision: str | None, file: str) -> str | None:
    """The commit that ``revision`` (default: the main branch) has in the hub's cache, if ``file`` is there.

    The hub is not asked.
    """
    found = try_to_load_from_cache(repository, file, revision=revision)
    # The cache names a snapshot's folder by its commit.
    return Path(found).parent.name if isinstance(found, str) else None


def fetch_file(repository: str, revision: str | None, file: str) -> Path:
    """One file of ``organisation/name``; its folder is named by the commit. Raises as ``fetch_model``."""

    def bring(files: list[str] | None) -> str:
        found: str = hf_hub_download(repository, file, revision=revision, local_files_only=files is None)
        return found

    return _fetch(repository, revision, bring)


def fetch_model(repository: str, revision: str | None) -> Path:
    """Weights, config and tokenizer of ``organisation/name``: a folder named by the commit.

    Raises InferCompileError: IC102 the hub cannot be reached and the cache lacks the model, IC103 no such
    repository, IC104 access must be granted first, IC105 no such revision, IC106 no such file, IC108 the
    repository has no safetensors, IC140 the disk is full.
    """

    def bring(files: list[str] | None) -> str:
        weights = "model*.safetensors" if files is None else _weights(repository, files)
        found: str = snapshot_download(
            repository,
            revision=revision,
            allow_patterns=[weights, *_TEXTS],
            ignore_patterns=_SUBFOLDERS,
            local_files_only=files is None,
            tqdm_class=_Bar,
        )
        return found

    return _fetch(repository, revision, bring)


def _fetch(repository: str, revision: str | None, bring: Callable[[list[str] | None], str]) -> Path:
    """Ask the hub for its files and ``bring`` what is wanted; None tells it to look into the cache alone."""
    where = f"hf://{repository}"
    with _refusals(where, revision):
        files: list[str] | None = None
        away: Exception | None = None
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=_PATIENCE)
            files = [sibling.rfilename for sibling in info.siblings or ()]
        except _REFUSALS:
            raise
        except _NETWORK as error:
            away = error
        try:
            return Path(bring(files))
        except LocalEntryNotFoundError as error:
            raise InferCompileError(_unreachable(where, away or error)) from error


def _weights(repository: str, files: list[str]) -> str:
    """The pattern of the weights among the files of a repository."""
    own = [file for file in files if "/" not in file and file.endswith(".safetensors")]
    if own:
        # Where a second set of other names lies beside them, the first is the one in the hub's own layout.
        return "model*.safetensors" if any(file.startswith("model") for file in own) else "*.safetensors"
    pickles = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    raise InferCompileError(
        Problem(
            "IC108",
            "the repository has no safetensors weights",
            f"hf://{repository}",
            "it has Python pickles, which are not loaded: they can run code" if pickles else "",
            "take a revision or a repository that has *.safetensors",
        )
    )


@contextmanager
def _refusals(where: str, revision: str | None) -> Iterator[None]:
    """What the hub answers, as coded errors."""
    login = "`hf auth login`, or set HF_TOKEN"
    try:
        yield
    except GatedRepoError as error:
        fix = f"ask for access on the model's page, then {login}"
        message = "access to the model must be granted by its publisher"
        raise InferCompileError(Problem("IC104", message, where, fix=fix)) from error
    except RevisionNotFoundError as error:
        message = f"the model has no revision {revision!r}"
        raise InferCompileError(
            Problem("IC105", message, where, fix="name a commit, tag or branch")
        ) from error
    except RepositoryNotFoundError as error:
        fix = f"check the spelling; for a private model {login}"
        message = "the hub has no such model, or does not show it to you"
        raise InferCompileError(Problem("IC103", message, where, fix=fix)) from error
    except EntryNotFoundError as error:
        fix = "name a repository in Hugging Face layout: config.json, tokenizer.json, *.safetensors"
        reason = str(error).splitlines()[-1]
        raise InferCompileError(Problem("IC106", "the model lacks a file", where, reason, fix)) from error
    except _NETWORK as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            fix = "free space and run the same command again, or set HF_HOME to a folder on another disk"
            raise InferCompileError(Problem("IC140", "the disk is full", where, str(error), fix)) from error
        raise InferCompileError(_unreachable(where, error)) from error


def _unreachable(where: str, error: Exception) -> Problem:
    return Problem(
        "IC102",
        "the model cannot be downloaded",
        where,
        (str(error) or type(error).__name__).splitlines()[0],
        "check the connection (HF_HUB_OFFLINE, HF_ENDPOINT), or name a folder that holds the model",
    )
