"""The generated CPU engine behind its C interface: one native call per step, no PyTorch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InferCompileError, Problem
from ..formats.program import Program
from ..step import Float32, Int32, SequenceStep, StepResult
from .rows import check_features

_ABI = 3
_NOT_FINITE, _NOT_PERMITTED, _WRONG_PRODUCTS = 2, 3, 4
_ERROR_BYTES = 512


class _Sequence(ctypes.Structure):
    """``ic_sequence`` of kernels/cpu/abi.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tokens", "parents", "exact", "packed", "mask")),
        *((name, ctypes.c_void_p) for name in ("adjust_ids", "adjust_bias", "adjust_penalty")),
        ("features", ctypes.c_void_p),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("count", "start", "accepted", "sealed", "pages", "outputs")),
        *((name, ctypes.c_int32) for name in ("adjust_count", "top_k")),
        *((name, ctypes.c_float) for name in ("temperature", "top_p", "min_p")),
        ("evicted", ctypes.c_int32),
    )


class CpuEngine:
    """Runs the library in ``engine_dir`` (program.json, libengine.so, weights.bin) on ``threads`` threads, by
    default one per usable core.

    Raises InferCompileError: IC520 if a file is missing, damaged or of another build; IC531 if the system
    withholds the matrix tiles that the library was compiled for, IC532 if their products are wrong.
    """

    def __init__(self, engine_dir: Path, threads: int | None = None) -> None:
        self._dir = engine_dir
        try:
            self.program = Program.from_json((engine_dir / "program.json").read_text())
            self._library = ctypes.CDLL(str((engine_dir / "libengine.so").resolve()))
        except (OSError, ValueError) as failure:
            raise self._broken(str(failure)) from failure
        self._declare()
        if self._library.ic_abi() != _ABI:
            raise self._broken(f"its interface is {self._library.ic_abi()}, this runtime's is {_ABI}")
        if self._library.ic_program().decode() != self.program.digest:
            raise self._broken("libengine.so was compiled from another program.json")
        self.threads = threads or len(os.sched_getaffinity(0))
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        weights = os.fsencode(engine_dir / "weights.bin")
        opened = ctypes.c_void_p()
        failed = self._library.ic_open(weights, self.threads, ctypes.byref(opened), error, _ERROR_BYTES)
        if failed in (_NOT_PERMITTED, _WRONG_PRODUCTS):
            raise self._unfit(failed)
        if failed:
            raise self._broken(error.value.decode())
        self._engine: int | None = opened.value
        # Of the program once, and not in each step: it looks through all its operations for them.
        self._hidden_width = self.program.buffers[self.program.hidden]
        self._features, self._tells_tokens = self.program.features, self.program.tells_tokens

    def _declare(self) -> None:
        library, pointer, number = self._library, ctypes.c_void_p, ctypes.c_int32
        library.ic_program.restype = ctypes.c_char_p
        library.ic_open.argtypes = [ctypes.c_char_p, number, pointer, ctypes.c_char_p, number]
        library.ic_close.argtypes = [pointer]
        library.ic_close.restype = None
        library.ic_pool.restype = ctypes.POINTER(ctypes.c_uint8)
        library.ic_pool.argtypes = [pointer, number, ctypes.POINTER(ctypes.c_uint64)]
        library.ic_step.argtypes = [
            pointer,
            pointer,
            number,
            pointer,
            pointer,
            pointer,
            ctypes.c_char_p,
            number,
        ]

    def _broken(self, why: str) -> InferCompileError:
        return InferCompileError(
            Problem("IC520", "the engine cannot be opened", str(self._dir), why, "build the bundle again")
        )

    def _unfit(self, failed: int) -> InferCompileError:
        fix = "build for a target with isa: avx512; its engine gives the same results"
        if failed == _NOT_PERMITTED:
            code, message = "IC531", "the system does not let this process use the matrix tiles (AMX)"
            because = (
                "it refused arch_prctl(ARCH_REQ_XCOMP_PERM), as kernels before 5.16 do, sandboxes, and where "
                "a signal stack has no room for the tiles"
            )
        else:
            code, message = "IC532", "the processor's matrix tiles (AMX) give other products than its vectors"
            because = "a small product is tried by both whenever an engine is opened"
        return InferCompileError(Problem(code, message, str(self._dir), because, fix))

    def step(
        self, batch: Sequence[SequenceStep], *, logits: bool = False, hidden: bool = False
    ) -> StepResult:
        """One step. Raises InferCompileError: IC521 if ``batch`` breaks the contract, nothing has run then;
        IC522 for a key or a value that is not a finite number, then the pages of the step's new tokens are
        worth nothing."""
        for sequence in batch:
            check_features(self._features, sequence)
        rows = sum(sequence.outputs for sequence in batch)
        told = sum(len(one.tokens) for one in batch) if self._tells_tokens else rows
        alive: list[NDArray[Any]] = []
        sequences = (_Sequence * len(batch))(*(_marshal(sequence, alive) for sequence in batch))
        sampled = np.empty(rows, np.int32)
        all_logits = np.empty((rows, self.program.logits), np.float32) if logits else None
        all_hidden = np.empty((told, self._hidden_width), np.float32) if hidden else None
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        failed = self._library.ic_step(
            self._engine,
            sequences,
            len(batch),
            sampled.ctypes.data,
            None if all_logits is None else all_logits.ctypes.data,
            None if all_hidden is None else all_hidden.ctypes.data,
            error,
            _ERROR_BYTES,
        )
        if failed == _NOT_FINITE:
            raise InferCompileError(
                Problem(
                    "IC522",
                    "a key or a value is not a finite number",
                    where=error.value.decode(),
                    because="the model's arithmetic overflowed, or its weights are damaged",
                    fix="run verify on the bundle, and build it again if a file is damaged",
                )
            )
        if failed:
            raise InferCompileError(
                Problem("IC521", "the engine refused a step", because=error.value.decode())
            )
        ends = np.cumsum([sequence.outputs for sequence in batch])[:-1]
        return StepResult(np.split(sampled, ends), all_logits, all_hidden)

    def pool(self, name: str) -> NDArray[np.uint8]:
        """The bytes of the ``exact`` or ``packed`` pool: a writable view, valid while the engine is open."""
        size = ctypes.c_uint64()
        data = self._library.ic_pool(self._engine, ("exact", "packed").index(name), ctypes.byref(size))
        if not size.value:
            return np.empty(0, np.uint8)
        return np.ctypeslib.as_array(data, (size.value,))

    def close(self) -> None:
        """Free the engine; it cannot be used afterwards."""
        if self._engine:
            self._library.ic_close(self._engine)
            self._engine = None


