"""Products, norms, gates, rotations, experts and the draw on a device: all that the interpreter is asked."""

from on_device import arrays_on_the_device, pytest  # noqa: F401  # before what imports triton

# isort: split
import test_cuda_kernels
from test_cuda_draws import *  # noqa: F403
from test_cuda_experts import *  # noqa: F403
from test_cuda_kernels import *  # noqa: F403


@pytest.fixture(autouse=True)
def _sums_of_tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep fewer bits of what they add than float32 has."""
    monkeypatch.setattr(test_cuda_kernels, "SUM_ERROR", 1e-5)
