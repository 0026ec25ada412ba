"""What others take for the same attention: PyTorch, FlashInfer and vLLM, each by its public functions.

Their caches hold the same numbers as ours: copies of a few pages, in places drawn at random where they are
paged, and what they compute is held to attention over the cache as it decodes.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from gpu_cache import Contents, Places, limits_of, spread_pages
from gpu_subjects import Case, Heads, Subject, queries_of, reference
from synthetic_cache import layout_of

BF16_BYTES, FP8_BYTES = 2, 1
WORKSPACE = 512 << 20
"""Bytes for FlashInfer's partial results: its documentation recommends 128 MB, large batches take more."""
PRESET = "turboquant_3bit_nc"
"""vLLM's name of its 3-bit cache."""
SPLITS = 32
"""Shares of a sequence in vLLM's decode: its default (AttentionConfig.tq_max_kv_splits_for_cuda_graph)."""
VLLM_FILES = {
    "vllm.v1.attention.ops.triton_decode_attention": "v1/attention/ops/triton_decode_attention.py",
    "vllm.v1.attention.ops.triton_turboquant_decode": "v1/attention/ops/triton_turboquant_decode.py",
    "vllm.v1.attention.ops.triton_turboquant_store": "v1/attention/ops/triton_turboquant_store.py",
    "vllm.turboquant.config": "model_executor/layers/quantization/turboquant/config.py",
    "vllm.turboquant.centroids": "model_executor/layers/quantization/turboquant/centroids.py",
}
"""Modules that its kernels are in, and where in vLLM's package."""


class Absent(Exception):
    """A peer that cannot be measured here, and why."""


class _Same:
    """What the cache of every peer is made of."""

    def __init__(self, heads: Heads, case: Case, device: str) -> None:
        self.heads, self.case, self.device = heads, case, device
        self.layout = layout_of("bf16", 1, heads.count, heads.size, heads.page_tokens)
        limits = limits_of(self.layout, case.batch, case.context, copied=heads.copied)
        self.places = Places(self.layout, limits, case.batch, case.context, heads.copied)
        self.contents = Contents.drawn(self.layout, {}, device, heads.copied)
        self.queries = queries_of(case, heads, device)
        self.table = np.stack([step.exact for step in self.places.steps(case.context - 1)])

    def bytes(self, each: int) -> int:
        """Of a cache that stores a number in ``each`` bytes."""
        return 2 * self.case.batch * self.case.context * self.heads.count * self.heads.size * each

    def expected(self, kind: torch.dtype) -> torch.Tensor:
        """Of a cache in ``kind``."""

        def cache(sequence: int) -> torch.Tensor:
            return self.contents.cache(self.places, sequence, exact=True).to(kind).float()

        return reference(self.queries, cache, self.heads)

    def paged(self, pages: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        """``pages`` filled with the ``originals`` [copied, ...] that they are copies of."""
        pages[: len(originals)] = originals
        sources = self.places.sources[:, : self.table.shape[1]]
        flat = pages.view(len(pages), -1)
        spread_pages(flat, len(originals), self.table.reshape(-1), sources.reshape(-1))
        return pages


def sdpa(heads: Heads, case: Case, device: str) -> Subject:
    """PyTorch's attention of grouped heads, over keys and values that lie contiguously in bf16."""
    same = _Same(heads, case, device)
    keys, values = same.contents.gathered(same.places, torch.bfloat16)
    queries = same.queries.to(torch.bfloat16)[:, :, None]
    found: list[torch.Tensor] = []

    def run() -> None:
        # Of a graph this is where each of its replays writes.
        found[:] = [F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)]

    return Subject(
        run=run,
        output=lambda: found[0][:, :, 0].float(),
        expected=lambda: same.expected(torch.bfloat16),
        bytes=same.bytes(BF16_BYTES),
    )


