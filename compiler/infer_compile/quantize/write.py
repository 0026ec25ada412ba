"""Writes the weights of a Program as a model folder in Hugging Face's layout, block by block.

Memory holds one mapped tensor of the checkpoint and a few blocks of rows. A shard is written aside
(``.partial``), synced and renamed; its header carries the digests of its data and of the checkpoint's tensors
it was made from, so a rerun can tell a finished shard by itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import InferCompileError, Problem
from ..runtime.formats.program import Program
from ..runtime.formats.weights import BF16, F32
from . import layout, rtn
from .assets import copy_assets
from .checkpoint import INDEX, Checkpoint
from .disk import guarded, put, require_room, save_json
from .layout import ShardPlan, Source
from .pack import pack
from .shard import BFLOAT16, Entry, digest, encode_header, open_shard

Progress = Callable[[str, int, int], None]
"""Called with the tensor just written, the bytes written so far, and all bytes."""

_EMPTY = "0" * 64
_BLOCK = 1 << 20
_NUMBERS = {F32: np.dtype(np.float32), BF16: BFLOAT16}


@dataclass(frozen=True, slots=True)
class Written:
    """What ``write`` left in the folder."""

    files: tuple[str, ...]
    """Every file of the model folder, relative to it, sorted."""
    bytes: int
    """Bytes of the stored tensors, packing and scales included, headers not."""
    reused: tuple[str, ...]
    """Shards found finished from an earlier run."""
    unused: tuple[str, ...]
    """Tensors of the checkpoint that the Program does not read."""


def write(
    checkpoint: Checkpoint,
    program: Program,
    out_dir: Path,
    *,
    config: Mapping[str, Any],
    progress: Progress | None = None,
    threads: int | None = None,
    shard_bytes: int = layout.SHARD_BYTES,
) -> Written:
    """Write ``out_dir``: safetensors shards and their index, ``config.json``, and the checkpoint's tokenizer.

    ``config`` is the model's ``config.json``. The bytes depend on the arguments alone, not on ``threads``.
    Shards that an earlier run finished from the same checkpoint are kept. On failure no file with a final
    name is half written, and finished shards stay.

    Raises InferCompileError: IC128, IC129, IC130 as ``layout.sources``, IC131 weights with NaN or infinity,
    IC140 the disk is or would be full, IC141 the folder cannot be written.
    """
    sources = layout.sources(program, checkpoint)
    plans = layout.shard_plans(sources, shard_bytes)
    total = sum(source.bytes for source in sources)
    done = 0

    def advance(name: str, bytes: int) -> None:
        nonlocal done
        done += bytes
        if progress:
            progress(name, done, total)

    reused: list[str] = []
    with guarded(out_dir):
        out_dir.mkdir(parents=True, exist_ok=True)
        _clear(out_dir, plans)
        with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
            waiting: list[ShardPlan] = []
            for plan in plans:
                if _finished(checkpoint, plan, out_dir / plan.file, pool):
                    reused.append(plan.file)
                    advance(plan.file, plan.bytes)
                else:
                    waiting.append(plan)
            require_room(out_dir, sum(plan.bytes for plan in waiting))
            for plan in waiting:
                _write_shard(checkpoint, plan, out_dir / plan.file, pool, advance)
        assets = copy_assets(checkpoint.folder, out_dir)
        listing = layout.index(plans)
        if listing:
            save_json(out_dir / INDEX, listing)
        save_json(out_dir / "config.json", layout.model_config(config, program, sources))
    files = [plan.file for plan in plans] + assets + ["config.json"] + ([INDEX] if listing else [])
    read = {source.name for source in sources}
    return Written(
        files=tuple(sorted(files)),
        bytes=total,
        reused=tuple(reused),
        unused=tuple(name for name in checkpoint.names if name not in read),
    )


def _write_shard(
    checkpoint: Checkpoint,
    plan: ShardPlan,
    path: Path,
    pool: ThreadPoolExecutor,
    advance: Callable[[str, int], None],
) -> None:
    entries = plan.entries
    # The digests are known last; their places in the header are kept by as many zeros.
    header = encode_header(entries, _metadata(_EMPTY, _EMPTY))
    digests: list[str] = []
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            for source in plan.sources:
                # Beside the work on it, while the system still has the tensor's bytes at hand.
                content = pool.submit(_source_digest, checkpoint, source)
                _write_source(checkpoint, source, descriptor, len(header), entries, pool)
                digests.append(content.result())
                advance(source.name, source.bytes)
            end = max(entry.end for entry in entries.values())
            data_digest = digest(descriptor, len(header), end)
            put(descriptor, encode_header(entries, _metadata(_joined(digests), data_digest)), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _write_source(
    checkpoint: Checkpoint,
    source: Source,
    descriptor: int,
    data: int,
    entries: Mapping[str, Entry],
    pool: ThreadPoolExecutor,
) -> None:
    """Read, convert and write one tensor in blocks of rows, each to its own place in the file."""
    tensor = checkpoint.read(source.name)
    format = source.format
    matrix = tensor if format.scaled else tensor.reshape(-1, tensor.shape[-1] if tensor.ndim > 1 else 1)
    rows, cols = matrix.shape

    def quantized(block: slice) -> None:
        result = rtn.quantize(matrix[block], format)
        stored = pack(result.values, format.bits) if format.type == "int" else result.values
        values, scale = entries[source.values], entries[layout.scale(source.module)]
        put(descriptor, stored, data + values.begin + block.start * stored.shape[1] * stored.itemsize)
        groups = result.scales.shape[1]
        put(descriptor, result.scales, data + scale.begin + block.start * groups * result.scales.itemsize)

    def rounded(block: slice) -> None:
        values = np.ascontiguousarray(matrix[block]).astype(_NUMBERS[format], copy=False)
        # The exponent is in the upper half of both kinds of number.
        halves = values.itemsize // 2
        upper = values.reshape(-1).view(np.uint16)[halves - 1 :: halves]
        if upper.size and (upper & 0x7FFF).max() >= 0x7F80:
            raise rtn.NotFinite
        put(descriptor, values, data + entries[source.name].begin + block.start * cols * values.itemsize)

    try:
        _each(pool, quantized if format.scaled else rounded, rtn.row_blocks(rows, cols, _BLOCK))
    except rtn.NotFinite as error:
        raise InferCompileError(
            Problem(
                "IC131",
                f"tensor {source.name!r} holds NaN, infinity, or a number beyond bf16",
                str(checkpoint.shards[source.name].path),
                fix="fetch the model again; if it is the publisher's own, take another revision",
            )
        ) from error
    if layout.shape(source.module) in entries:
        put(descriptor, np.array(source.shape, "<i8"), data + entries[layout.shape(source.module)].begin)


def _each(pool: ThreadPoolExecutor, work: Callable[[slice], None], blocks: Iterator[slice]) -> None:
    """Run ``work`` on every block; on the first failure drop what has not begun, and wait for what has."""
    running: list[Future[None]] = [pool.submit(work, block) for block in blocks]
    try:
        for future in running:
            future.result()
    finally:
        for future in running:
            future.cancel()
        # The file may be closed only when nobody writes to it any more.
        for future in running:
            if not future.cancelled():
                future.exception()


def _metadata(source_digest: str, data_digest: str) -> dict[str, str]:
    return {"format": "pt", "method": rtn.METHOD, "source_sha256": source_digest, "data_sha256": data_digest}


def _finished(checkpoint: Checkpoint, plan: ShardPlan, path: Path, pool: ThreadPoolExecutor) -> bool:
    """Whether ``path`` is this shard, whole, made from these sources."""
    if not path.exists():
        return False
    try:
        shard = open_shard(path)
    except InferCompileError:
        return False
    if shard.entries != plan.entries:
        return False
    digests = list(pool.map(lambda source: _source_digest(checkpoint, source), plan.sources))
    data_digest = shard.metadata.get("data_sha256", "")
    if shard.metadata != _metadata(_joined(digests), data_digest):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return digest(descriptor, shard.data, shard.size - shard.data) == data_digest
    finally:
        os.close(descriptor)


def _source_digest(checkpoint: Checkpoint, source: Source) -> str:
    """Name, shape, dtype and sha256 of the bytes of a tensor that a shard is made from."""
    content = checkpoint.shards[source.name].sha256(source.name)
    return f"{source.name} {source.shape} {checkpoint.dtype(source.name)} {content}\n"


def _joined(digests: list[str]) -> str:
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _clear(out_dir: Path, plans: tuple[ShardPlan, ...]) -> None:
    """Remove what another run left under names of ours: other shards, halves of shards, an old index."""
    ours = {plan.file for plan in plans}
    for path in out_dir.glob("model*.safetensors*"):
        if path.name not in ours:
            path.unlink()
