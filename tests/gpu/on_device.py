"""For the tests of the interpreter, run on a device: their arrays lie there, and kernels are compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton", reason="pip install triton")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET is set: kernels are interpreted", allow_module_level=True)
# The module of that name asks for the interpreter.
sys.modules.setdefault("interpreted", ModuleType("interpreted"))


@pytest.fixture(autouse=True)
def arrays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from_numpy, to_numpy = torch.from_numpy, torch.Tensor.numpy

    def placed(array: np.ndarray) -> torch.Tensor:
        return from_numpy(array).cuda()

    def fetched(tensor: torch.Tensor) -> np.ndarray:
        return to_numpy(tensor.cpu())

    monkeypatch.setattr(torch, "from_numpy", placed)
    monkeypatch.setattr(torch.Tensor, "numpy", fetched)
    with torch.device("cuda"):
        yield
