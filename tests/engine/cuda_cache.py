"""The CUDA kernels of the cache, launched as the engine will, on whatever device torch tensors lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from infer_compile.codegen import cuda_constants as constants
from infer_compile.codegen.attention_launches import SHIFT
from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.codegen.cuda_pages import WORD, layer_place
from infer_compile.codegen.cuda_sources import kernel
from infer_compile.runtime.engines.inputs import inputs_of
from infer_compile.runtime.engines.rows import Rows
from infer_compile.runtime.formats.kv import Side
from infer_compile.runtime.formats.launches import SETTINGS
from infer_compile.runtime.formats.program import Attend, Program, Rotary
from infer_compile.runtime.kv.codec import FP8_MOST
from infer_compile.runtime.kv.rotation import unpack_signs

Float32 = NDArray[np.float32]
EVERYTHING = 1 << 30
"""A window that holds every position."""


AttendLaunch = Callable[[tuple[int, int, int], Mapping[str, Any], constants.Constants], None]
"""Runs ``attend``, or what stands for it, on a grid, with arguments by name and constants."""


def interpreted_attend(
    grid: tuple[int, int, int], arguments: Mapping[str, Any], own: constants.Constants
) -> None:
    kernel("attend").attend[grid](**arguments, **own)


@dataclass
class Cache:
    """Pools of so many pages of the layout of ``program``, filled with ``fill``; ``tables`` of calibrated
    planes."""

    program: Program
    tables: Mapping[str, Float32]
    exact_pages: int
    packed_pages: int
    fill: int = 0
    launch: AttendLaunch = interpreted_attend

    def __post_init__(self) -> None:
        layout = self.layout = self.program.cache
        self.exact = self._pool(self.exact_pages, layout.exact_page_bytes)
        self.packed = self._pool(self.packed_pages, layout.packed_page_bytes)
        self.broken = torch.zeros(1, dtype=torch.int32)
        signs = unpack_signs(layout.signs, layout.head_dim) if layout.signs else np.ones(layout.head_dim)
        self.signs = torch.tensor(signs, dtype=torch.float32)

    def _pool(self, pages: int, size: int) -> torch.Tensor:
        return torch.full((max(1, pages * size),), self.fill, dtype=torch.uint8)

    def table(self, layer: int, side: Side, name: str) -> torch.Tensor:
        found = self.tables.get(f"layers.{layer}.{side}.{name}")
        return torch.zeros(1) if found is None else torch.from_numpy(np.ascontiguousarray(found))

    def means(self, layer: int) -> torch.Tensor:
        shape = (self.layout.kv_heads, self.layout.head_dim)
        both = [self.table(layer, side, "mean") for side in ("keys", "values")]
        return torch.stack([mean if mean.ndim > 1 else torch.zeros(shape) for mean in both], 1).contiguous()

    def places(self, layer: int) -> dict[str, int]:
        """Sizes of pages, and where a layer begins in them, in words."""
        layout = self.layout
        return {
            "exact_page": layout.exact_page_bytes // WORD,
            "exact_place": layer * layout.exact_page_bytes // len(layout.layers) // WORD,
            "packed_page": layout.packed_page_bytes // WORD,
            "packed_place": layer_place(layout, layer) // WORD,
        }

    @property
    def words(self) -> dict[str, torch.Tensor]:
        return {"exact_pool": _words(self.exact), "packed_pool": _words(self.packed)}

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor, slots: Sequence[int]) -> None:
        """``keys`` and ``values`` [rows, kv_heads, head_dim]."""
        places = self.places(layer)
        kernel("append").append[(len(slots), self.layout.kv_heads)](
            keys.contiguous(),
            values.contiguous(),
            self.means(layer),
            torch.tensor(slots, dtype=torch.int64),
            self.words["exact_pool"],
            self.broken,
            keys[0].numel(),
            places["exact_page"],
            places["exact_place"],
            **constants.append_constants(self.layout, layer),
        )

    def seal(self, layer: int, jobs: Sequence[tuple[int, int]]) -> None:
        layout = self.layout
        if not jobs:
            return
        own = constants.seal_constants(layout, layer, FP8_MOST)
        tables = {
            f"{'key' if side == 'keys' else 'value'}_table": self.table(layer, side, name)
            for side in ("keys", "values")
            for name in ["scale" if layout.layers[layer].plane(side).transform == "diagonal" else "encode"]
        }
        kernel("seal").seal[(len(jobs), layout.kv_heads, layout.page_tokens // 8)](
            **self.words,
            jobs=torch.tensor(jobs, dtype=torch.int32),
            signs=self.signs,
            **tables,
            **self.places(layer),
            **own,
        )

    def attend(
        self,
        operation: Attend,
        queries: torch.Tensor,
        batch: Sequence[Rows],
        tiling: Tiling,
        turn: Rotary | None = None,
    ) -> torch.Tensor:
        """``queries`` [rows, heads, head_dim], turned by ``turn``; the same shape back, float32."""
        sums, logs = self.shares(operation, queries, batch, tiling, turn)
        return self.merge(operation, sums, logs, [0] * len(queries), tiling)

    def turned(
        self, operation: Attend, queries: torch.Tensor, gaps: Float32, turn: Rotary | None
    ) -> torch.Tensor:
        """Queries back over ``gaps`` [rows]."""
        rows, heads, size = queries.shape
        turned = torch.full((rows, heads, size + SHIFT), float("nan"))
        own = constants.turn_back_constants(
            self.layout, operation.layer, heads // operation.kv_heads, turn is not None
        )
        angles = torch.outer(torch.tensor(gaps).double(), torch.tensor(turn.frequencies if turn else ()))
        kernel("turn_back").turn_back[(rows, heads)](
            queries,
            angles.cos().float() if turn else None,
            angles.sin().float() if turn else None,
            self.means(operation.layer) if own["MEANS"] else None,
            turned,
            heads * size,
            **own,
        )
        return turned

    def shares(
        self,
        operation: Attend,
        queries: torch.Tensor,
        batch: Sequence[Rows],
        tiling: Tiling,
        turn: Rotary | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        layout, layer = self.layout, operation.layer
        rows, heads, size = queries.shape
        group, own = operation.heads // operation.kv_heads, layout.layers[layer]
        splits, width = constants.splits(layout, tiling), max(len(part.step.exact) for part in batch)
        told = inputs_of(self.program, batch, (tiling.tokens,), np.zeros((0, SETTINGS)))
        arrays = {name: torch.from_numpy(array) for name, array in told.arrays.items()}
        tiles = torch.cat([arrays["tiles"], torch.tensor([[-1, 0]], dtype=torch.int32)])
        evicts = self.program.limits.overflow == "evict"
        turned = self.turned(operation, queries, told.arrays["gaps"], turn) if evicts else torch.zeros(1)
        factors = torch.full((rows, heads, size), float("nan"), dtype=torch.float16)
        steps = torch.full((rows, heads, constants.segments(own.keys)), float("nan"))
        sums = torch.full((rows, heads, splits, size), float("nan"))
        logs = torch.full((rows, heads, splits), float("nan"))
        if layout.compressed and own.keys.kind != "bf16":
            kernel("query").query[(rows, operation.kv_heads)](
                queries,
                self.signs,
                self.table(layer, "keys", "scale" if own.keys.transform == "diagonal" else "decode"),
                factors,
                steps,
                heads * size,
                operation.scale,
                **constants.query_constants(layout, layer, group),
            )
        arguments = {
            "queries": queries,
            "factors": factors,
            "steps": steps,
            **self.words,
            "exact_table": _page_table(told.tables["exact_table"], width),
            "packed_table": _page_table(told.tables.get("packed_table", told.tables["exact_table"]), width),
            "tiles": tiles,
            **{name: arrays[name] for name in ("sequences", "positions", "sees")},
            "turned": turned,
            "sums": sums,
            "logs": logs,
            "query_stride": heads * size,
            "table_stride": width,
            **self.places(layer),
            "scale": operation.scale,
            "window": operation.window or EVERYTHING,
        }
        own_constants = constants.attend_constants(
            layout,
            layer,
            group,
            tiling,
            evicts=evicts,
            checked=bool(self.program.limits.checked_tokens),
        )
        self.launch((len(tiles), operation.kv_heads, splits), arguments, own_constants)
        return sums, logs

    def merge(
        self,
        operation: Attend,
        sums: torch.Tensor,
        logs: torch.Tensor,
        slots: Sequence[int],
        tiling: Tiling,
        rounded: int = 0,
    ) -> torch.Tensor:
        """float32, of bfloat16 numbers, or of bytes that have a scale for every ``rounded`` of them."""
        layout, layer = self.layout, operation.layer
        rows, heads, _, size = sums.shape
        out = torch.full((rows, heads, size), float("nan"), dtype=torch.bfloat16)
        scales = None
        if rounded:
            out = torch.full((rows, heads, size), 99, dtype=torch.int8)
            scales = torch.full((rows, heads * size // rounded), float("nan"))
        diagonal = layout.layers[layer].values.transform == "diagonal"
        kernel("merge").merge[(rows, operation.kv_heads)](
            sums,
            logs,
            torch.tensor(slots, dtype=torch.int64),
            self.signs,
            self.table(layer, "values", "scale" if diagonal else "decode"),
            self.means(layer)[:, 1].contiguous(),
            out,
            scales,
            heads * size,
            **constants.merge_constants(
                layout, layer, operation.heads // operation.kv_heads, tiling, rounded
            ),
        )
        if scales is None:
            return out.float()
        return out.float() * scales.repeat_interleave(rounded, 1).view(out.shape)


def _words(pool: torch.Tensor) -> torch.Tensor:
    return pool.view(torch.int32) if pool.numel() % WORD == 0 else pool.new_zeros(1, dtype=torch.int32)


def _page_table(pages: Sequence[Any], width: int) -> torch.Tensor:
    return torch.tensor(
        np.stack([np.pad(own, (0, width - len(own)), constant_values=-1) for own in pages]), dtype=torch.int32
    )
