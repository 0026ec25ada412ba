"""A Program's tensors back from the written model folder, for the reference engine and for repacking."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.program import Tensor
from . import layout
from .checkpoint import Checkpoint
from .pack import unpack
from .rtn import Quantized, quantize
from .shard import BFLOAT16


def read_tensor(model: Path | Checkpoint, tensor: Tensor) -> Quantized | np.ndarray:
    """The values of ``tensor``: its sources stacked along rows (a vector's along its length).

    A quantized format gives ``Quantized``, another an array of its own numbers [rows, cols]. A quantized
    tensor whose source is stored in bf16 (a tied head) is quantized here, by the function that wrote the
    others. Give an opened ``Checkpoint`` to read many. Raises InferCompileError: IC135 the folder does not
    hold what the Program says, and what ``Checkpoint.open`` raises.
    """
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model)
    if not tensor.format.scaled:
        return _plain(checkpoint, tensor)
    parts = [_quantized(checkpoint, tensor, name) for name in tensor.sources]
    result = parts[0]
    if len(parts) > 1:
        result = Quantized(
            np.concatenate([part.values for part in parts]), np.concatenate([part.scales for part in parts])
        )
    if result.values.shape != (tensor.rows, tensor.cols):
        raise _mismatch(checkpoint, tensor, f"it makes {result.values.shape}")
    return result


def reference_loader(model_dir: Path) -> Callable[[Tensor], np.ndarray]:
    """A function from a Program tensor to its float32 [rows, cols], dequantized without further rounding."""
    checkpoint = Checkpoint.open(model_dir)

    def load(tensor: Tensor) -> np.ndarray:
        value = read_tensor(checkpoint, tensor)
        return value.dequantize() if isinstance(value, Quantized) else value.astype(np.float32)

    return load


def _plain(checkpoint: Checkpoint, tensor: Tensor) -> np.ndarray:
    parts = [_stored(checkpoint, tensor, name, layout.FLOAT[tensor.format]) for name in tensor.sources]
    if tensor.rows == 1:
        parts = [part.reshape(1, -1) for part in parts]
    value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1 if tensor.rows == 1 else 0)
    if value.shape != (tensor.rows, tensor.cols):
        raise _mismatch(checkpoint, tensor, f"it makes {value.shape}")
    return value


def _quantized(checkpoint: Checkpoint, tensor: Tensor, name: str) -> Quantized:
    module = name.removesuffix(".weight")
    if layout.scale(module) not in checkpoint.shards:
        weights = _stored(checkpoint, tensor, name, "BF16")
        if weights.ndim != 2 or not tensor.format.fits(weights.shape[1]):
            group = tensor.format.group
            raise _mismatch(checkpoint, tensor, f"{name!r} of {weights.shape} has no groups of {group}")
        return quantize(weights, tensor.format, threads=min(8, os.cpu_count() or 1))
    scales = _stored(checkpoint, tensor, layout.scale(module), "BF16")
    if tensor.format.type == "float":
        values = _stored(checkpoint, tensor, name, "F8_E4M3")
        if scales.shape != (len(values), 1):
            raise _mismatch(checkpoint, tensor, f"{module!r} has not one scale for each row")
        return Quantized(values, np.array(scales, BFLOAT16))
    words = _stored(checkpoint, tensor, layout.packed(module), "I32")
    shape = tuple(_stored(checkpoint, tensor, layout.shape(module), "I64").tolist())
    bits, group = tensor.format.bits, tensor.format.group
    rows, cols = shape
    if words.shape != (rows, cols * bits // 32) or scales.shape != (rows, cols // group):
        raise _mismatch(checkpoint, tensor, f"{module!r} is not {bits} bits in groups of {group}")
    return Quantized(unpack(words, bits), np.array(scales, BFLOAT16))


def _stored(checkpoint: Checkpoint, tensor: Tensor, name: str, dtype: str) -> np.ndarray:
    if name not in checkpoint.shards:
        raise _mismatch(checkpoint, tensor, f"{name!r} is missing")
    if checkpoint.dtype(name) != dtype:
        raise _mismatch(checkpoint, tensor, f"{name!r} is {checkpoint.dtype(name)}, not {dtype}")
    return checkpoint.read(name)


def _mismatch(checkpoint: Checkpoint, tensor: Tensor, because: str) -> InferCompileError:
    return InferCompileError(
        Problem(
            "IC135",
            f"the written weights do not hold {tensor.name!r} as the program says",
            str(checkpoint.folder),
            because,
            "build the bundle again",
        )
    )
