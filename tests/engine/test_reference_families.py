"""The reference engine against transformers, family by family, in float32."""

from __future__ import annotations

import families
import numpy as np
import pytest
import torch
from driver import Driver

from infer_compile.runtime.engines.reference import ReferenceEngine

TOKENS, PROMPT = 40, 29


@pytest.mark.parametrize("name", families.CONFIGS)
def test_logits_are_those_of_transformers(name: str) -> None:
    module = families.model(name)
    tokens = np.random.default_rng(1).integers(0, 97, TOKENS)
    program = families.program(families.graph(module))
    engine = ReferenceEngine(program, families.loader(families.state(module)), exact_dtype="f32")
    driver = Driver(engine)

    with torch.no_grad():
        whole = module(torch.tensor(tokens[None]), output_hidden_states=True)
        prompt = module(torch.tensor(tokens[None, :PROMPT]), use_cache=True)
    sequence = driver.open(TOKENS)
    result = driver.step(sequence.feed(tokens[:PROMPT]))
    close(result.logits, prompt.logits[0])
    close(result.hidden, whole.hidden_states[-1][0, :PROMPT])

    past = prompt.past_key_values
    for place in range(PROMPT, TOKENS):
        with torch.no_grad():
            expected = module(
                torch.tensor(tokens[None, place : place + 1]), past_key_values=past, use_cache=True
            )
        result = driver.step(sequence.feed(tokens[place : place + 1]))
        close(result.logits, expected.logits[0])
        close(result.logits, whole.logits[0, place : place + 1])
        past = expected.past_key_values


def close(ours: np.ndarray | None, theirs: torch.Tensor) -> None:
    assert ours is not None
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", families.CONFIGS)
def test_every_source_is_in_the_checkpoint_and_nothing_else(name: str) -> None:
    module = families.model(name)
    graph = families.graph(module)
    state = {key: tuple(value.shape) for key, value in families.state(module).items()}
    if graph.tied:
        del state["lm_head.weight"]
    assert {source.name: source.shape for source in graph.sources} == state
    assert graph.parameters == sum(value.numel() for value in module.parameters())


def test_the_families_differ_where_they_should() -> None:
    """Each speciality changes logits, so that the comparisons above would see it missing."""
    tokens = torch.tensor(np.random.default_rng(1).integers(0, 97, TOKENS)[None])
    plain = families.model("llama-grouped")(tokens).logits
    for name in ("llama-llama3-rope", "llama-linear-rope", "llama-yarn-rope", "mistral-window"):
        assert (families.model(name)(tokens).logits - plain).abs().max() > 1e-2, name
