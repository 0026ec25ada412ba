"""skinny.cu on a device: all that the interpreter of PTX is asked."""

from typing import Any

from on_device import arrays_on_the_device, pytest, torch  # noqa: F401  # before what imports triton

# isort: split
import test_skinny
from test_skinny import *  # noqa: F403

from infer_compile.codegen import cuda_skinny
from infer_compile.runtime.engines.driver import Driver
from infer_compile.runtime.engines.kernels import packed


@pytest.fixture(autouse=True)
def _through_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, capability = Driver(), torch.cuda.get_device_capability()

    def launch(
        grid: tuple[int, int], arguments: dict[str, Any], constants: dict[str, Any], warps: int
    ) -> None:
        code, _ = cuda_skinny.compile_skinny(constants, warps, 10 * capability[0] + capability[1])
        function = driver.load(code, cuda_skinny.ENTRY, 0)
        handed = [packed(arguments[name]) for name in cuda_skinny.ARGUMENTS]
        driver.launch(function, grid, warps, 0, torch.cuda.current_stream().cuda_stream, handed)

    monkeypatch.setattr(test_skinny, "launch", launch)