def flashinfer(heads: Heads, case: Case, device: str, kind: torch.dtype) -> Subject:
    """FlashInfer's paged decode on tensor cores, planned for a graph."""
    library = _imported("flashinfer")
    same = _Same(heads, case, device)
    page = same.layout.page_tokens
    shape = (same.places.limits.exact_pages, page, heads.count, heads.size)
    sides = []
    for index in range(2):
        # From [heads, tokens, size] of a page to [tokens, heads, size].
        originals = same.contents.exact[:, :, index].transpose(1, 2).to(kind)
        pages = torch.empty(shape, dtype=kind, device=device).view(_bytes_of(kind))
        sides.append(same.paged(pages, originals.contiguous().view(_bytes_of(kind))).view(kind))
    count = same.table.shape[1]
    indptr = torch.arange(case.batch + 1, dtype=torch.int32, device=device) * count
    indices = torch.from_numpy(same.table.reshape(-1).astype(np.int32)).to(device)
    last = torch.full((case.batch,), (case.context - 1) % page + 1, dtype=torch.int32, device=device)
    wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
        torch.zeros(WORKSPACE, dtype=torch.uint8, device=device),
        "NHD",
        use_cuda_graph=True,
        use_tensor_cores=True,
        paged_kv_indptr_buffer=indptr.clone(),
        paged_kv_indices_buffer=indices.clone(),
        paged_kv_last_page_len_buffer=last.clone(),
    )
    wrapper.plan(
        indptr,
        indices,
        last,
        case.group * heads.count,
        heads.count,
        heads.size,
        page,
        pos_encoding_mode="NONE",
        q_data_type=torch.bfloat16,
        kv_data_type=kind,
    )
    queries = same.queries.to(torch.bfloat16)
    held = torch.empty_like(queries)
    return Subject(
        run=lambda: wrapper.run(queries, (sides[0], sides[1]), out=held),
        output=lambda: held.float(),
        expected=lambda: same.expected(kind),
        bytes=same.bytes(torch.empty(0, dtype=kind).element_size()),
    )


def vllm(heads: Heads, case: Case, device: str, source: Path | None = None) -> Subject:
    """vLLM's 3-bit cache: TurboQuant keys, uniform values, by its Triton kernels."""
    modules = _vllm_modules(source)
    config = modules["vllm.turboquant.config"].TurboQuantConfig.from_cache_dtype(PRESET, heads.size)
    same = _Same(heads, case, device)
    page = same.layout.page_tokens
    centroids = modules["vllm.turboquant.centroids"].get_centroids(heads.size, config.centroid_bits)
    centroids = centroids.to(device=device, dtype=torch.float32).sort()[0]
    midpoints = (centroids[:-1] + centroids[1:]) / 2
    turn = _hadamard(heads.size).to(device)
    stored = {
        "mse_bits": config.key_mse_bits,
        "key_packed_size": config.key_packed_size,
        "value_quant_bits": config.effective_value_quant_bits,
        "key_fp8": config.key_fp8,
    }
    slot = config.slot_size_aligned
    pages = torch.zeros(
        (same.places.limits.exact_pages, page, heads.count, slot), dtype=torch.uint8, device=device
    )
    rows = same.contents.rows()
    modules["vllm.v1.attention.ops.triton_turboquant_store"].triton_turboquant_store(
        rows[:, 0].to(torch.bfloat16).contiguous(),
        rows[:, 1].to(torch.bfloat16).contiguous(),
        pages,
        torch.arange(len(rows), dtype=torch.int32, device=device),
        turn,
        midpoints,
        **stored,
    )
    same.paged(pages, pages[: heads.copied].clone())
    queries = same.queries.to(torch.bfloat16)
    table = torch.from_numpy(same.table.astype(np.int32)).to(device)
    lengths = torch.full((case.batch,), case.context, dtype=torch.int32, device=device)
    decode = modules["vllm.v1.attention.ops.triton_turboquant_decode"].triton_turboquant_decode_attention
    held = torch.empty_like(queries)
    buffers = {
        "mid_o_buf": torch.empty(
            (*queries.shape[:2], SPLITS, heads.size + 1), dtype=torch.float32, device=device
        ),
        "output_buf": held,
        "lse_buf": torch.empty(queries.shape[:2], dtype=torch.float32, device=device),
    }
    given: dict[str, Any] = {
        **stored,
        **buffers,
        "scale": 1 / math.sqrt(heads.size),
        "norm_correction": config.norm_correction,
        "PiT": turn,
        "max_num_kv_splits": SPLITS,
    }
    decoded = _decoded(same.contents.exact, turn, centroids, midpoints, config)
    opened = Contents(decoded, decoded)
    return Subject(
        run=lambda: decode(queries, pages, table, lengths, turn, centroids, **given),
        output=lambda: held.float(),
        expected=lambda: reference(queries.float(), lambda i: opened.cache(same.places, i), heads),
        bytes=case.batch * case.context * heads.count * slot,
    )