def _marshal(sequence: SequenceStep, alive: list[NDArray[Any]]) -> _Sequence:
    """The native form; ``alive`` keeps converted arrays until the call returns."""

    def address(values: NDArray[Any] | None, kind: Any) -> int | None:
        if values is None:
            return None
        array = np.ascontiguousarray(values, kind)
        alive.append(array)
        return array.ctypes.data

    sampling = sequence.sampling
    ids: Int32 | None = sampling.ids
    bias: Float32 | None = sampling.bias
    penalty: Float32 | None = sampling.penalty
    count = 0 if ids is None else len(ids)
    if ids is not None:
        bias = np.zeros(count, np.float32) if bias is None else bias
        penalty = np.ones(count, np.float32) if penalty is None else penalty
    return _Sequence(
        tokens=address(sequence.tokens, np.int32),
        parents=address(sequence.parents, np.int32),
        exact=address(sequence.exact, np.int32),
        packed=address(sequence.packed, np.int32),
        mask=address(sequence.mask, np.uint32),
        adjust_ids=address(ids, np.int32),
        adjust_bias=address(bias, np.float32),
        adjust_penalty=address(penalty, np.float32),
        features=address(sequence.features, np.float32),
        seed=sampling.seed & (2**64 - 1),
        count=len(sequence.tokens),
        start=sequence.start,
        accepted=sequence.accepted,
        sealed=sequence.sealed,
        pages=min(len(table) for table in (sequence.exact, sequence.packed) if table is not None),
        outputs=sequence.outputs,
        adjust_count=count,
        top_k=sampling.top_k,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        evicted=sequence.evicted,
    )
