"""The engine on a device: masks, answers that are checked, streams without their oldest tokens, and
heads that draft: all that it is asked with interpreted kernels."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from on_device import pytest  # before what imports triton

# isort: split
import test_cuda_engine
import test_cuda_heads
from test_cuda_engine import *  # noqa: F403
from test_cuda_heads import *  # noqa: F403

from infer_compile.codegen.gpu_engine import emit
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.formats.program import Program

# Of test_whole_engine.py, in the usual tilings; and of pools that lie in the processor's memory.
del test_agrees_with_the_reference, test_what_is_lent_follows_the_pool_until_it_is_given_back  # noqa: F821


def opened(program: Program, weights: Path, folder: Path) -> CudaEngine:
    emit(program, None, weights, folder, test_cuda_heads.CUTS)
    return CudaEngine(folder, "cuda")


@pytest.fixture(scope="module", autouse=True)
def _on_the_device() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_cuda_engine, "pair", partial(test_cuda_engine.pair, device="cuda"))
        patch.setattr(test_cuda_heads, "opened", opened)
        yield
