"""decode.cu on a device, against the slow form: all that the interpreter of PTX is asked."""

from collections.abc import Mapping
from typing import Any

from on_device import arrays_on_the_device, pytest, torch  # noqa: F401  # before what imports triton

# isort: split
import test_decode
from test_decode import *  # noqa: F403
from test_decode import _weights_of_a_byte  # noqa: F401

from infer_compile.codegen import cuda_decode
from infer_compile.codegen.cuda_constants import Constants
from infer_compile.runtime.engines.driver import Driver
from infer_compile.runtime.engines.kernels import packed


@pytest.fixture(autouse=True)
def _through_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, capability = Driver(), torch.cuda.get_device_capability()

    def launch(grid: tuple[int, int, int], arguments: Mapping[str, Any], constants: Constants) -> None:
        kind = "f32" if arguments["queries"].dtype == torch.float32 else "bf16"
        code, _ = cuda_decode.compile_decode(constants, kind, 10 * capability[0] + capability[1])
        function = driver.load(code, cuda_decode.ENTRY, 0)
        handed = [packed(arguments[name]) for name in cuda_decode.ARGUMENTS]
        driver.launch(function, grid, cuda_decode.WARPS, 0, torch.cuda.current_stream().cuda_stream, handed)

    monkeypatch.setattr(test_decode, "launch", launch)
