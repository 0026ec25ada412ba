"""Heads end to end on the quickstart's model and the real compiler: built, opened, asked; random ones guess
nothing and change nothing, fitted ones are kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from test_scheduler import run, submit
from test_speculation_loop import Counted

from infer_compile.build.inputs import prepare
from infer_compile.catalog.resources import folder
from infer_compile.cli.main import main
from infer_compile.codegen.engine import WEIGHTS
from infer_compile.codegen.repack import repack
from infer_compile.codegen.toolchain import Toolchain
from infer_compile.probe.cpu import host_architecture, processor
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.heads import joined
from infer_compile.quantize.write import write
from infer_compile.runtime.bundle import Bundle, Opened, open_bundle
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.measure import measure
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request
from infer_compile.runtime.speculation.eagle3 import Eagle3
from infer_compile.runtime.speculation.medusa import Medusa
from infer_compile.runtime.speculation.proposer import Proposer
from infer_compile.runtime.speculation.speculator import Speculator
from infer_compile.runtime.speculation.widths import full_widths
from infer_compile.runtime.step import SequenceStep
from infer_compile.runtime.tokenizer import Tokenizer
from infer_compile.runtime.warmup import warm_up

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import random_heads
import tiny

QUICKSTART = folder("specs") / "models" / "quickstart"
LAYERS = (1, 3, 6)
TOKENS = 3
TEXT_TOKENS = 4096
RIDGE = 0.01
"""Of a fit: the share of their mean diagonal that is added to the squares."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Specs and heads of both kinds beside the model, in the current folder; engines are compiled with less
    optimisation, for nothing is timed."""
    here = tmp_path_factory.mktemp("heads")
    shutil.copytree(QUICKSTART, here / "model", ignore=shutil.ignore_patterns("train", "draft"))
    config = json.loads((here / "model" / "config.json").read_text())
    random_heads.save(here / "medusa", *random_heads.medusa(config, TOKENS))
    random_heads.save(here / "eagle3", *random_heads.eagle3(config, LAYERS, None))
    target = tiny.TARGET.replace("ARCHITECTURE", host_architecture() or "x86-64")
    (here / "cpu.yaml").write_text(target.replace("isa: portable", f"isa: {processor().isa}"))
    compile_fully = Toolchain.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setattr(
            Toolchain,
            "compile",
            lambda self, *given, **named: compile_fully(self, *given, **named, extra=("-Og",)),
        )
        yield here


@pytest.fixture(scope="module", params=["medusa", "eagle3"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundles(place: Path) -> dict[str, Path]:
    found = {}
    for kind in ("medusa", "eagle3"):
        pins = f"kv: tq3, speculation: {{method: {kind}, tokens: {TOKENS}}}}}"
        text = tiny.SPEC.replace("kv: tq3}", pins).replace("name: tiny", f"name: {kind}-bundle")
        spec = place / f"{kind}.yaml"
        spec.write_text(text.replace("{source: model}", f"{{source: model, draft: {kind}}}"))
        built = CliRunner().invoke(main, ["build", str(spec), "-o", str(place / f"{kind}-bundle")])
        assert built.exit_code == 0, built.output
        found[kind] = place / f"{kind}-bundle"
    return found


def evaluation(bundle: Bundle) -> np.ndarray:
    text = (folder("specs") / "texts" / "evaluation.txt").read_text()
    return np.array(Tokenizer(bundle.model_dir).encode(text, special=False)[:TEXT_TOKENS], np.int32)


def prompts(bundle: Bundle) -> list[Request]:
    """Short and long, greedy and sampled, some in company of one another."""
    text = evaluation(bundle)
    lengths = (4, 150, 40, 90)
    return [
        Request(
            text[start : start + length],
            48,
            Controls(temperature=0.8 * (index % 2), seed=index),
        )
        for index, (start, length) in enumerate(zip((0, 10, 300, 500), lengths, strict=True))
    ]


def answers(opened: Opened, bundle: Bundle, speculator: Speculator | None) -> tuple[list[list[int]], Counted]:
    observer = Counted()
    loop = EngineLoop(opened.engine, Tokenizer(bundle.model_dir), 10, observer, speculator)
    if speculator is not None:
        speculator.pace.widths = lambda keys, total: [full_widths(total // len(keys), TOKENS, 1)] * len(keys)
    found = submit(loop, *prompts(bundle))
    run(loop)
    loop._check_idle()
    return [answer.sequence.tokens.tolist() for answer in found], observer


def test_random_heads_change_no_answer(bundles: dict[str, Path], kind: str) -> None:
    """The tokens of a bundle with heads, drafting in every step, are those of its engine without, and those
    of the engine that tells nothing of its layers; all warm and measured, as when a server starts."""
    bundle = open_bundle(bundles[kind])
    with bundle.opened(1) as opened:
        assert opened.speculator is not None and opened.speculator.reads
        for engine in opened.engines:
            warm_up(engine)
        cached = [engine for engine in opened.engines if engine.program.cache.layers]
        assert [measure(engine).level for engine in cached] == ["tq3", "bf16"][: len(cached)]
        drafted, observer = answers(opened, bundle, opened.speculator)
        plain, _ = answers(opened, bundle, None)
    assert drafted == plain
    rows = sum(outcome.draft.rows for outcome in observer.outcomes)
    print(f"{kind}: {observer.accepted} of {rows} tokens in {len(observer.outcomes)} drafts")
    assert rows > 100 > 50 * observer.accepted
    with open_bundle(bundles["medusa"]).opened(1) as opened:
        assert answers(opened, bundle, None)[0] == plain


def test_both_bundles_generate_the_same_text(bundles: dict[str, Path]) -> None:
    texts = set()
    for bundle in bundles.values():
        words = [sys.executable, "-B", "-m", "runtime", "generate", "What is a cache?", "--max-tokens", "40"]
        done = subprocess.run(words, cwd=bundle, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts.add(done.stdout)
    assert len(texts) == 1 and len(texts.pop()) > 40


def fitted(bundle: Bundle) -> np.ndarray:
    """A matrix that guesses the token after the next from what the model's head reads: least squares over
    the first tokens of the evaluation text."""
    tokens = evaluation(bundle)
    with bundle.opened(1) as opened:
        engine, cache, limits = opened.engine, opened.engine.program.cache, opened.engine.program.limits
        exact = np.arange(cache.pages(limits.max_context), dtype=np.int32)
        packed = np.array([page if cache.packs(page) else -1 for page in exact.tolist()], np.int32)
        count, states = limits.max_outputs, []
        for first in range(0, len(tokens) - count, count):
            start = first % limits.max_context
            piece = tokens[first : first + count]
            sealed = start // cache.page_tokens
            step = SequenceStep(piece, start, count, sealed, exact, packed, outputs=count)
            states.append(engine.step([step], hidden=True).hidden)
    known = np.concatenate(states).astype(np.float64)[: len(tokens) - 2]
    squares = known.T @ known
    squares += RIDGE * np.trace(squares) / len(squares) * np.eye(len(squares))
    sums = np.zeros((engine.program.vocabulary, known.shape[1]))
    np.add.at(sums, tokens[2 : 2 + len(known)], known)
    return np.ascontiguousarray(np.linalg.solve(squares, sums.T).T)


def rewritten(place: Path, bundles: dict[str, Path], kind: str, matrix: np.ndarray, out: Path) -> CpuEngine:
    """The engine of the bundle's heads, with other weights: a first head that is ``matrix`` and no more."""
    inputs = prepare(place / f"{kind}.yaml", None)
    assert inputs.draft is not None and inputs.draft.heads is not None
    heads, model = Checkpoint.open(place / kind), Checkpoint.open(place / "model")
    tensors = {name: np.array(heads.read(name)) for name in heads.names}
    if kind == "medusa":
        zeros = [name for name in tensors if name.startswith("0.0.linear")]
        tensors["0.1.weight"] = matrix.astype(ml_dtypes.bfloat16)
    else:
        # Neither attention nor MLP: what the model's final norm reads goes to the drafter's as it is.
        zeros = [name for name in tensors if name.endswith(("o_proj.weight", "down_proj.weight"))]
        width = len(tensors["norm.weight"])
        tensors["fc.weight"][:] = 0
        tensors["fc.weight"][:, -width:] = np.eye(width)
        tensors["norm.weight"] = np.array(model.read("model.norm.weight"))
        tensors["lm_head.weight"] = matrix.astype(ml_dtypes.bfloat16)
    for name in zeros:
        tensors[name][:] = 0
    config = json.loads((place / kind / "config.json").read_text())
    random_heads.save(out / "heads", config, tensors)
    program = inputs.draft.program
    checkpoint = joined(Checkpoint.open(out / "heads"), model, program, inputs.draft.heads.names)
    write(checkpoint, program, out / "written", config=config)
    shutil.copytree(bundles[kind] / "draft" / "engine", out / "engine")
    repack(program, out / "written", out / "engine" / WEIGHTS)
    return CpuEngine(out / "engine", 1)


def test_fitted_heads_are_kept(bundles: dict[str, Path], place: Path, kind: str, tmp_path: Path) -> None:
    """The first token of a draft is right more often than chance lets it be: features are of the right
    place."""
    matrix = fitted(open_bundle(bundles["medusa"]))
    bundle = open_bundle(bundles[kind])
    with bundle.opened(1) as opened:
        plain, _ = answers(opened, bundle, None)
        engine = rewritten(place, bundles, kind, matrix, tmp_path)
        ids = np.arange(engine.program.vocabulary, dtype=np.int32)
        proposer: Proposer = Medusa(engine) if kind == "medusa" else Eagle3(engine, ids)
        speculator = Speculator(proposer, TOKENS, 0.5, opened.engine.program.limits)
        found, observer = answers(opened, bundle, speculator)
        engine.close()
    assert found == plain
    first = [outcome.verdict.accepted > 0 for outcome in observer.outcomes]
    print(f"{kind}: {sum(first)} of {len(first)} first tokens")
    assert np.mean(first) > 0.1
