"""Rounded activations in the reference engine."""

from __future__ import annotations

import families
import ml_dtypes
import numpy as np
import torch
from driver import TEXT, Driver

from infer_compile.quantize.rtn import quantize
from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.engines.rounding import rounded
from infer_compile.runtime.formats.program import Embed, Linear, Norm, Quantize, Select, Tensor
from infer_compile.runtime.formats.weights import BF16, FP8, weight_format


def test_activations_are_rounded_as_the_operation_says() -> None:
    """A Program without layers whose head is the identity: its logits are the rounded row of the table."""
    size, group = 64, 32
    values = np.zeros(size, np.float32)
    values[:8] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, 126.4, -126.6]
    values[8:group] = np.random.default_rng(2).uniform(-127, 127, group - 8).astype(np.float32)
    rows = np.stack([values, np.roll(values, group) * np.float32(0.03)])
    tensors = {"embed": np.resize(rows, (size, size)), "head": np.eye(size, dtype=np.float32)}
    form = {"embed": BF16, "head": weight_format("int8", group)}
    sample = families.program(families.graph(families.model("llama-grouped")))
    program = sample.model_copy(
        update={
            "vocabulary": size,
            "tensors": tuple(
                Tensor(name=name, rows=size, cols=size, format=form[name], sources=(name,))
                for name in tensors
            ),
            "prologue": (Embed(table="embed", output="x"),),
            "layers": (),
            "epilogue": (
                Select(input="x", output="selected"),
                Quantize(input="selected", output="quantized", group=group),
                Linear(weight="head", input="quantized", output="logits"),
            ),
        }
    )
    result = Driver(ReferenceEngine(program, lambda tensor: tensors[tensor.name])).run([0, 1], [2])[0]
    expected = [0, 2, 2, 0, -2, 126, -127]
    assert result[0, :8].tolist() == [127, *expected]
    for row, numbers in zip(rows, result, strict=True):
        for first in (0, group):
            part, found = row[first : first + group], numbers[first : first + group]
            scale = np.abs(part).max() / np.float32(127)
            if scale == 0:
                assert not found.any()
                continue
            steps = found / scale
            assert np.abs(steps - np.rint(steps)).max() < 1e-4 and np.abs(steps).max() < 127.001
            assert np.abs(found - part).max() <= scale * 0.5001
            assert np.abs(found - part).max() > scale * 0.2


def test_fp8_is_the_arithmetic_of_float8_e4m3fn() -> None:
    """Every midpoint between two numbers, zeros, and what lies beside them, against ml_dtypes' rounding."""
    numbers = np.arange(128, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)[:127]
    middles = (numbers[1:] + numbers[:-1]) / 2
    beside = np.concatenate([np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(448))])
    row = np.concatenate([numbers, middles, beside, [np.float32(2.0**-11)]]).astype(np.float32)
    row = np.concatenate([row, -row])
    small = row * np.float32(2.0**-7)
    quantize = Quantize(input="x", output="y", group=len(row), to="fp8")
    found = rounded(torch.from_numpy(np.stack([row, small, np.zeros_like(row)])), quantize).numpy()
    expected = row.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1], expected * np.float32(2.0**-7))
    assert not found[2].any()


def test_fp8_layers_multiply_rounded_states_and_rounded_weights() -> None:
    """A layer's first product, written out in torch's float8_e4m3fn."""
    module = families.model("qwen2", tie_word_embeddings=False)
    state = module.state_dict()
    of = families.graph(module)
    program = families.program(of, weights=FP8)
    tensors = {tensor.name: tensor for tensor in program.tensors}
    load = families.loader(state)

    def quantized(tensor: Tensor) -> np.ndarray:
        values = load(tensor)
        return quantize(values, FP8).dequantize() if tensor.format == FP8 else values

    qkv, head = tensors["layers.0.attention.qkv"], tensors["head"]
    assert qkv.format == FP8 and head.format == BF16
    operations = program.layers[0][:3]
    norm, rounding, product = operations
    assert isinstance(norm, Norm) and isinstance(rounding, Quantize) and isinstance(product, Linear)
    assert (rounding.to, rounding.group) == ("fp8", 64)
    engine = ReferenceEngine(
        program.model_copy(
            update={
                "layers": ((*operations,),),
                "epilogue": (
                    Select(input=product.output, output="selected"),
                    Linear(weight="identity", input="selected", output="logits"),
                ),
                "tensors": (
                    *(tensors[name] for name in ("embed", norm.weight, product.weight, str(product.bias))),
                    Tensor(name="identity", rows=qkv.rows, cols=qkv.rows, format=BF16, sources=("none",)),
                ),
                "buffers": program.buffers | {"logits": qkv.rows},
            }
        ),
        lambda tensor: np.eye(qkv.rows, dtype=np.float32) if tensor.name == "identity" else quantized(tensor),
    )
    found = Driver(engine).run(TEXT[:5], [5])[0]
    states = state["model.embed_tokens.weight"][torch.from_numpy(np.array(TEXT[:5]))]
    states = torch.nn.functional.rms_norm(states, (64,), state["model.layers.0.input_layernorm.weight"], 1e-5)
    weight = torch.from_numpy(load(qkv))
    one = (states.abs().amax(1, keepdim=True) / 448, weight.abs().amax(1, keepdim=True) / 448)
    other = one[1].to(torch.bfloat16).float()
    sums = torch._scaled_mm(
        (states / one[0]).to(torch.float8_e4m3fn),
        (weight / other).clamp(-448, 448).to(torch.float8_e4m3fn).T,
        torch.ones(1),
        torch.ones(1),
        out_dtype=torch.float32,
    )
    expected = sums * one[0] * other.T + torch.from_numpy(load(tensors[str(product.bias)]))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-5)


def test_the_head_of_an_integer_model_reads_rounded_states() -> None:
    form = weight_format("int8", 32)
    module = families.model("llama-grouped")
    program = families.program(families.graph(module), weights=form)
    driver = Driver(ReferenceEngine(program, families.loader(module.state_dict())))
    result = driver.step(driver.open(53).feed(TEXT))
    assert result.hidden is not None and result.logits is not None
    groups = result.hidden.reshape(53, -1, 32)
    scale = np.abs(groups).max(-1, keepdims=True) / 127
    rounded = (np.rint(groups / scale) * scale).reshape(53, -1)
    head = module.state_dict()["lm_head.weight"].numpy()
    np.testing.assert_allclose(result.logits, rounded @ head.T, atol=1e-5)
    assert np.abs(result.logits - result.hidden @ head.T).max() > 1e-3
