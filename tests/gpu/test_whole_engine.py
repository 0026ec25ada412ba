"""The GPU engine on a GPU: kernels compiled at start and ahead of time, launch by launch and as graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton", reason="pip install triton")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: kernels are interpreted", allow_module_level=True)

from cuda_pair import CASES, Case, compare, pair, steps_of  # noqa: E402
from driver import Driver  # noqa: E402

from infer_compile.runtime.engines.device import FIRST_E4M3  # noqa: E402


@pytest.mark.parametrize("ahead", [False, True], ids=["at start", "ahead"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.weights}-{case.levels[0]}")
def test_agrees_with_the_reference(case: Case, ahead: bool, tmp_path: Path) -> None:
    """Thrice: what is captured runs without a graph first, then is captured, then is replayed."""
    major, minor = torch.cuda.get_device_capability()
    if case.weights == "fp8" and (major, minor) < FIRST_E4M3:
        pytest.skip("this device does not multiply fp8")
    both = pair(case, tmp_path, None, "cuda", 10 * major + minor if ahead else None)
    for _ in range(3):
        compare(both, steps_of(both.program, Driver(both.reference)), case.weights)


def test_a_graph_gives_the_bits_of_its_launches(tmp_path: Path) -> None:
    both = pair(CASES[1], tmp_path, None, "cuda")
    place = Driver(both.reference).open(64)
    both.engine.step([place.feed(list(range(20)), outputs=0)])
    step = place.feed([7])
    found = [both.engine.step([step], logits=True).logits for _ in range(3)]
    assert np.array_equal(found[1], found[0])
    assert np.array_equal(found[2], found[0])
