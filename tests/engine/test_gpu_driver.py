"""Kernels compiled ahead of time, and launched through the driver: here a library that writes down what it is
asked."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from infer_compile.codegen.nvrtc import installed  # noqa: E402
from infer_compile.codegen.toolchain import find  # noqa: E402
from infer_compile.runtime.engines.driver import Driver  # noqa: E402
from infer_compile.runtime.engines.kernels import INDEX, CubinKernels  # noqa: E402
from infer_compile.runtime.errors import InferCompileError  # noqa: E402
from infer_compile.runtime.formats.launches import Blocks, Cubin, Cubins, Launch, StepTable  # noqa: E402

UNIT = Path(__file__).resolve().parents[1] / "unit"

# Function 7 fails; of a launch the sizes, and the arguments as a pointer, a float, an integer and a pointer.
DRIVER = r"""
#include <cstdint>
#include <cstring>
extern "C" {
char seen_cubin[16], seen_entry[16];
unsigned seen_sizes[7];
uint64_t seen_pointers[4];
float seen_float;
int seen_int, seen_limit;
int cuInit(unsigned flags) { return flags ? 1 : 100; }
int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
int cuGetErrorString(int status, const char** text) { *text = "it broke"; return 0; }
int cuModuleLoadData(void** module, const char* image) {
  strncpy(seen_cubin, image, 15);
  *module = (void*)5;
  return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  if (module != (void*)5) return 1;
  strncpy(seen_entry, name, 15);
  *function = (void*)(strcmp(name, "bad") ? 6 : 7);
  return 0;
}
int cuFuncSetAttribute(void* function, int which, int value) {
  seen_limit = which == 8 ? value : -1;
  return 0;
}
int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** arguments, void** extra) {
  if (function == (void*)7 || extra || by != 1 || bz != 1) return 1;
  unsigned sizes[] = {gx, gy, gz, bx, shared, (unsigned)(uintptr_t)stream, 0};
  memcpy(seen_sizes, sizes, sizeof sizes);
  seen_pointers[0] = *(uint64_t*)arguments[0];
  seen_float = *(float*)arguments[1];
  seen_int = *(int*)arguments[2];
  seen_pointers[1] = *(uint64_t*)arguments[3];
  seen_pointers[2] = *(uint64_t*)arguments[4];
  seen_pointers[3] = *(uint64_t*)arguments[5];
  return 0;
}
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(DRIVER)
    find("x86-64").compile(
        folder / "driver.cpp", folder / "libcuda.so", "portable", extra=("-fvisibility=default",)
    )
    return folder / "libcuda.so"


def launch(entry: str) -> Launch:
    return Launch(
        kernel=f"some.{entry}",
        grid=(Blocks(of="rows"), 3),
        tensors={"output": "x", "absent": None, "input": "y"},
        counts={"rows": "rows"},
        numbers={"scale": 1.0},
        constants={"WIDTH": 8},
        warps=2,
    )


def table(*launches: Launch) -> StepTable:
    names = {"dtype": "f32", "width": 8, "per": "rows"}
    return StepTable.model_validate(
        {
            "program": "",
            "captured": (),
            "tiles": (1,),
            "inputs": (),
            "hidden": "x",
            "weights_bytes": 0,
            "weights": {},
            "buffers": {"x": names, "y": names},
            "lines": launches,
            "head": (),
        }
    )


def opened(folder: Path, library: Path, *entries: str) -> tuple[CubinKernels, list[Launch]]:
    launches = [launch(entry) for entry in entries]
    steps = table(*launches)
    names = ("input", "scale", "rows", "output")
    kernels = {
        steps.variant(each): Cubin(
            file="a.cubin", entry=entry, arguments=names, warps=each.warps, shared=60000
        )
        for each, entry in zip(launches, entries, strict=True)
    }
    (folder / "a.cubin").write_bytes(b"ELF of it")
    (folder / INDEX).write_text(Cubins(capability=89, kernels=kernels).model_dump_json(by_alias=True))
    return CubinKernels(folder, steps, Driver(str(library)), stream=lambda: 41), launches


