"""Latent attention by the CUDA kernels, in Triton's interpreter, beside the slow form."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import interpreted  # noqa: F401  # before all that imports triton
import numpy as np
import pytest
import torch
from cuda_case import Past
from latent_case import Inputs, LatentCase
from numpy.typing import NDArray

from infer_compile.codegen.cuda_constants import Tiling
from infer_compile.runtime.engines.latent import ExactLatents, LatentAttention
from infer_compile.runtime.formats.latent import LatentLayout, LatentLevel

Float32 = NDArray[np.float32]
# Queries, softmax weights and, in the cache, latent vectors are rounded to 8 bits.
USUAL_ERROR, RARE_ERROR = 3e-3, 0.012
CHAIN = Tiling(tokens=4, block=32, exact_splits=1, packed_splits=2)
MORE = Tiling(tokens=8, block=64, exact_splits=1, packed_splits=1)


def layout(
    level: LatentLevel,
    rank: int = 64,
    rope: int = 16,
    page_tokens: int = 16,
    sink_pages: int = 1,
    recent_pages: int = 1,
    layers: int = 1,
) -> LatentLayout:
    return LatentLayout(
        level=level,
        page_tokens=page_tokens,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        rank=rank,
        rope=rope,
        layers=layers,
    )


def hold(found: Float32, expected: Float32, usual: float = USUAL_ERROR, rare: float = RARE_ERROR) -> None:
    """Of each head's output the root mean square difference, over that of all outputs."""
    errors = np.sqrt(np.mean((found - expected) ** 2, axis=-1) / np.mean(expected**2))
    worst = np.unravel_index(np.argmax(errors), errors.shape)
    assert errors.max() < rare, f"{worst}: {found[worst][:5]} for {expected[worst][:5]}"
    assert np.median(errors) < usual, np.median(errors)


SHAPES = [
    (layout("bf16"), 4, Past(40, 1), Tiling(1, 16, 3, 0), 4),
    (layout("fp8"), 4, Past(90, 1), Tiling(1, 32, 1, 3), 4),
    (layout("fp8", rank=128, rope=32, page_tokens=32, recent_pages=2), 16, Past(150, 2), CHAIN, 16),
    (layout("fp8", rope=32, page_tokens=64, sink_pages=0, recent_pages=0), 5, Past(200, 8), MORE, 4),
    (layout("bf16", rank=96, page_tokens=64), 8, Past(100, 5), Tiling(8, 64, 2, 0), 2),
]


@pytest.mark.parametrize(("shape", "heads", "past", "tiling", "group"), SHAPES)
def test_shapes(shape: LatentLayout, heads: int, past: Past, tiling: Tiling, group: int) -> None:
    hold(*LatentCase(shape, heads, [past]).run(0, tiling, group))


@pytest.mark.parametrize("level", ["bf16", "fp8"])
def test_ragged_batches(level: LatentLevel) -> None:
    """Empty caches, one token, both sides of page borders, chunks of several pages."""
    pasts = [Past(start, 1 + start % 3) for start in (0, 1, 15, 16, 17, 48)]
    case = LatentCase(layout(level, rank=32, sink_pages=0), 2, [*pasts, Past(0, 9), Past(37, 30)])
    hold(*case.run(0, Tiling(8, 32, 1, 1), 2))


@pytest.mark.parametrize("level", ["bf16", "fp8"])
def test_trees_see_their_ancestors_alone(level: LatentLevel) -> None:
    case = LatentCase(layout(level), 4, [Past(61, 8, tree=True), Past(3, 5, tree=True), Past(30, 1)])
    hold(*case.run(0, Tiling(8, 32, 1, 1, tree=True), 4))


def test_pages_hold_what_the_slow_form_s_do() -> None:
    """Every byte of them; layers do not touch each other."""
    case = LatentCase(layout("fp8", rank=80, rope=24, layers=3), 1, [Past(30, 3), Past(0, 33)])
    for layer in (2, 0):
        inputs, before = case.draw(36), [pool.clone() for pool in (case.cache.exact, case.cache.packed)]
        case.append(layer, inputs, case.batch)
        assert case.packed is not None
        for slow, found in ((case.exact, case.cache.exact), (case.packed, case.cache.packed)):
            assert np.array_equal(slow.bytes, found.numpy())
            assert not torch.equal(found, before.pop(0))
    assert case.cache.broken.item() == 0


def test_a_number_that_is_not_finite_is_noticed() -> None:
    for place in range(2):
        case = LatentCase(layout("bf16"), 1, [Past(0, 1)])
        parts = [torch.ones((1, 64)), torch.ones((1, 16))]
        parts[place][0, 5] = np.inf
        case.cache.append(0, *parts, [3])
        assert case.cache.broken.item() == 1


