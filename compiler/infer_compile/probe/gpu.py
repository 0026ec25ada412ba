"""NVIDIA GPUs, through NVML (nvidia-ml-py) where it is installed."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

from ..catalog.target import Rates, Target


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the driver reports. ``bandwidth``: bytes per second, two transfers per memory clock and bit."""

    name: str
    memory: int
    compute_capability: str
    bandwidth: int


def nvml() -> ModuleType | None:
    """The binding, or None where it is not installed."""
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def gpus(binding: ModuleType | None) -> tuple[Gpu, ...]:
    """Every GPU that the driver shows; none where there is no binding or no driver."""
    if binding is None:
        return ()
    try:
        binding.nvmlInit()
    except binding.NVMLError:
        return ()
    try:
        handles = [binding.nvmlDeviceGetHandleByIndex(i) for i in range(binding.nvmlDeviceGetCount())]
        return tuple(_gpu(binding, handle) for handle in handles)
    finally:
        binding.nvmlShutdown()


def _gpu(binding: ModuleType, handle: object) -> Gpu:
    name = binding.nvmlDeviceGetName(handle)
    major, minor = binding.nvmlDeviceGetCudaComputeCapability(handle)
    clock = binding.nvmlDeviceGetMaxClockInfo(handle, binding.NVML_CLOCK_MEM) * 10**6
    return Gpu(
        name=name.decode() if isinstance(name, bytes) else name,
        memory=binding.nvmlDeviceGetMemoryInfo(handle).total,
        compute_capability=f"{major}.{minor}",
        bandwidth=2 * clock * binding.nvmlDeviceGetMemoryBusWidth(handle) // 8,
    )


def target(gpu: Gpu, known: Target | None) -> Target:
    """A target of ``gpu``: what the driver reports, and the rest from the catalog's ``known`` device."""
    reported = "reported by the driver (NVML)"
    fields = {
        "memory_gb": round(gpu.memory / 1e9, 2),
        "bandwidth_gbs": round(gpu.bandwidth / 1e9, 1),
        "compute_capability": gpu.compute_capability,
    }
    sources = {
        "memory_gb": reported,
        "bandwidth_gbs": "peak: two transfers per memory clock and bus bit, both reported by NVML",
        "compute_capability": reported,
    }
    if known is not None:
        return known.model_copy(
            update={**fields, "name": gpu.name, "sources": {**known.sources, **sources}, "measured": False}
        )
    return Target(
        id=gpu.name.lower().replace(" ", "-"),
        vendor="NVIDIA",
        kind="gpu",
        name=gpu.name,
        memory_gb=round(gpu.memory / 1e9, 2),
        bandwidth_gbs=round(gpu.bandwidth / 1e9, 1),
        compute_capability=gpu.compute_capability,
        rates=Rates(),
        note="The driver does not report matrix rates: add rates.bf16_tflops before planning with this file.",
        sources=sources,
        confidence="B",
    )


def match(gpu: Gpu, names: tuple[str, ...]) -> str | None:
    """The catalog's name of ``gpu``: the longest whose words are all in the driver's name.

    ``NVIDIA GeForce RTX 4090`` is ``rtx-4090``. Of a chip that comes in several forms the driver names the
    cards (``H100 PCIe``, ``H200 NVL``) and leaves the module (``H100 80GB HBM3``) without one: ``h100-sxm``.
    """
    words = set(gpu.name.lower().replace("-", " ").split())
    if not words & {"pcie", "nvl"}:
        words.add("sxm")
    fitting = [name for name in names if set(name.split("-")) <= words]
    return max(fitting, key=lambda name: (len(name), name), default=None)
