"""Weight totals against the figures that makers and the hub publish, for every model of the catalog.

The hub counts the elements of a repository's tensors exactly, and so does the graph: the two are held to be
equal, to the parameter. A repository may hold more than the language model that is planned (a vision tower, a
module that predicts further tokens, scales of FP8 blocks, a second copy of a tied head); each such surplus is
reckoned below from its own dimensions. Where only a rounded figure is published, it is held to a tolerance.
Neither table is computed from the cards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from math import ceil
from typing import Any

import pytest

from infer_compile.catalog.model import card_names, load_card
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.graph.source import Source

HUB = "Hugging Face safetensors metadata, as in AlexsJones/llmfit hf_models.json, 2026"
KVFIT = "Hugging Face safetensors metadata, as in debaditc/kvfit scripts/build_registry.py, 2026"


def config(name: str) -> Any:
    card = load_card(name)
    assert card is not None
    return card.text_config


@cache
def graph(name: str) -> Graph:
    card = load_card(name)
    assert card is not None
    return build(card.config, name)


def last_layer(one: Graph) -> list[Source]:
    found = {s.name: s for part in one.operations if part.layer == one.layers - 1 for s in part.sources}
    return list(found.values())


def predictor(one: Graph) -> int:
    """The module of DeepSeek-V3's kind that predicts one token more: a layer as the last one, the matrix that
    joins the state with the next token's embedding, and three norms."""
    return sum(source.elements for source in last_layer(one)) + 2 * one.hidden**2 + 3 * one.hidden


def scales(sources: Iterable[Source]) -> int:
    """One for each block of 128 x 128 elements of the matrices that are stored in FP8."""
    whole = ("embed_tokens", "lm_head", "gate.weight", "weights_proj")
    fp8 = [s.shape for s in sources if len(s.shape) == 2 and not any(part in s.name for part in whole)]
    return sum(ceil(rows / 128) * ceil(cols / 128) for rows, cols in fp8)


def nothing(_: Graph) -> int:
    return 0


def block_scales(one: Graph) -> int:
    return scales(one.sources)


def tied_head(one: Graph) -> int:
    """The repository stores a tied head a second time."""
    return one.totals.table_elements


def rotary_tables(one: Graph) -> int:
    """Early conversions stored the inverse frequencies of every layer."""
    return one.layers * one.head_dim // 2


def deepseek_v3(one: Graph) -> int:
    """The predictor with its own copies of embedding and head, and the scales of all of it."""
    copies = 2 * one.vocabulary * one.hidden
    return predictor(one) + copies + scales(one.sources) + scales(last_layer(one))


def longer_vocabulary(one: Graph) -> int:
    """Of the Instruct repository: 768 tokens more in embedding and head."""
    return 2 * 768 * one.hidden


def without_correction(one: Graph) -> int:
    """The routers' correction biases are not in the hub's figure."""
    return -sum(experts.experts for experts in one.experts)


def transformer_blocks(depth: int, hidden: int, inner: int) -> int:
    """Of a vision tower: attention with biases, two layers of MLP with biases, two norms with biases."""
    attention = 4 * (hidden * hidden + hidden)
    mlp = hidden * inner + inner + inner * hidden + hidden
    return depth * (attention + mlp + 4 * hidden)