class Absorbed:
    """DeepSeek-V3's attention of ``transformers`` with drawn weights, and the same from its weights in
    absorbed form."""

    def __init__(self, tokens: int, rank: int, rope: int, heads: int = 4) -> None:
        deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
        torch.manual_seed(rank)
        self.heads, self.nope, self.rope, self.rank = heads, 24, rope, rank
        config = deepseek.DeepseekV3Config(
            hidden_size=64,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            q_lora_rank=48,
            kv_lora_rank=rank,
            qk_nope_head_dim=self.nope,
            qk_rope_head_dim=rope,
            v_head_dim=16,
            attn_implementation="eager",
        )
        self.module = deepseek.DeepseekV3Attention(config, 0).eval()
        for name, parameter in self.module.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            torch.nn.init.normal_(parameter, around, 0.2)
        self.hidden = torch.randn(1, tokens, 64)
        angles = deepseek.DeepseekV3RotaryEmbedding(config)(self.hidden, torch.arange(tokens)[None])
        mask = torch.triu(torch.full((tokens, tokens), float("-inf")), 1)[None, None]
        with torch.no_grad():
            self.expected = self.module(self.hidden, angles, mask)[0][0].numpy()
        self.unfold = self.module.kv_b_proj.weight.detach().view(heads, -1, rank)

    @torch.no_grad()
    def inputs(self) -> Inputs:
        module, hidden = self.module, self.hidden[0]
        queries = module.q_b_proj(module.q_a_layernorm(module.q_a_proj(hidden)))
        plain, turned = queries.unflatten(-1, (self.heads, -1)).split([self.nope, self.rope], -1)
        latents, keys = module.kv_a_proj_with_mqa(hidden).split([self.rank, self.rope], -1)
        parts = (
            torch.einsum("thn,hnr->thr", plain, self.unfold[:, : self.nope]),
            self.turned(turned),
            module.kv_a_layernorm(latents),
            self.turned(keys[:, None])[:, 0],
        )
        return Inputs(*(part.numpy() for part in parts))

    def turned(self, vectors: torch.Tensor) -> torch.Tensor:
        """``vectors`` [tokens, heads, rope], whose pairs are neighbours."""
        theta = self.module.config.rope_parameters["rope_theta"]
        frequencies = theta ** -(torch.arange(0, self.rope, 2) / self.rope)
        angles = torch.outer(torch.arange(len(vectors)), frequencies)[:, None]
        pairs = torch.view_as_complex(vectors.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    @torch.no_grad()
    def output(self, sums: Float32) -> Float32:
        """Of the mean latent vectors [tokens, heads, rank] that heads see."""
        values = torch.einsum("thr,hvr->thv", torch.from_numpy(sums), self.unfold[:, self.nope :])
        return np.asarray(self.module.o_proj(values.flatten(1)).numpy())


CUTS = (0, 18, 19, 20, 26, 36)


def run_cut(case: LatentCase, inputs: Inputs) -> tuple[Float32, Float32]:
    """The tokens in chunks and one by one: of the kernels, and of the slow form."""
    (rows,), parts = case.batch, []
    for first, last in pairwise(CUTS):
        step = replace(
            rows.step,
            tokens=np.zeros(last - first, np.int32),
            start=first,
            accepted=last - first,
            sealed=first // case.layout.page_tokens,
        )
        tiling = Tiling(min(8, last - first), 32, 1, 1)
        parts.append(case.step(0, inputs.part(first, last), case.rows([step]), tiling, 4))
    found, slow = (np.concatenate(side) for side in zip(*parts, strict=True))
    return found, slow


@pytest.mark.parametrize(
    ("level", "rank", "usual", "rare"),
    [("bf16", 128, 5e-3, 0.012), ("fp8", 64, 0.03, 0.06)],
)
def test_deepseek_s_attention(level: LatentLevel, rank: int, usual: float, rare: float) -> None:
    """In fp8 what differs is what latent vectors lose in compressed pages, as the slow form has it."""
    model = Absorbed(CUTS[-1], rank, 16)
    case = LatentCase(
        layout(level, rank, sink_pages=0, recent_pages=0), 4, [Past(0, CUTS[-1])], scale=model.module.scaling
    )
    found, slow = run_cut(case, model.inputs())
    hold(found, slow, rare=0.02)
    hold(model.output(found), model.expected, usual, rare)


def test_the_slow_form_is_deepseek_s_attention() -> None:
    """With a cache in float32: to float32's own precision."""
    model, shape = Absorbed(CUTS[-1], 64, 32), layout("bf16", 64, 32)
    inputs, case = model.inputs(), LatentCase(shape, 4, [Past(0, CUTS[-1])])
    slow = LatentAttention(shape, ExactLatents(shape, case.pages, "f32"), None)
    slow.append(0, inputs.latents, inputs.keys, case.batch)
    sums = slow.attend(0, inputs.queries, inputs.turned, model.module.scaling, case.batch)
    hold(model.output(sums), model.expected, 1e-6, 1e-5)


def test_bytes_of_a_token() -> None:
    """DeepSeek-V3: 576 numbers of 61 layers; compressed, the 512 of the latent vector take a byte each."""
    shape = layout("fp8", rank=512, rope=64, layers=61)
    assert shape.exact_token_bytes == 61 * 1152 and shape.token_bytes == 61 * 640
    assert layout("bf16", rank=512, rope=64, layers=61).token_bytes == 61 * 1152
