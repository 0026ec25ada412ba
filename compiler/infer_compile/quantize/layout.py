"""How a Program's tensors lie in Hugging Face's layout: one stored tensor, or one packed module, for each
tensor of the checkpoint, and the ``quantization_config`` that tells other programs what they are.

Both integer formats are written as ``pack-quantized`` and weight-only. It is the one layout with a scale per
group that vLLM loads, for 4 and for 8 bits (its WNA16 scheme); rounding activations is the engine's own
operation and no part of the weights. fp8 is written as ``float-quantized``, with a scale per row and with
activations rounded token by token (llm-compressor's FP8_DYNAMIC): what our own engine does too. The keys are
those of compressed-tensors' QuantizationConfig.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.program import Program, Tensor
from ..runtime.formats.weights import BF16, F32, WeightFormat
from .checkpoint import INDEX, Checkpoint
from .shard import Entry, arrange

FLOATS = ("F32", "F16", "BF16")
FLOAT = {F32: "F32", BF16: "BF16"}
"""What safetensors calls the numbers of a format that is not scaled."""
SHARD_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of the checkpoint and the format it is written in."""

    name: str
    shape: tuple[int, ...]
    format: WeightFormat

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def values(self) -> str:
        """The name of what its numbers are written as."""
        return packed(self.module) if self.format.type == "int" else self.name

    def stored(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """(name, dtype, shape) of what is written for it."""
        if not self.format.scaled:
            return ((self.values, FLOAT[self.format], self.shape),)
        rows, cols = self.shape
        scales = (scale(self.module), "BF16", (rows, cols // self.format.scale_group(cols)))
        if self.format.type == "float":
            return ((self.values, "F8_E4M3", self.shape), scales)
        words = (self.values, "I32", (rows, cols * self.format.bits // 32))
        return (words, scales, (shape(self.module), "I64", (2,)))

    @property
    def bytes(self) -> int:
        return max(entry.end for entry in arrange(self.stored()).values())


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file to write."""

    file: str
    sources: tuple[Source, ...]

    @property
    def bytes(self) -> int:
        return sum(source.bytes for source in self.sources)

    @property
    def entries(self) -> dict[str, Entry]:
        return arrange(tensor for source in self.sources for tensor in source.stored())


def packed(module: str) -> str:
    return f"{module}.weight_packed"


def scale(module: str) -> str:
    return f"{module}.weight_scale"


def shape(module: str) -> str:
    return f"{module}.weight_shape"


def sources(program: Program, checkpoint: Checkpoint) -> tuple[Source, ...]:
    """What is written, each tensor of the checkpoint once, in the Program's order.

    A tensor wanted in two formats (an embedding whose tied head is quantized) is written in bf16.
    Raises InferCompileError with all of: IC128 a tensor is missing, IC129 it has another shape, IC130 its
    numbers are not float32, float16 or bfloat16.
    """
    problems = [problem for tensor in program.tensors for problem in _check(tensor, checkpoint)]
    if problems:
        raise InferCompileError(list(dict.fromkeys(problems)))
    formats: dict[str, WeightFormat] = {}
    for tensor in program.tensors:
        for name in tensor.sources:
            same = formats.get(name, tensor.format) == tensor.format
            formats[name] = tensor.format if same else BF16
    return tuple(Source(name, checkpoint.shape(name), format) for name, format in formats.items())


def shard_plans(sources: Sequence[Source], limit: int = SHARD_BYTES) -> tuple[ShardPlan, ...]:
    """Fill files up to ``limit`` bytes, a larger tensor alone in its own; a module is never split."""
    parts: list[list[Source]] = []
    room = 0
    for source in sources:
        if not parts or source.bytes > room:
            parts.append([])
            room = limit
        parts[-1].append(source)
        room -= source.bytes
    if len(parts) == 1:
        return (ShardPlan("model.safetensors", tuple(parts[0])),)
    total = len(parts)
    return tuple(
        ShardPlan(f"model-{number:05d}-of-{total:05d}.safetensors", tuple(part))
        for number, part in enumerate(parts, 1)
    )


def index(plans: Sequence[ShardPlan]) -> dict[str, Any] | None:
    """The content of the index file; None where there is one shard."""
    if len(plans) == 1:
        return None
    placed = {name: plan.file for plan in plans for name in plan.entries}
    total = sum(entry.end - entry.begin for plan in plans for entry in plan.entries.values())
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}


def model_config(config: Mapping[str, Any], program: Program, sources: Iterable[Source]) -> dict[str, Any]:
    """``config.json`` of the written model: the source's, in bf16, with its quantization, and without
    references to code, which is not shipped."""
    written = {key: value for key, value in config.items() if key != "auto_map"}
    written["dtype" if "dtype" in written else "torch_dtype"] = "bfloat16"
    quantization = quantization_config(program, sources)
    if quantization:
        written["quantization_config"] = quantization
    return written


def quantization_config(program: Program, sources: Iterable[Source]) -> dict[str, Any] | None:
    """compressed-tensors' description of the written weights; None where all is bf16.

    The format of most modules is given for the class ``Linear``, others for the modules by name; a matrix
    that stays in bf16 is ignored by name. A tied head has no tensor of its own, but is a ``Linear`` too.
    """
    embeddings = {operation.table for operation in program.prologue if operation.kind == "embed"}
    tables = {name for tensor in program.tensors if tensor.name in embeddings for name in tensor.sources}
    groups: dict[WeightFormat, list[str]] = {}
    ignored: list[str] = []
    for source in sources:
        if source.format.scaled:
            groups.setdefault(source.format, []).append(source.module)
        elif len(source.shape) == 2 and source.name not in tables:
            ignored.append(source.module)
    if not groups:
        return None
    if not any(source.name == "lm_head.weight" for source in sources):
        ignored.append("lm_head")
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {
        "quant_method": "compressed-tensors",
        "format": _layout(ordered[0][0]),
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": _group(format, modules if number else ["Linear"])
            for number, (format, modules) in enumerate(ordered)
        },
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _layout(format: WeightFormat) -> str:
    return "pack-quantized" if format.type == "int" else "float-quantized"


def _group(format: WeightFormat, targets: list[str]) -> dict[str, Any]:
    numbers = {"num_bits": format.bits, "type": format.type, "symmetric": True}
    if format.type == "int":
        weights, inputs = {"strategy": "group", "group_size": format.group}, None
    else:
        weights, inputs = {"strategy": "channel"}, numbers | {"strategy": "token", "dynamic": True}
    return {
        "targets": targets,
        "format": _layout(format),
        "weights": numbers | weights | {"dynamic": False},
        "input_activations": inputs,
        "output_activations": None,
    }


def _check(tensor: Tensor, checkpoint: Checkpoint) -> list[Problem]:
    where = str(checkpoint.folder)
    problems: list[Problem] = []
    missing = [name for name in tensor.sources if name not in checkpoint.shards]
    for name in missing:
        problems.append(
            Problem(
                "IC128",
                f"the checkpoint has no tensor {name!r}",
                where,
                f"{tensor.name!r} of the model is made of it",
                f"check that config.json and the weights are of one model, and {INDEX} whole",
            )
        )
    shapes = [checkpoint.shape(name) for name in tensor.sources if name not in missing]
    if not missing and not _fills(tensor, shapes):
        problems.append(
            Problem(
                "IC129",
                f"the shape of {', '.join(map(repr, tensor.sources))} is not what config.json says",
                where,
                f"{' + '.join(str(list(item)) for item in shapes)} is not {tensor.rows} x {tensor.cols}",
                "check that config.json and the weights are of one model",
            )
        )
    for name in tensor.sources:
        if name not in missing and checkpoint.dtype(name) not in FLOATS:
            problems.append(
                Problem(
                    "IC130",
                    f"tensor {name!r} is stored as {checkpoint.dtype(name)}",
                    where,
                    "weights are read from float32, float16 and bfloat16",
                    "use the unquantized model",
                )
            )
    return problems


def _fills(tensor: Tensor, shapes: Sequence[tuple[int, ...]]) -> bool:
    if tensor.rows == 1:
        return sum(math.prod(item) for item in shapes) == tensor.cols
    return all(len(item) == 2 and item[1] == tensor.cols for item in shapes) and (
        sum(item[0] for item in shapes) == tensor.rows
    )
