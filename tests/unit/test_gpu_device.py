"""What is refused on a machine whose GPU cannot run an engine, and what is said."""

from __future__ import annotations

import os
import sys
import types

import pytest

from infer_compile.cli import doctor
from infer_compile.runtime.engines import device
from infer_compile.runtime.engines.device import (
    GIB,
    Holder,
    check_driver,
    check_memory,
    check_numbers,
    holders,
    need_compiler,
    need_torch,
)
from infer_compile.runtime.errors import InferCompileError


class Nvml(types.SimpleNamespace):
    """A binding that shows two processes on the device."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__(closed=0)
        self.nvmlInit = lambda: None
        self.nvmlShutdown = lambda: setattr(self, "closed", self.closed + 1)
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetComputeRunningProcesses = lambda device: [
            types.SimpleNamespace(pid=2**30, usedGpuMemory=None),
            types.SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 * GIB),
        ]


def test_memory_that_is_not_there_is_told_with_who_holds_it() -> None:
    check_memory(5, 5, 10, ())
    held = (Holder(12, "python", 30 * GIB), Holder(13, "other", None))
    with pytest.raises(InferCompileError) as refusal:
        check_memory(20 * GIB, 10 * GIB, 40 * GIB, held)
    text = str(refusal.value)
    assert "IC527" in text and "take 20.0 GiB" in text
    assert "of 40.0 GiB 10.0 GiB are free" in text
    assert "process 12 (python) holds 30.0 GiB" in text
    assert "process 13 (other) holds an amount that the driver does not tell" in text


def test_weights_in_fp8_need_a_device_that_multiplies_them() -> None:
    check_numbers((8, 0), {"bf16", "f32"})
    check_numbers((8, 9), {"e4m3"})
    check_numbers((12, 0), {"e4m3"})
    with pytest.raises(InferCompileError, match=r"IC535.*compute capability 8\.6") as refusal:
        check_numbers((8, 6), {"bf16", "e4m3"})
    assert "from compute capability 8.9 on" in str(refusal.value)


def test_holders_come_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    binding = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", binding)
    first, second = holders(0)
    assert (first.pid, first.bytes) == (os.getpid(), 3 * GIB) and first.name
    assert (second.name, second.bytes) == ("of another container", None)
    assert binding.closed == 1

    def fail() -> None:
        raise Nvml.NVMLError

    binding.nvmlInit = fail
    assert holders(0) == ()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert holders(0) == ()


def test_a_driver_of_an_older_generation_is_refused() -> None:
    check_driver((13, 0), "12.8")
    check_driver((12, 2), "12.8")
    with pytest.raises(InferCompileError, match=r"IC525(.|\n)*serves CUDA 12\.4(.|\n)*built with 13\.0"):
        check_driver((12, 4), "13.0")


def test_a_pytorch_without_cuda_is_refused() -> None:
    with pytest.raises(InferCompileError, match="IC529"):
        check_driver((13, 0), None)


def test_no_pytorch_at_all_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    with pytest.raises(InferCompileError, match=r"IC529(.|\n)*not installed"):
        need_torch()


def test_a_device_without_kernels_is_named_with_what_would_compile_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    monkeypatch.setattr(device, "which", lambda name: f"/bin/{name}" if name == "gcc" else None)
    with pytest.raises(InferCompileError, match=r"IC528.* 8\.9(.|\n)*and triton, which"):
        need_compiler((8, 9))
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    need_compiler((8, 9))
    monkeypatch.setattr(device, "which", lambda name: None)
    with pytest.raises(InferCompileError, match=r"IC528(.|\n)*and a C compiler"):
        need_compiler((8, 9))
    monkeypatch.setenv("CC", "cc")
    need_compiler((8, 9))


def test_doctor_tells_of_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "Driver", lambda: types.SimpleNamespace(version=lambda: (12, 4)))
    monkeypatch.setattr(doctor, "_installed", lambda name: True)
    monkeypatch.setattr(doctor, "_built_with", lambda: "13.0")
    (found,) = doctor.driver()
    assert found.status == "note" and "too old" in found.message and "newer driver" in found.fix
    monkeypatch.setattr(doctor, "_built_with", lambda: None)
    (found,) = doctor.driver()
    assert "built without CUDA" in found.message
    monkeypatch.setattr(doctor, "_installed", lambda name: False)
    (found,) = doctor.driver()
    assert (found.status, found.message) == ("ok", "serves CUDA 12.4")