def _decoded(
    exact: torch.Tensor, turn: torch.Tensor, centroids: torch.Tensor, midpoints: torch.Tensor, config: Any
) -> torch.Tensor:
    """``exact`` [pages, kv_heads, 2, tokens, size] as that cache holds it: of a key its norm in fp16 and the
    nearest centroids of its turned direction, of a value steps from its smallest number to its largest."""
    keys, values = exact[:, :, 0], exact[:, :, 1]
    norms = keys.norm(dim=-1, keepdim=True)
    points = centroids[torch.bucketize(keys / norms @ turn, midpoints, right=True)]
    if config.norm_correction:
        points = points / points.norm(dim=-1, keepdim=True)
    keys = norms.half().float() * points @ turn.T
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    most = (1 << config.effective_value_quant_bits) - 1
    step = (high - low) / most
    codes = ((values - low) / step + 0.5).floor().clamp(0, most)
    return torch.stack([keys, codes * step.half().float() + low.half().float()], 2)


def _hadamard(size: int) -> torch.Tensor:
    turn = torch.ones(1, 1)
    while len(turn) < size:
        turn = torch.cat([torch.cat([turn, turn], 1), torch.cat([turn, -turn], 1)])
    return turn / math.sqrt(size)


def _bytes_of(kind: torch.dtype) -> torch.dtype:
    """What pages of ``kind`` are copied as: not every operation knows float8."""
    return torch.uint8 if kind.itemsize == FP8_BYTES else torch.int16


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as failure:
        raise Absent(f"{name} cannot be imported: {failure}") from failure


def _vllm_modules(source: Path | None) -> dict[str, ModuleType]:
    """Of the installed package, or of the folder ``vllm`` of its source alone: its kernels need no more of
    it than Triton and the name of the platform."""
    if source is None:
        names = {name: name for name in VLLM_FILES if ".v1." in name}
        for each in ("config", "centroids"):
            names[f"vllm.turboquant.{each}"] = f"vllm.model_executor.layers.quantization.turboquant.{each}"
        return {name: _imported(place) for name, place in names.items()}
    for name, members in _stand_ins().items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    for name, file in VLLM_FILES.items():
        found = importlib.util.spec_from_file_location(name, source / file)
        if found is None or found.loader is None or not (source / file).is_file():
            raise Absent(f"there is no {file} in {source}")
        module = importlib.util.module_from_spec(found)
        sys.modules[name] = module
        try:
            found.loader.exec_module(module)
        except ImportError as failure:
            raise Absent(f"{file} of {source} cannot be loaded alone: {failure}") from failure
    return {name: sys.modules[name] for name in VLLM_FILES}


def _stand_ins() -> dict[str, Mapping[str, object]]:
    """What the files import of the rest of vLLM."""
    triton, language = _imported("triton"), _imported("triton.language")
    packages = ("vllm", "vllm.v1", "vllm.v1.attention", "vllm.v1.attention.ops", "vllm.turboquant")
    platform = SimpleNamespace(
        is_cuda_alike=torch.cuda.is_available,
        is_cuda=torch.cuda.is_available,
        is_rocm=lambda: False,
        is_xpu=lambda: False,
    )
    logging = _imported("logging")
    return {
        **{name: {"__path__": []} for name in packages},
        "vllm.triton_utils": {"triton": triton, "tl": language},
        "vllm.platforms": {"current_platform": platform},
        "vllm.logger": {"init_logger": logging.getLogger},
    }


PEERS: Mapping[str, Callable[..., Subject]] = MappingProxyType(
    {
        "sdpa": sdpa,
        "flashinfer-bf16": lambda *given: flashinfer(*given, torch.bfloat16),
        "flashinfer-fp8": lambda *given: flashinfer(*given, torch.float8_e4m3fn),
        "vllm-3bit": vllm,
    }
)
NUMBER_BYTES: Mapping[str, float] = MappingProxyType(
    {"sdpa": BF16_BYTES, "flashinfer-bf16": BF16_BYTES, "flashinfer-fp8": FP8_BYTES, "vllm-3bit": 0.4}
)
"""About what a number takes in each cache."""
