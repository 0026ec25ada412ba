"""Rounded activations in the reference engine."""

from __future__ import annotations

import families
import numpy as np
from driver import TEXT, Driver

from infer_compile.runtime.engines.reference import ReferenceEngine
from infer_compile.runtime.formats.program import Embed, Linear, Quantize, Select, Tensor
from infer_compile.runtime.formats.weights import BF16, weight_format


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
    for row, rounded in zip(rows, result, strict=True):
        for first in (0, group):
            part, found = row[first : first + group], rounded[first : first + group]
            scale = np.abs(part).max() / np.float32(127)
            if scale == 0:
                assert not found.any()
                continue
            steps = found / scale
            assert np.abs(steps - np.rint(steps)).max() < 1e-4 and np.abs(steps).max() < 127.001
            assert np.abs(found - part).max() <= scale * 0.5001
            assert np.abs(found - part).max() > scale * 0.2


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
