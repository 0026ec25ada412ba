"""Speculation through plan and build: what drafts is planned for, checked, compiled and listed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from random_model import config_of, random_tensors, save_model
from test_build import pretend, run

from infer_compile.build import phases
from infer_compile.build.inputs import prepare
from infer_compile.bundle.verify import verify
from infer_compile.evaluate.speed.prediction import Prediction, prediction
from infer_compile.planner.plan import Plan
from infer_compile.probe.cpu import host_architecture
from infer_compile.runtime.bundle import open_bundle
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.program import Program
from infer_compile.spec.load import load

BUNDLE = Path("bundles/tiny")


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a spec with a draft model of one layer; the current folder is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(phases, "emit", pretend)
    path = tiny.write(tmp_path, host_architecture() or "x86-64")
    settings = config_of(vocab_size=260, num_hidden_layers=1, max_position_embeddings=128)
    save_model(Path("small"), settings, random_tensors(settings))
    shutil.copy("model/tokenizer.json", "small")
    text = path.read_text()

    def write(speculation: str = "{method: draft, tokens: 3}", draft: str = "small") -> Path:
        pins = text.replace("kv: tq3}", f"kv: tq3, speculation: {speculation}}}")
        path.write_text(pins.replace("{source: model}", f"{{source: model, draft: {draft}}}"))
        return path

    return write


def predicted(bundle: Path) -> Prediction:
    plan = Plan.from_json((bundle / "plan.json").read_text())
    return prediction(bundle, plan, load(bundle / "spec.yaml").spec)


def codes(raised: pytest.ExceptionInfo[InferCompileError]) -> list[str]:
    return [problem.code for problem in raised.value.problems]


def test_the_model_that_drafts_is_built_beside_the_model(spec: Callable[..., Path]) -> None:
    built = run("build", spec())
    assert built.exit_code == 0, built.output
    assert "draft:3" in built.stderr and "[6/9] plan" in built.stderr and "draft: " in built.stderr
    manifest = verify(BUNDLE)
    found = manifest.speculation
    assert found is not None and found.draft is not None
    assert (found.method, found.tokens, found.draft.source.source) == ("draft", 3, "small")
    program = Program.from_json((BUNDLE / "draft/engine/program.json").read_text())
    assert program.digest == found.draft.program
    assert {name for name in manifest.files if name.startswith("draft/")} >= {
        "draft/engine/libengine.so",
        "draft/engine/weights.bin",
        "draft/model/model.safetensors",
        "draft/model/tokenizer.json",
    }
    assert (
        "Up to 3 tokens a step are drafted by a smaller model (small)" in (BUNDLE / "README.md").read_text()
    )
    assert open_bundle(BUNDLE).manifest == manifest
    assert predicted(BUNDLE).stale == "", "the bundle alone tells how long its drafts take"


def test_choices_for_each_token_are_built_in(spec: Callable[..., Path]) -> None:
    assert run("build", spec("{method: draft, tokens: 3, width: 2}")).exit_code == 0
    found = verify(BUNDLE).speculation
    assert found is not None
    assert (found.tokens, found.width, found.sibling_acceptance) == (3, 2, 0.25)
    assert predicted(BUNDLE).stale == ""
    assert "with up to 2 choices for each" in (BUNDLE / "README.md").read_text()
    plan = json.loads((BUNDLE / "plan.json").read_text())
    assert (plan["speculation"]["width"], plan["speculation"]["acceptance"]) == (2, found.acceptance)


def test_more_choices_than_a_step_verifies_are_refused(spec: Callable[..., Path]) -> None:
    refused = run("build", spec("{method: draft, tokens: 3, width: 4}"))
    assert refused.exit_code == 3
    assert "IC210" in refused.stderr
    assert "a step drafts at most 8 tokens of a sequence, all choices and windows counted" in refused.stderr


def test_lookup_needs_no_model(spec: Callable[..., Path]) -> None:
    assert run("build", spec("{method: ngram, tokens: 5}", draft="none")).exit_code == 0
    manifest = verify(BUNDLE)
    assert manifest.speculation is not None
    assert (manifest.speculation.method, manifest.speculation.draft) == ("ngram", None)
    assert not (BUNDLE / "draft").exists()
    assert "what\nfollowed the same words before" in (BUNDLE / "README.md").read_text()


def test_lookahead_needs_no_model_either(spec: Callable[..., Path]) -> None:
    assert run("build", spec("lookahead", draft="none")).exit_code == 0
    found = verify(BUNDLE).speculation
    assert found is not None
    assert (found.method, found.tokens, found.columns, found.draft) == ("lookahead", 2, 3, None)
    assert predicted(BUNDLE).stale == ""
    assert "from what the\nmodel guesses of the text further on" in (BUNDLE / "README.md").read_text()


def test_without_speculation_nothing_is_said_of_it(spec: Callable[..., Path]) -> None:
    assert run("build", spec("none")).exit_code == 0
    assert verify(BUNDLE).speculation is None
    assert "drafted" not in (BUNDLE / "README.md").read_text()


def test_planned_bytes_of_the_draft_are_its_programs(spec: Callable[..., Path]) -> None:
    inputs = prepare(spec(), None)
    assert inputs.draft is not None
    program = inputs.draft.program
    layout, limits = program.cache, program.limits
    names = list(program.buffers)
    outputs = names[names.index("selected") :]
    rows = sum(
        width * (limits.max_outputs if name in outputs else limits.max_batch_tokens)
        for name, width in program.buffers.items()
    )
    taken = program.weight_bytes + limits.exact_pages * layout.exact_page_bytes + 4 * rows
    assert inputs.plan.predicted.memory_gib.draft == pytest.approx(taken / 2**30, rel=1e-3)
    assert limits.max_context == 128, "as far as the draft's own positions go"
    assert (layout.level, limits.packed_pages) == ("bf16", 0)
    assert {tensor.format.name for tensor in program.tensors} == {"bf16"}


def test_other_weights_of_the_draft_are_another_bundle(spec: Callable[..., Path]) -> None:
    path = spec()
    assert run("build", path).exit_code == 0
    assert "up to date" in run("build", path).stderr
    weights = Path("small/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    refused = run("build", path)
    assert refused.exit_code == 1 and "another speculation" in refused.stderr
    assert run("build", path, "--force").exit_code == 0


def test_a_damaged_draft_is_not_opened(spec: Callable[..., Path]) -> None:
    assert run("build", spec()).exit_code == 0
    (BUNDLE / "draft/engine/weights.bin").write_text("{}")
    with pytest.raises(InferCompileError) as raised:
        open_bundle(BUNDLE)
    assert codes(raised) == ["IC421"]
    assert "draft" in raised.value.problems[0].where


def test_a_draft_of_other_tokens_is_refused(spec: Callable[..., Path]) -> None:
    """As many tokens, but two of them under each other's number."""
    path, file = spec(), Path("small/tokenizer.json")
    known = json.loads(file.read_text())
    words = known["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(known))
    with pytest.raises(InferCompileError) as raised:
        prepare(path, None)
    assert codes(raised) == ["IC132"]
    assert "'a' is" in raised.value.problems[0].because


def test_a_draft_that_is_not_there_is_told_with_its_line(spec: Callable[..., Path]) -> None:
    path = spec(draft="nowhere")
    with pytest.raises(InferCompileError) as raised:
        prepare(path, None)
    (problem,) = raised.value.problems
    assert (problem.code, problem.where) == ("IC100", f"{path}:3")


def test_a_draft_of_another_vocabulary_is_none(spec: Callable[..., Path]) -> None:
    settings = config_of(vocab_size=264, num_hidden_layers=1)
    save_model(Path("small"), settings, random_tensors(settings))
    with pytest.raises(InferCompileError) as raised:
        prepare(spec(), None)
    assert codes(raised) == ["IC210"]


def test_a_draft_that_our_engine_does_not_run_is_none(spec: Callable[..., Path]) -> None:
    path = spec()
    config = json.loads(Path("small/config.json").read_text())
    config |= {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2"}
    config |= {"sliding_window": 64, "query_pre_attn_scalar": 64, "hidden_activation": "gelu_pytorch_tanh"}
    Path("small/config.json").write_text(json.dumps(config))
    with pytest.raises(InferCompileError) as raised:
        prepare(path, None)
    assert codes(raised) == ["IC210"]
