"""Bundles of models with latent attention, DeepSeek-V2 and V3: what was planned is what is built and runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import gpu_bundle
import numpy as np
import pytest
from test_build import run

torch = pytest.importorskip("torch", reason="pip install torch")
pytest.importorskip("transformers", reason="pip install transformers")

import deepseek  # noqa: E402
import transformers  # noqa: E402

from infer_compile.bundle.verify import verify  # noqa: E402
from infer_compile.planner.plan import Plan  # noqa: E402
from infer_compile.quantize.checkpoint import Checkpoint  # noqa: E402
from infer_compile.quantize.read import reference_loader  # noqa: E402
from infer_compile.runtime.engines.reference import ReferenceEngine  # noqa: E402
from infer_compile.runtime.formats.launches import StepTable  # noqa: E402
from infer_compile.runtime.formats.manifest import Engine  # noqa: E402
from infer_compile.runtime.formats.program import Program  # noqa: E402
from infer_compile.runtime.measure import measure  # noqa: E402
from infer_compile.runtime.step import SequenceStep  # noqa: E402

LEVELS = {"V2": "bf16", "V3": "fp8"}
TOKEN_BYTES = {"V2": 2 * (2 * 64 + 2 * 16), "V3": 2 * (64 + 2 * 16)}
"""Of two layers: a latent vector of 64 numbers, and a rotary key of 16 in bf16."""


@dataclass(frozen=True)
class Built:
    family: str
    model: transformers.PreTrainedModel
    folder: Path

    @property
    def plan(self) -> Plan:
        return Plan.from_json((self.folder / "plan.json").read_text())

    @property
    def program(self) -> Program:
        return Program.from_json((self.folder / "engine" / "program.json").read_text())


@pytest.fixture(scope="module", params=LEVELS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder, made = tmp_path_factory.mktemp("latent"), deepseek.model(request.param)
    spec = deepseek.write(folder, made, "h200-sxm", f"weights: bf16, kv: {LEVELS[request.param]}", "256")
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        gpu_bundle.built(spec, folder / "out")
    return Built(request.param, made, folder / "out")


def engine(built: Built) -> ReferenceEngine:
    return ReferenceEngine(built.program, reference_loader(built.folder / "model"), exact_dtype="f32")


def fed(tokens: list[int], start: int, outputs: int) -> SequenceStep:
    """``tokens`` of one sequence from ``start`` on, with so many rows of logits; its pages are the first."""
    pages = np.arange(2, dtype=np.int32)
    return SequenceStep(
        tokens=np.array(tokens, np.int32),
        start=start,
        accepted=len(tokens),
        sealed=start // 32,
        outputs=outputs,
        exact=pages,
        packed=np.array([-1, 0], np.int32),
    )


def test_the_bundle_is_whole(built: Built) -> None:
    assert verify(built.folder).engine == Engine(kind="cuda", isa="sm_90", verified=False)
    table = StepTable.from_json((built.folder / "engine" / "step.json").read_text())
    kernels = {launch.kernel for launch in table.launches()}
    assert kernels >= {"latent.latent", "fold.fold", "route.choose", "experts.multiply", "experts.combine"}
    assert ("latent_seal.latent_seal" in kernels) == (LEVELS[built.family] == "fp8")


def test_what_was_planned_is_in_the_program_in_the_files_and_in_the_cache(built: Built) -> None:
    plan, program = built.plan, built.program
    assert plan.kv.level == LEVELS[built.family]
    assert plan.kv.bytes_per_token == program.cache.token_bytes == TOKEN_BYTES[built.family]
    loaded = ReferenceEngine(program, reference_loader(built.folder / "model"))
    assert measure(loaded).token_bytes == plan.kv.bytes_per_token
    written = Checkpoint.open(built.folder / "model")
    files = sum(written.size(name) for name in written.names)
    assert plan.weights.bytes == program.weight_bytes == files
    singles = {name for name in written.names if written.dtype(name) == "F32"}
    biases = {"model.layers.1.mlp.gate.e_score_correction_bias"}
    assert singles == (biases if built.family == "V3" else set())


def test_it_is_evaluated_against_another_bundle_alone(built: Built) -> None:
    done = run("eval", built.folder)
    assert done.exit_code == 1 and re.search("IC359(.|\n)*latent attention(.|\n)*--reference", done.stderr)


def test_it_says_what_transformers_says(built: Built) -> None:
    tokens = np.random.default_rng(4).integers(4, 260, 44).tolist()
    running, chunk = engine(built), 11
    parts = [
        running.step([fed(tokens[first : first + chunk], first, chunk)], logits=True).logits
        for first in range(0, len(tokens), chunk)
    ]
    with torch.no_grad():
        expected = built.model(torch.tensor([tokens])).logits[0].numpy()
    np.testing.assert_allclose(np.concatenate(parts), expected, atol=1e-4, rtol=0)


def test_its_greedy_tokens_are_those_of_transformers(built: Built) -> None:
    prompt, count = np.random.default_rng(5).integers(4, 260, 20).tolist(), 12
    said = built.model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    running, tokens = engine(built), list(prompt)
    start = 0
    for _ in range(count):
        (drawn,) = running.step([fed(tokens[start:], start, 1)]).tokens
        start = len(tokens)
        tokens.append(int(drawn[-1]))
    assert tokens == said


@pytest.mark.parametrize("weights", ["int4-rtn", "fp8"])
def test_other_weights_leave_what_unfolds_latent_vectors_as_it_is(weights: str, tmp_path: Path) -> None:
    spec = deepseek.write(tmp_path, deepseek.model("V2"), "h200-sxm", f"weights: {weights}, kv: fp8")
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        gpu_bundle.built(spec, tmp_path / "out")
    made = Program.from_json((tmp_path / "out" / "engine" / "program.json").read_text())
    plan = Plan.from_json((tmp_path / "out" / "plan.json").read_text())
    formats = {tensor.name: tensor.format.name for tensor in made.tensors}
    found = [formats[f"layers.1.{part}"] for part in ("attention.unfold", "mlp.experts.into")]
    assert found == ["bf16", weights]
    assert plan.weights.bytes == made.weight_bytes


def test_processors_and_measured_losses_are_refused(tmp_path: Path) -> None:
    spec = deepseek.write(tmp_path, deepseek.model("V2"), "./cpu.yaml", "weights: bf16, kv: bf16")
    done = run("plan", spec)
    assert done.exit_code == 3 and "IC208" in done.stderr and "NVIDIA GPUs" in done.stderr
    text = spec.read_text().replace("./cpu.yaml", "h200-sxm")
    (tmp_path / "text.txt").write_text("a text of letters " * 40)
    spec.write_text(text + "quality: {max_loss_percent: 20, evaluation: text.txt}\n")
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        done = run("build", spec, "-o", tmp_path / "out")
    assert "IC359" in done.stderr and "latent attention" in done.stderr
    assert not (tmp_path / "out.partial").exists()


REFUSED = {
    "kv: tq3": "IC203(.|\n)*no tq3 for latent attention(.|\n)*kv: fp8",
    "speculation: {method: ngram}": "IC210",
}


SERVING = {"overflow: evict": "IC211(.|\n)*rotary keys", "shadow: {fraction: 0.1}": "IC212(.|\n)*latent"}


@pytest.mark.parametrize("serving", SERVING)
def test_what_needs_other_kernels_is_refused_by_name(serving: str, tmp_path: Path) -> None:
    spec = deepseek.write(tmp_path, deepseek.model("V3"), "h200-sxm", "kv: fp8", "512")
    spec.write_text(spec.read_text() + f"serving: {{{serving}}}\n")
    done = run("plan", spec)
    assert done.exit_code == 3 and re.search(SERVING[serving], done.stderr), done.stderr


@pytest.mark.parametrize("pin", REFUSED)
def test_what_is_not_served_is_refused_by_name(pin: str, tmp_path: Path) -> None:
    done = run("plan", deepseek.write(tmp_path, deepseek.model("V3"), "h200-sxm", pin))
    assert done.exit_code == 3 and re.search(REFUSED[pin], done.stderr), done.stderr
