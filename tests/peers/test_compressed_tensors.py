"""The written model folder, loaded by transformers with compressed-tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("compressed_tensors")

from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # noqa: E402
from compressed_tensors.quantization import QuantizationConfig  # noqa: E402

from infer_compile.graph.build import build  # noqa: E402
from infer_compile.lower.assemble import assemble  # noqa: E402
from infer_compile.quantize.checkpoint import Checkpoint  # noqa: E402
from infer_compile.quantize.pack import pack  # noqa: E402
from infer_compile.quantize.read import reference_loader  # noqa: E402
from infer_compile.quantize.write import write  # noqa: E402
from infer_compile.runtime.engines.rounding import rounded  # noqa: E402
from infer_compile.runtime.formats.kv import CacheLayout, uniform  # noqa: E402
from infer_compile.runtime.formats.program import Limits, Program, Quantize  # noqa: E402
from infer_compile.runtime.formats.weights import FP8, weight_format  # noqa: E402

# The models are small: more threads than one only get in each other's way.
torch.set_num_threads(1)
QUICKSTART = Path(__file__).parents[2] / "specs" / "models" / "quickstart"
SHAPE = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 64,
    "use_cache": False,
}
# Family, its own settings, weight format, group.
CASES = {
    "llama-int4-untied": ("Llama", {}, "int4-rtn", 64),
    "llama-int4-tied": ("Llama", {"tie_word_embeddings": True}, "int4-rtn", 32),
    "qwen3-int8-untied": ("Qwen3", {}, "int8", 64),
    "qwen3-int4-tied": ("Qwen3", {"tie_word_embeddings": True}, "int4-rtn", 64),
    "qwen2-int4-biases": ("Qwen2", {}, "int4-rtn", 64),
    "qwen2-fp8-biases": ("Qwen2", {}, "fp8", 0),
    "llama-fp8-tied": ("Llama", {"tie_word_embeddings": True}, "fp8", 0),
    "llama-bf16-tied": ("Llama", {"tie_word_embeddings": True}, "bf16", 64),
}


def program_of(config: dict[str, Any], format: str, group: int) -> Program:
    graph = build(config)
    cache = CacheLayout(
        level="bf16",
        page_tokens=32,
        sink_pages=1,
        recent_pages=4,
        kv_heads=graph.kv_heads,
        head_dim=graph.head_dim,
        layers=uniform("bf16", graph.cache_layers, graph.head_dim),
    )
    limits = Limits(max_context=64, max_sequences=1, max_batch_tokens=64, exact_pages=4, packed_pages=0)
    return assemble(graph, weight_format(format, group), cache, limits)


def convert(folder: Path, out: Path, format: str, group: int) -> Program:
    config = json.loads((folder / "config.json").read_text())
    program = program_of(config, format, group)
    write(Checkpoint.open(folder), program, out, config=config)
    return program


def dense_twin(folder: Path, out: Path, program: Program) -> Any:
    """The original in float32 with its matrices replaced by what our reader makes of the written ones, and
    with what they read rounded as the reference engine rounds it, where that is part of the format."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    load = reference_loader(out)
    parameters = dict(model.named_parameters())
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for tensor in program.tensors:
            if tied and tensor.name == "head":
                continue  # the file keeps one tensor for both, in bf16
            values = torch.from_numpy(load(tensor)).reshape(-1)
            start = 0
            for name in tensor.sources:
                parameter = parameters[name]
                parameter.copy_(values[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()
            assert start == values.numel()
    if any(tensor.format == FP8 for tensor in program.tensors):
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(round_input)
    return model


def round_input(module: Any, inputs: tuple[Any, ...]) -> Any:
    (values,) = inputs
    return rounded(values, Quantize(input="x", output="y", group=values.shape[-1], to="fp8"))


def logits(model: Any, tokens: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(tokens).logits.float().numpy()


def save_random(folder: Path, family: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(7)
    config = getattr(transformers, f"{family}Config")(**SHAPE, **settings)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    model.to(torch.bfloat16).save_pretrained(folder)


@pytest.mark.parametrize("case", CASES)
def test_transformers_computes_with_the_written_weights(case: str, tmp_path: Path) -> None:
    family, settings, format, group = CASES[case]
    source, out = tmp_path / "source", tmp_path / "out"
    save_random(source, family, settings)
    program = convert(source, out, format, group)
    tokens = torch.randint(0, SHAPE["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(1))
    wanted = logits(dense_twin(source, out, program), tokens)

    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert np.abs(logits(loaded, tokens) - wanted).max() < 1e-4 * np.abs(wanted).max()
    # As people load it: in bf16, whose rounding is all that may differ.
    in_bf16 = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16)
    assert np.abs(logits(in_bf16, tokens) - wanted).max() < 0.05 * np.abs(wanted).max()
    # And the quantization is really there: the original differs by more than the twin does.
    original = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    drift = np.abs(logits(original, tokens) - wanted).max() / np.abs(wanted).max()
    assert drift < 1e-6 if format == "bf16" else drift > 1e-3


def test_a_head_of_its_own_is_int8_over_int4_layers(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    save_random(source, "Llama", {})
    convert(source, out, "int4-rtn", 64)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    bits = {
        name: module.quantization_scheme.weights.num_bits
        for name, module in loaded.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert bits.pop("lm_head") == 8
    assert len(bits) == 7 * SHAPE["num_hidden_layers"] and set(bits.values()) == {4}


def test_the_description_has_no_key_that_compressed_tensors_does_not_know(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    save_random(source, "Llama", {})
    convert(source, out, "int4-rtn", 32)
    described = json.loads((out / "config.json").read_text())["quantization_config"]
    assert set(described) <= set(QuantizationConfig.model_fields)
    # Groups refuse unknown keys themselves.
    groups = QuantizationConfig.model_validate(described).config_groups
    assert [group.targets for group in groups.values()] == [["Linear"], ["lm_head"]]


@pytest.mark.parametrize("bits", [4, 8])
def test_words_are_packed_as_compressed_tensors_packs_them(bits: int) -> None:
    half = 1 << (bits - 1)
    values = np.random.default_rng(bits).integers(-half, half, (5, 96), np.int8)
    assert np.array_equal(pack(values, bits), pack_to_int32(torch.from_numpy(values), bits).numpy())


@pytest.mark.parametrize("format", ["int8", "int4-rtn", "fp8"])
def test_the_quickstart_model(format: str, tmp_path: Path) -> None:
    program = convert(QUICKSTART, tmp_path, format, 64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "The tuple is an immutable sequence; a list is a mutable one. Both are indexed from zero."
    tokens = tokenizer(text, return_tensors="pt").input_ids
    twin = logits(dense_twin(QUICKSTART, tmp_path, program), tokens)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    apart = (logits(loaded, tokens) - twin)[0]
    if format == "fp8":
        # Activations that differ in their last bit may round to two numbers of e4m3 (docs/numerics.md).
        assert np.abs(apart[0]).max() < 1e-3
        assert np.median(apart.std(-1) / twin[0].std(-1)) < 0.03
    else:
        assert np.abs(apart).max() < 1e-3
    original = transformers.AutoModelForCausalLM.from_pretrained(QUICKSTART, dtype=torch.float32)
    wanted = torch.from_numpy(logits(original, tokens)).log_softmax(-1)
    found = torch.from_numpy(twin).log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum(-1).mean().item()
    assert 0 < divergence < {"int8": 1e-3, "int4-rtn": 0.1, "fp8": 1e-2}[format]