def test_arguments_come_in_the_kernels_order(tmp_path: Path, library: Path) -> None:
    kernels, (first,) = opened(tmp_path, library, "good")
    x, y = torch.zeros(8), torch.zeros(8)
    kernels.launch(first, (5, 3), {"output": x, "absent": None, "input": y, "rows": -5, "scale": 1.5})
    seen = ctypes.CDLL(str(library))
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(seen, "seen_cubin"))) == b"ELF of it"
    assert ctypes.string_at(ctypes.addressof(ctypes.c_char.in_dll(seen, "seen_entry"))) == b"good"
    assert list((ctypes.c_uint * 6).in_dll(seen, "seen_sizes")) == [5, 3, 1, 64, 60000, 41]
    assert list((ctypes.c_uint64 * 4).in_dll(seen, "seen_pointers")) == [y.data_ptr(), x.data_ptr(), 0, 0]
    assert ctypes.c_float.in_dll(seen, "seen_float").value == 1.5
    assert ctypes.c_int.in_dll(seen, "seen_int").value == -5
    assert ctypes.c_int.in_dll(seen, "seen_limit").value == 60000
    assert Driver(str(library)).version() == (12, 8)


def test_a_driver_without_a_device_says_so(library: Path) -> None:
    with pytest.raises(InferCompileError, match=r"IC526(.|\n)*cuInit: it broke"):
        Driver(str(library)).start()


def test_what_the_driver_says_is_told(tmp_path: Path, library: Path) -> None:
    kernels, (first,) = opened(tmp_path, library, "bad")
    given = {"output": torch.zeros(8), "input": torch.zeros(8), "rows": 1, "scale": 1.0}
    with pytest.raises(InferCompileError, match=r"IC526(.|\n)*cuLaunchKernel: it broke"):
        kernels.launch(first, (1,), given)


def test_a_kernel_that_is_missing_is_found_at_once(tmp_path: Path, library: Path) -> None:
    opened(tmp_path, library, "good")
    with pytest.raises(ValueError, match=r"no kernel for some\.other"):
        CubinKernels(tmp_path, table(launch("good"), launch("other")), Driver(str(library)))


def test_no_driver_is_an_error_with_a_code() -> None:
    with pytest.raises(InferCompileError, match="IC524"):
        Driver("libthat-is-not-there.so.1")


COMPILED = (
    "decode",
    "skinny",
    "gather.gather",
    "norm.norm",
    "turn.turn",
    "linear.linear",
    "append.append",
    "merge.merge",
)
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from test_gpu_step import program, step_table
from infer_compile.codegen.gpu_cubins import by_nvrtc, compile_launch
table, found = step_table(program()), {}
for launch in table.launches():
    name = by_nvrtc(launch) or launch.kernel
    if name in sys.argv[2:] and name not in found:
        made = compile_launch(table, launch, 80, "a.cubin")
        cubin = made.cubin
        assert made.code[:4] == b"\\x7fELF"
        found[name] = [cubin.entry, cubin.arguments, cubin.shared]
print(json.dumps(found))
"""


def test_kernels_are_compiled_without_a_gpu(tmp_path: Path) -> None:
    """Of a step for compute capability 8.0, one launch of every kernel that is quick to compile."""
    pytest.importorskip("triton", reason="pip install triton")
    if not installed():
        pytest.skip("pip install nvidia-cuda-nvrtc")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(UNIT), *COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == set(COMPILED)
    assert found["decode"][0] == "decode" and found["skinny"][0] == "skinny"
    assert found["gather.gather"][:2] == ["gather", ["chosen", "table", "output"]]
    assert "bias" not in found["linear.linear"][1] and found["linear.linear"][2] > 0
