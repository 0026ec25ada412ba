"""A model folder's weights: which file holds which tensor, checked once, read one tensor at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import InferCompileError, Problem
from .shard import Shard, open_shard

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_NUMBERED = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
# What torch.load reads; loading one runs whatever code it carries.
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_CONVERT = (
    "take a revision with *.safetensors, or convert it on a machine you can lose: "
    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a folder of safetensors files. Holds headers only, no file is kept open."""

    folder: Path
    shards: Mapping[str, Shard]
    """The shard of each tensor, by tensor name, in name order."""

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Find and check every safetensors file of ``folder``.

        Raises InferCompileError with all problems found: IC120 no such folder, IC123 only pickles, IC124 no
        weights, IC125 a damaged file, IC126 a damaged index, IC127 a missing file, IC137 an unreadable one.
        """
        if not folder.is_dir():
            raise InferCompileError(missing_folder(folder))
        files, placed = _files(folder)
        missing = [file for file in files if not (folder / file).exists()]
        if missing:
            raise InferCompileError(_missing_files(folder, missing, len(files)))
        problems: list[Problem] = []
        shards: dict[str, Shard] = {}
        for file in files:
            try:
                shard = open_shard(folder / file)
            except InferCompileError as error:
                problems.extend(error.problems)
                continue
            for name in shard.entries:
                if name in shards:
                    also = shards[name].path.name
                    problems.append(_index(folder, f"tensor {name!r} is in {also} and in {file}"))
                shards[name] = shard
        if not problems:
            problems = [
                _index(folder, f"tensor {name!r} is not in {file}, where the index has it")
                for name, file in placed.items()
                if name not in shards or shards[name].path.name != file
            ]
        if problems:
            raise InferCompileError(problems)
        return cls(folder, dict(sorted(shards.items())))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.shards)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shards[name].entries[name].shape

    def dtype(self, name: str) -> str:
        """The dtype as safetensors writes it: ``BF16``, ``F32``, ..."""
        return self.shards[name].entries[name].dtype

    def size(self, name: str) -> int:
        """Bytes of the tensor in its file."""
        entry = self.shards[name].entries[name]
        return entry.end - entry.begin

    def read(self, name: str) -> np.ndarray:
        """The tensor, read-only and memory-mapped, bf16 as ``ml_dtypes.bfloat16``."""
        return self.shards[name].read(name)


def missing_folder(folder: Path) -> Problem:
    """IC120 for a model folder that is not there."""
    kind = "is a file, not a folder" if folder.exists() else "does not exist"
    return Problem(
        "IC120",
        f"the model folder {kind}",
        str(folder),
        fix="name a folder with config.json and *.safetensors, or a model of the hub: hf://org/name",
    )


def pickle_only(where: str, files: Iterable[str]) -> Problem:
    """IC123 for weights that exist only as Python pickles."""
    return Problem(
        "IC123",
        "the model has its weights only as Python pickles, which are not loaded",
        where,
        f"{', '.join(sorted(files))}: loading a pickle runs the code in it",
        _CONVERT,
    )


def is_pickle(file: str) -> bool:
    """Whether a file of this name is, by its ending, a pickle."""
    return file.endswith(_PICKLES) and file != "training_args.bin"


def _files(folder: Path) -> tuple[list[str], dict[str, str]]:
    """File names of the shards, and where the index has each tensor (empty without an index)."""
    present = sorted(path.name for path in folder.iterdir())
    if INDEX in present:
        placed = _read_index(folder)
        return sorted(set(placed.values())), placed
    if _SINGLE in present:
        return [_SINGLE], {}
    numbered = [match for match in map(_NUMBERED.fullmatch, present) if match]
    if numbered:
        total = int(numbered[0].group(2))
        return [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)], {}
    found = [name for name in present if name.endswith(".safetensors")]
    if len(found) == 1:
        return found, {}
    pickles = [name for name in present if is_pickle(name)]
    if pickles and not found:
        raise InferCompileError(pickle_only(str(folder), pickles))
    because = f"it holds {', '.join(found)} and no {INDEX}" if found else "it holds no *.safetensors file"
    if any(name.endswith(".gguf") for name in present):
        because += ", and GGUF is not read"
    raise InferCompileError(
        Problem(
            "IC124",
            "no weights were found in the model folder",
            str(folder),
            because,
            f"give it {_SINGLE}, or shards with {INDEX}, in Hugging Face layout",
        )
    )


def _read_index(folder: Path) -> dict[str, str]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InferCompileError(_index(folder, str(error))) from error
    placed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(placed, dict) or not placed:
        raise InferCompileError(_index(folder, "it has no weight_map"))
    for name, file in placed.items():
        # The index comes with the model: a path in it could name any file of the machine.
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise InferCompileError(
                _index(folder, f"tensor {name!r} is placed in {file!r}, not a shard's name")
            )
    return placed


def _missing_files(folder: Path, missing: list[str], total: int) -> Problem:
    shown = ", ".join(missing[:4]) + (", ..." if len(missing) > 4 else "")
    return Problem(
        "IC127",
        f"{len(missing)} of {total} files of the checkpoint are missing",
        str(folder),
        shown,
        "fetch the missing files; an interrupted download goes on where it stopped",
    )


def _index(folder: Path, because: str) -> Problem:
    return Problem(
        "IC126", "the index of the weights is damaged", str(folder / INDEX), because, "fetch the model again"
    )
