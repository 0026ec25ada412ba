"""Attention at the sizes that benchmarks/gpu_attention.py times: every level, kernels compiled ahead of time
and at start, launch by launch and as a graph."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton", reason="pip install triton")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: kernels are interpreted", allow_module_level=True)

from gpu_attention import OURS, TOLERANCE, difference  # noqa: E402
from gpu_peers import sdpa  # noqa: E402
from gpu_subjects import Case, Heads, level_subject  # noqa: E402
from gpu_timer import Timer  # noqa: E402
from infer_compile.runtime.formats.kv import LEVELS  # noqa: E402


@pytest.mark.parametrize(("group", "ahead"), [(4, True), (8, True), (8, False)])
@pytest.mark.parametrize("level", OURS)
def test_a_step_and_its_graph(level: str, group: int, ahead: bool, tmp_path: Path) -> None:
    subject = level_subject(LEVELS[level], Heads(), Case(group, 5, 3000), "cuda", tmp_path, ahead)
    expected = subject.expected()
    subject.run()
    once = subject.output().clone()
    assert difference(once, expected) < TOLERANCE
    replay = Timer("cuda", 1).captured(subject.run)
    for _ in range(3):
        subject.output().zero_()
        replay()
        assert torch.equal(subject.output(), once)


def test_many_pages(tmp_path: Path) -> None:
    """Places in the pool beyond 2^31 words: 9 GiB of pages."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("takes 24 GiB")
    subject = level_subject("bf16", Heads(), Case(4, 18, 131072), "cuda", tmp_path, False)
    subject.run()
    assert difference(subject.output(), subject.expected()) < TOLERANCE


def test_the_peer_that_is_always_there() -> None:
    subject = sdpa(Heads(), Case(4, 2, 3000), "cuda")
    subject.run()
    assert difference(subject.output(), subject.expected()) < TOLERANCE
