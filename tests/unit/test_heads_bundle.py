"""Heads through plan and build: what is planned for, refused, compiled and listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import random_heads
import tiny
from test_build import pretend, run
from test_speculation_bundle import codes, predicted

from infer_compile.build import phases
from infer_compile.build.inputs import prepare
from infer_compile.bundle.verify import verify
from infer_compile.graph.build import build, build_heads
from infer_compile.probe.cpu import host_architecture
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.runtime.bundle import open_bundle
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.program import Linear, Program

BUNDLE = Path("bundles/tiny")
Heads = tuple[Any, dict[str, np.ndarray]]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The config of the model that a spec in the current folder names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(phases, "emit", pretend)
    tiny.write(tmp_path, host_architecture() or "x86-64")
    config: dict[str, Any] = json.loads(Path("model/config.json").read_text())
    return config


def spec(heads: Heads, speculation: str) -> Path:
    random_heads.save(Path("heads"), *heads)
    text = tiny.SPEC.replace("kv: tq3}", f"kv: tq3, speculation: {speculation}}}")
    path = Path("tiny.yaml")
    path.write_text(text.replace("{source: model}", "{source: model, draft: heads}"))
    return path


def eagle3(model: dict[str, Any], **settings: Any) -> Heads:
    return random_heads.eagle3(model, (0, 1, 2), **settings)


MAKERS: dict[str, Callable[[dict[str, Any]], Heads]] = {
    "medusa": random_heads.medusa,
    "vllm medusa": random_heads.vllm_medusa,
    "eagle3": eagle3,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_heads_are_built_beside_the_model(model: dict[str, Any], kind: str) -> None:
    method = kind.removeprefix("vllm ")
    built = run("build", spec(MAKERS[kind](model), f"{{method: {method}, tokens: 3}}"))
    assert built.exit_code == 0, built.output
    assert f"{method}:3" in built.stderr
    manifest = verify(BUNDLE)
    found = manifest.speculation
    assert found is not None and found.draft is not None
    assert (found.method, found.tokens, found.draft.source.source) == (method, 3, "heads")
    drafter = Program.from_json((BUNDLE / "draft/engine/program.json").read_text())
    assert drafter.digest == found.draft.program
    program = Program.from_json((BUNDLE / "engine/program.json").read_text())
    assert program.tells_tokens == (method == "eagle3")
    ids = BUNDLE / "draft/engine/tokens.bin"
    assert ids.exists() == (method == "eagle3")
    if ids.exists():
        known = np.fromfile(ids, "<i4")
        offsets = Checkpoint.open(Path("heads")).read("d2t")
        assert np.array_equal(known, np.arange(96) + offsets)
        assert drafter.features == program.buffers["features"] + model["hidden_size"]
    words = "by Medusa heads (heads)" if method == "medusa" else "by an EAGLE-3 layer (heads)"
    assert words in (BUNDLE / "README.md").read_text()
    assert open_bundle(BUNDLE).manifest == manifest
    assert predicted(BUNDLE).stale == ""


@pytest.mark.parametrize("kind", MAKERS)
def test_planned_bytes_of_heads_are_their_programs(model: dict[str, Any], kind: str) -> None:
    inputs = prepare(spec(MAKERS[kind](model), f"{{method: {kind.removeprefix('vllm ')}, tokens: 2}}"), None)
    assert inputs.draft is not None
    program = inputs.draft.program
    limits = program.limits
    rows = sum(
        width * (limits.max_outputs if name in program.selected else limits.max_batch_tokens)
        for name, width in program.buffers.items()
    )
    rows += inputs.program.buffers.get("features", 0) * limits.max_batch_tokens
    taken = program.weight_bytes + limits.exact_pages * program.cache.exact_page_bytes + 4 * rows
    assert inputs.plan.predicted.memory_gib.draft == pytest.approx(taken / 2**30, rel=1e-3)
    heads = [one for one in program.operations if isinstance(one, Linear) and one.output == "logits"]
    assert len(heads) == (1 if kind == "eagle3" else 2), "as many as are drafted with"


def test_both_layouts_of_medusa_are_the_same_heads(model: dict[str, Any]) -> None:
    one = build_heads(random_heads.medusa(model)[0] | {"medusa_fc_bias": False}, build(model))
    two = build_heads(random_heads.vllm_medusa(model)[0], build(model))
    assert one is not None and two is not None
    assert one.graph(3) == two.graph(3) and one.most == two.most == 3


def test_layers_are_counted_as_each_engine_counts_them(model: dict[str, Any]) -> None:
    """vLLM by what goes in, SGLang by what comes out; both take the same where nothing is told."""
    deep = model | {"num_hidden_layers": 32}
    config, _ = eagle3(model)
    layers = []
    for told in (
        {"eagle_aux_hidden_state_layer_ids": [3, 9, 20], "eagle_config": None},
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 8, 19]}},
        {"eagle_config": None},
    ):
        found = build_heads(config | told, build(deep))
        assert found is not None
        layers.append(found.layers)
    assert layers == [(3, 9, 20), (3, 9, 20), (2, 16, 29)]


def test_the_config_of_speculators_is_read(model: dict[str, Any]) -> None:
    config, _ = eagle3(model)
    outer = ("architectures", "draft_vocab_size", "eagle_config")
    nested = {key: config[key] for key in outer} | {
        "architectures": ["Eagle3Speculator"],
        "transformer_layer_config": {key: value for key, value in config.items() if key not in outer},
    }
    one, two = (build_heads(each, build(model)) for each in (config, nested))
    assert one is not None and two is not None and one.graph(1) == two.graph(1)


REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "medusa of another hidden size": ("vllm medusa", {"hidden_size": 64}, "IC138", "hidden_size is 64"),
    "medusa of another vocabulary": (
        "vllm medusa",
        {"vocab_size": 100, "truncated_vocab_size": 100},
        "IC138",
        "vocab_size is 100",
    ),
    "medusa of a part": ("vllm medusa", {"truncated_vocab_size": 100}, "IC113", "a part of it"),
    "medusa without its own": ("vllm medusa", {"original_lm_head": True}, "IC113", "of their own"),
    "an eagle of another hidden size": ("eagle3", {"hidden_size": 64}, "IC138", "hidden_size is 64"),
    "an eagle of another model": ("eagle3", {"target_hidden_size": 64}, "IC138", "target_hidden_size"),
    "an eagle of another vocabulary": ("eagle3", {"vocab_size": 100}, "IC138", "vocab_size is 100"),
    "an eagle of a deeper model": (
        "eagle3",
        {"eagle_aux_hidden_state_layer_ids": [1, 2, 30]},
        "IC138",
        "it has 2",
    ),
    "an eagle of a model too shallow": ("eagle3", {"eagle_config": None}, "IC138", "2, 1, -1"),
    "an eagle of two layers": ("eagle3", {"num_hidden_layers": 2}, "IC113", "one layer"),
    "a later eagle": ("eagle3", {"norm_before_fc": True}, "IC113", "not served"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_heads_that_do_not_fit_are_refused(model: dict[str, Any], case: str) -> None:
    kind, settings, code, said = REFUSED[case]
    config, tensors = MAKERS[kind](model)
    path = spec((config | settings, tensors), f"{{method: {kind.removeprefix('vllm ')}, tokens: 2}}")
    with pytest.raises(InferCompileError) as raised:
        prepare(path, None)
    assert codes(raised) == [code]
    problem = raised.value.problems[0]
    assert said in f"{problem.message} {problem.because}"


def test_tensors_that_do_not_fit_are_refused_before_anything_is_built(model: dict[str, Any]) -> None:
    config, tensors = eagle3(model)
    speculation = "{method: eagle3, tokens: 2}"

    def refused(changed: dict[str, np.ndarray]) -> list[str]:
        with pytest.raises(InferCompileError) as raised:
            prepare(spec((config, changed), speculation), None)
        return codes(raised)

    lacking = {name: values for name, values in tensors.items() if name != "midlayer.hidden_norm.weight"}
    assert refused(lacking) == ["IC128"]
    assert refused(tensors | {"fc.weight": tensors["fc.weight"][:, :128].copy()}) == ["IC129"]
    assert refused({name: values for name, values in tensors.items() if name != "d2t"}) == ["IC128"]
    assert refused(tensors | {"d2t": tensors["d2t"][:5].copy()}) == ["IC129"]
    assert refused(tensors | {"d2t": tensors["d2t"] + 400}) == ["IC138"]


@pytest.mark.parametrize(
    ("kind", "method"), [("medusa", "eagle3"), ("eagle3", "medusa"), ("eagle3", "draft"), ("medusa", "mtp")]
)
def test_a_method_that_the_draft_is_not_made_for_is_refused(
    model: dict[str, Any], kind: str, method: str
) -> None:
    path = spec(MAKERS[kind](model), f"{{method: {method}, tokens: 2}}")
    with pytest.raises(InferCompileError) as raised:
        prepare(path, None)
    assert codes(raised) == ["IC139"]
    assert raised.value.problems[0].because == f"heads is a checkpoint of {kind} heads"


def test_more_tokens_than_there_are_heads_are_refused(model: dict[str, Any]) -> None:
    with pytest.raises(InferCompileError) as raised:
        prepare(spec(random_heads.medusa(model), "{method: medusa, tokens: 4}"), None)
    assert codes(raised) == ["IC210"]
    assert "drafts at most 3 tokens" in raised.value.problems[0].because


def test_heads_draft_several_choices_where_that_is_pinned(model: dict[str, Any]) -> None:
    for method, heads in (("medusa", random_heads.medusa(model)), ("eagle3", eagle3(model))):
        inputs = prepare(spec(heads, f"{{method: {method}, tokens: 2, width: 3}}"), None)
        assert inputs.speculation is not None
        assert (inputs.speculation.tokens, inputs.speculation.width) == (2, 3)


def test_without_a_pin_heads_are_one_of_the_choices(model: dict[str, Any]) -> None:
    path = spec(eagle3(model), "none")
    assert prepare(path, None).draft is None
    path.write_text(path.read_text().replace(", speculation: none", ""))
    planned = prepare(path, None).plan
    assert planned.speculation.method in ("none", "eagle3")
    (reason,) = (reason for reason in planned.reasons if reason.key == "speculation")
    assert "eagle3" in f"{reason.value} {reason.why}"
