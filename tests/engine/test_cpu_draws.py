"""The CPU engine's sampler alone, over vocabularies as large as models have, against the slow one."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infer_compile.catalog.resources import folder
from infer_compile.codegen.toolchain import find
from infer_compile.probe.cpu import host_architecture
from infer_compile.runtime.engines.cpu import _marshal, _Sequence
from infer_compile.runtime.engines.sampling import draw
from infer_compile.runtime.step import Sampling, SequenceStep

SOURCE = Path(__file__).with_name("sampling_probe.cpp")
NOWHERE = np.zeros(1, np.int32)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    out = tmp_path_factory.mktemp("sampling")
    for name in ("sampling.hpp", "abi.h"):
        shutil.copy(str(folder("kernels") / "cpu" / name), out)
    shutil.copy(SOURCE, out)
    architecture = host_architecture() or "x86-64"
    find(architecture).compile(out / SOURCE.name, out / "libprobe.so", "portable", extra=("-Og",))
    loaded = ctypes.CDLL(str(out / "libprobe.so"))
    loaded.probe_sample.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    return loaded


def sampled(
    library: ctypes.CDLL, logits: np.ndarray, sampling: Sampling, mask: np.ndarray | None, at: int
) -> int:
    step = SequenceStep(NOWHERE, at - 1, 1, 0, NOWHERE, NOWHERE, sampling=sampling, mask=mask)
    alive: list[Any] = []
    native: _Sequence = _marshal(step, alive)
    row = logits.copy()
    return int(library.probe_sample(ctypes.byref(native), row.ctypes.data, len(row), at))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    vocabulary=st.sampled_from([1, 2, 33, 4096, 50_000]),
    spread=st.sampled_from([0.0, 0.5, 4.0, 30.0]),
    temperature=st.sampled_from([0.0, 0.2, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 40, 60_000]),
    top_p=st.sampled_from([1.0, 0.87, 0.31, 1e-6]),
    min_p=st.sampled_from([0.0, 0.05, 1.0]),
    masked=st.booleans(),
)
def test_every_token_is_the_slow_samplers(
    library: ctypes.CDLL,
    seed: int,
    vocabulary: int,
    spread: float,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    masked: bool,
) -> None:
    rng = np.random.default_rng(seed)
    # Halves: many are equal, and stand by their ids.
    logits = (np.round(2 * spread * rng.standard_normal(vocabulary)) / 2).astype(np.float32)
    sampling = Sampling(temperature, top_k, top_p, min_p, seed)
    mask = None
    if masked:
        # The first half of the tokens, so that neighbours stay neighbours.
        mask = np.zeros(-(-vocabulary // 32), np.uint32)
        mask[: -(-len(mask) // 2)] = 2**32 - 1
    allowed = np.arange(vocabulary) < (vocabulary if mask is None else 32 * -(-len(mask) // 2))
    rank = np.argsort(np.argsort(np.where(allowed, -logits, np.inf), kind="stable"))
    for at in range(1, 4):
        ours, slow = sampled(library, logits, sampling, mask, at), draw(logits, sampling, mask, at)
        # Weights and shares of ours are floats: among 50,000 equal ones the next may be drawn.
        assert ours == slow or (vocabulary > 4096 and abs(int(rank[ours]) - int(rank[slow])) == 1)


def test_a_draw_from_all_tokens_goes_to_the_last(library: ctypes.CDLL) -> None:
    """All are as likely: whichever token the number falls on."""
    logits, tokens = np.zeros(1000, np.float32), set()
    for seed in range(200):
        tokens.add(sampled(library, logits, Sampling(temperature=1.0, seed=seed), None, 1))
    assert len(tokens) > 150 and min(tokens) < 50 and max(tokens) > 950