def siglip(one: Graph) -> int:
    """Gemma 3's tower (SigLIP So400m/14 at 896 pixels) with its last norm; the projector with its norm."""
    hidden = 1152
    patches = 3 * 14 * 14 * hidden + hidden + (896 // 14) ** 2 * hidden
    tower = transformer_blocks(27, hidden, 4304) + patches + 2 * hidden
    return tower + hidden * one.hidden + hidden


def llama4_vision(one: Graph) -> int:
    """34 blocks of 1408, patches of 14 at 336 pixels, the adapter of the pixel shuffle, and the projector."""
    hidden = 1408
    patches = 3 * 14 * 14 * hidden + hidden + (24**2 + 1) * hidden
    adapter = 4 * hidden * 4096 + 4096 * 4096
    return transformer_blocks(34, hidden, 5632) + patches + 4 * hidden + adapter + 4096 * one.hidden


def qwen35_surplus(one: Graph) -> int:
    """Qwen3-VL's tower of 27 blocks of 1152 with its merger, and a predictor with full attention."""
    hidden, merged = 1152, 4 * 1152
    patches = 3 * 2 * 16 * 16 * hidden + hidden + 2304 * hidden
    merger = 2 * hidden + merged * merged + merged + merged * one.hidden + one.hidden
    tower = transformer_blocks(27, hidden, 4304) + patches + merger
    return tower + predictor(one)


@dataclass(frozen=True)
class Counted:
    """``total``: what the hub counts in the repository; ``surplus``: what of it the graph leaves out."""

    total: int
    source: str = HUB
    surplus: Callable[[Graph], int] = nothing


EXACT: dict[str, Counted] = {
    "codellama-34b": Counted(33_743_970_304),
    "deepseek-v2-lite": Counted(15_706_484_224),
    "deepseek-v3": Counted(684_531_386_000, HUB, deepseek_v3),
    "deepseek-v3.2": Counted(685_396_921_376, HUB, deepseek_v3),
    "gemma-2-2b": Counted(2_614_341_888),
    "gemma-2-9b": Counted(9_241_705_984),
    "gemma-2-27b": Counted(27_227_128_320),
    "gemma-3-1b": Counted(999_885_952),
    "gemma-3-4b": Counted(4_300_079_472, HUB, siglip),
    "gemma-3-12b": Counted(12_187_325_040, HUB, siglip),
    "gemma-3-27b": Counted(27_432_406_640, HUB, siglip),
    "glm-5": Counted(753_864_139_008, HUB, predictor),
    "gpt-oss-20b": Counted(20_914_757_184, KVFIT),
    "gpt-oss-120b": Counted(116_829_156_672, KVFIT),
    "llama-2-7b": Counted(6_738_417_664, HUB, rotary_tables),
    "llama-2-13b": Counted(13_015_866_880, KVFIT, rotary_tables),
    "llama-2-70b": Counted(
        68_976_648_192, "Together AI's client, parameters of togethercomputer/llama-2-70b"
    ),
    "llama-3-8b": Counted(8_030_261_248),
    "llama-3-70b": Counted(70_553_706_496),
    "llama-3.1-8b": Counted(8_030_261_248),
    "llama-3.1-70b": Counted(70_553_706_496),
    "llama-3.1-405b": Counted(405_853_388_800),
    "llama-3.2-1b": Counted(1_235_814_400),
    "llama-3.2-3b": Counted(3_212_749_824),
    "llama-4-maverick-17b-128e": Counted(401_583_781_376, HUB, llama4_vision),
    "llama-4-scout-17b-16e": Counted(108_641_793_536, KVFIT, llama4_vision),
    "mimo-7b": Counted(7_833_409_536, HUB, predictor),
    "minimax-m2.5": Counted(228_703_644_928, HUB, block_scales),
    "ministral-8b-2410": Counted(8_019_808_256, "Mistral AI's model card of Ministral-8B-Instruct-2410"),
    "mistral-7b-v0.1": Counted(7_241_732_096),
    "mistral-large-2407": Counted(122_610_069_504),
    "mistral-nemo-12b": Counted(12_247_782_400, KVFIT),
    "mistral-small-24b-2501": Counted(
        23_572_403_200, "KerasHub preset magistral_small_2506, of this geometry"
    ),
    "mixtral-8x7b": Counted(46_702_792_704),
    "mixtral-8x22b": Counted(140_630_071_296, f"{HUB} (Instruct)", longer_vocabulary),
    "nemotron-3-nano-30b-a3b": Counted(31_577_937_344, HUB, without_correction),
    "phi-2": Counted(2_779_683_840),
    "phi-4": Counted(14_659_507_200, KVFIT),
    "qwen2.5-0.5b": Counted(494_032_768),
    "qwen2.5-1.5b": Counted(1_543_714_304),
    "qwen2.5-3b": Counted(3_085_938_688),
    "qwen2.5-7b": Counted(7_615_616_512),
    "qwen2.5-14b": Counted(14_770_033_664),
    "qwen2.5-32b": Counted(32_763_876_352),
    "qwen2.5-72b": Counted(72_706_203_648),
    "qwen3-0.6b": Counted(751_632_384, HUB, tied_head),
    "qwen3-1.7b": Counted(2_031_739_904, HUB, tied_head),
    "qwen3-4b": Counted(4_022_468_096),
    "qwen3-8b": Counted(8_190_735_360),
    "qwen3-14b": Counted(29_536_614_400 // 2, "total_size of model.safetensors.index.json, bf16"),
    "qwen3-32b": Counted(32_762_123_264),
    "qwen3-30b-a3b": Counted(30_532_122_624),
    "qwen3-235b-a22b": Counted(235_093_634_560),
    "qwen3-coder-480b-a35b": Counted(480_154_875_392),
    "qwen3.5-27b": Counted(27_781_427_952, HUB, qwen35_surplus),
    "qwen3.5-35b-a3b": Counted(35_951_822_704, HUB, qwen35_surplus),
    "qwen3.5-122b-a10b": Counted(125_086_497_008, HUB, qwen35_surplus),
    "qwen3.5-397b-a17b": Counted(403_397_928_944, HUB, qwen35_surplus),
    "yi-34b": Counted(34_388_917_248),
}

TABLE, HEAD = "table", "head"


@dataclass(frozen=True)
class Rounded:
    """Billions of parameters in all and for one token, within ``tolerance`` of what is counted: half of the
    last printed digit, unless ``why`` says more. ``left_out``: what the active figure does not count."""

    total: float
    active: float
    source: str
    tolerance: float = 0.005
    left_out: tuple[str, ...] = ()
    why: str = ""


ROUNDED: dict[str, Rounded] = {
    "deepseek-v2-lite": Rounded(15.7, 2.4, "arXiv 2405.04434, appendix B", 0.025, (TABLE,)),
    "deepseek-v3": Rounded(671, 37, "arXiv 2412.19437, section 1", 0.015, why="37.55 are printed as 37"),
    "deepseek-v4-flash": Rounded(284, 13, "arXiv 2606.19348, abstract", 0.022, (TABLE,)),
    "deepseek-v4-pro": Rounded(
        1600, 49, "arXiv 2606.19348, abstract", 0.018, (TABLE,), "1.57 is printed as 1.6"
    ),
    "gemma-4-26b-a4b": Rounded(25.2, 3.8, "Google's model card of Gemma 4", 0.007),
    "gemma-4-31b": Rounded(30.7, 30.7, "Google's model card of Gemma 4"),
    "glm-5": Rounded(744, 40, "Z.ai's model card of GLM-5", left_out=(TABLE, HEAD)),
    "glm-5.2": Rounded(
        744, 40, "Z.ai's model card of GLM-5", 0.017, (TABLE, HEAD), "fewer layers have an index"
    ),
    "gpt-oss-20b": Rounded(20.91, 3.61, "arXiv 2508.10925, table 1", 0.002, (TABLE,)),
    "gpt-oss-120b": Rounded(116.83, 5.13, "arXiv 2508.10925, table 1", 0.002, (TABLE,)),
    "kimi-k2": Rounded(1040, 32.6, "arXiv 2507.20534, table 2", 0.015, why="1.026 is printed as 1.04"),
    "kimi-k2.5": Rounded(1040, 32.6, "arXiv 2507.20534, table 2: the same language model", 0.015),
    "llama-4-scout-17b-16e": Rounded(109, 17, "Meta's model card", 0.012, why="109 with the vision tower"),
    "llama-4-maverick-17b-128e": Rounded(400, 17, "Meta's model card", 0.012),
    "mimo-v2-flash": Rounded(
        309, 15, "github.com/XiaomiMiMo/MiMo-V2-Flash", 0.03, why="15.45 are printed as 15"
    ),
    "minimax-m2.5": Rounded(230, 10, "MiniMax's model card of M2.5", 0.02, (TABLE, HEAD)),
    "minimax-m3": Rounded(428, 23, "MiniMax's model card of M3", 0.022, (TABLE, HEAD), "428 with what sees"),
    "mixtral-8x7b": Rounded(46.7, 12.9, "mistral.ai/news/mixtral-of-experts"),
    "mixtral-8x22b": Rounded(141, 39, "mistral.ai/news/mixtral-8x22b"),
    "nemotron-3-nano-30b-a3b": Rounded(31.6, 3.6, "NVIDIA's technical report of Nemotron 3 Nano", 0.006),
    "nemotron-3-super-120b-a12b": Rounded(
        120.6, 12.7, "NVIDIA's technical report of Nemotron 3 Super", 0.006
    ),
    "qwen3-30b-a3b": Rounded(30.5, 3.3, "huggingface.co/Qwen/Qwen3-30B-A3B", 0.02),
    "qwen3-235b-a22b": Rounded(235, 22, "huggingface.co/Qwen/Qwen3-235B-A22B", 0.01),
    "qwen3-coder-480b-a35b": Rounded(480, 35, "huggingface.co/Qwen", 0.015),
    "qwen3.5-35b-a3b": Rounded(35, 3, "huggingface.co/Qwen", 0.02, (TABLE,)),
    "qwen3.5-122b-a10b": Rounded(122, 10, "huggingface.co/Qwen", 0.025),
    "qwen3.5-397b-a17b": Rounded(397, 17, "huggingface.co/Qwen", 0.022),
    "step-3.7-flash": Rounded(196, 11, "StepFun's model card: 198 with the vision tower of 1.8", 0.012),
}


def test_every_model_is_in_a_table() -> None:
    assert EXACT.keys() | ROUNDED.keys() == set(card_names())
    assert len(EXACT) >= 50
    mixtures = {name for name in card_names() if graph(name).totals.mixtures}
    assert mixtures - ROUNDED.keys() == {"deepseek-v3.2"}, "those without a published active figure"


@pytest.mark.parametrize("name", EXACT)
def test_the_count_is_the_hubs_to_the_parameter(name: str) -> None:
    row, one = EXACT[name], graph(name)
    assert one.parameters + row.surplus(one) == row.total


@pytest.mark.parametrize("name", ROUNDED)
def test_the_count_is_what_the_maker_prints(name: str) -> None:
    row, one = ROUNDED[name], graph(name)
    left_out = sum(
        {TABLE: one.totals.table_elements, HEAD: one.totals.head_elements}[part] for part in row.left_out
    )
    assert one.parameters / 1e9 == pytest.approx(row.total, rel=row.tolerance)
    assert (one.active_parameters - left_out) / 1e9 == pytest.approx(row.active, rel=row.tolerance)


def test_glm_52_is_glm_53_on_the_hub() -> None:
    """No exact figure of GLM-5.2 is at hand; its successor, of the same config, has GLM-5's predictor."""
    assert graph("glm-5.2").parameters + predictor(graph("glm-5")) == 753_329_940_480, KVFIT


def test_kimi_k2_with_its_scales() -> None:
    """Two figures of the hub: without and with the FP8 scales. Both are 3,416 above the count, 3 in 1e9."""
    one = graph("kimi-k2")
    assert scales(one.sources) == 1_026_470_731_056 - 1_026_408_235_864, (HUB, KVFIT)
    assert one.parameters == pytest.approx(1_026_408_235_864, rel=1e-8)


# Kilobytes (1e3) of cache for one token in bf16: "Insights into DeepSeek-V3", arXiv 2505.09343, table 1.
KILOBYTES = {"deepseek-v3": 70.272, "qwen2.5-72b": 327.680, "llama-3.1-405b": 516.096}


@pytest.mark.parametrize("name", KILOBYTES)
def test_cache_bytes_as_published(name: str) -> None:
    assert 2 * graph(name).totals.cache_elements_per_token == 1000 * KILOBYTES[name]


@dataclass(frozen=True)
class CacheKind:
    """Elements that a token leaves in the layers that see everything, and in those with a window, by hand."""

    full: int
    windowed: int = 0
    state: bool = False


CACHES: dict[str, CacheKind] = {
    "llama-2-7b": CacheKind(2 * 32 * 32 * 128),  # every head has its own keys
    "phi-2": CacheKind(2 * 32 * 32 * 80),
    "llama-3.1-8b": CacheKind(2 * 32 * 8 * 128),  # eight groups
    "qwen3-30b-a3b": CacheKind(2 * 48 * 4 * 128),  # heads of 128 where hidden / heads is 64
    "gemma-3-1b": CacheKind(2 * 4 * 1 * 256, 2 * 22 * 1 * 256),  # one layer in six sees everything
    "gemma-3-27b": CacheKind(2 * 10 * 16 * 128, 2 * 52 * 16 * 128),
    "gpt-oss-20b": CacheKind(2 * 12 * 8 * 64, 2 * 12 * 8 * 64),
    "llama-4-scout-17b-16e": CacheKind(2 * 12 * 8 * 128, 2 * 36 * 8 * 128),
    "mimo-v2-flash": CacheKind(9 * 4 * (192 + 128), 39 * 8 * (192 + 128)),  # values are narrower than keys
    "deepseek-v2-lite": CacheKind(27 * (512 + 64)),  # one latent vector and one rotated key for all heads
    "deepseek-v3": CacheKind(61 * (512 + 64)),
    "glm-5": CacheKind(78 * (512 + 64)),
    "qwen3.5-27b": CacheKind(2 * 16 * 4 * 256, state=True),  # three layers in four keep a state
    "nemotron-3-nano-30b-a3b": CacheKind(2 * 6 * 2 * 128, state=True),  # six layers of attention in 52
}


@pytest.mark.parametrize("name", CACHES)
def test_cache_elements_of_each_kind(name: str) -> None:
    totals, kind = graph(name).totals, CACHES[name]
    full = sum(group.cache_elements_per_token for group in totals.attention if group.window is None)
    assert (full, totals.cache_elements_per_token - full) == (kind.full, kind.windowed)
    assert (totals.state_bytes > 0) == kind.state
