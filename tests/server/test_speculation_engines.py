"""Speculation on compiled engines, from a spec: a tiny model that drafts for its own quantized self."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
from test_scheduler import Answer, driven, run, submit

from infer_compile.codegen.toolchain import Toolchain
from infer_compile.probe.cpu import host_architecture
from infer_compile.runtime.bundle import Opened, open_bundle
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.measure import measure
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Delta, Request
from infer_compile.runtime.speculation.lookahead import Lookahead
from infer_compile.runtime.speculation.ngram import Ngram
from infer_compile.runtime.speculation.proposer import Proposer
from infer_compile.runtime.speculation.speculator import Outcome, Speculator
from infer_compile.runtime.speculation.widths import full_widths
from infer_compile.runtime.step import Engine, SequenceStep, StepResult
from infer_compile.runtime.tokenizer import Tokenizer
from infer_compile.runtime.warmup import warm_up

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import tiny
from test_build import run as command

TOKENS, WIDTH = 3, 2


class Kept:
    """An observer that counts."""

    drafts = siblings = preemptions = 0

    def drafted(self, outcome: Outcome) -> None:
        self.drafts += outcome.verdict.accepted
        self.siblings += outcome.verdict.choice > 0

    def preempted(self, sequences: int) -> None:
        self.preemptions += sequences

    def __getattr__(self, name: str) -> object:
        return lambda *told: None


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Opened, Tokenizer]]:
    folder = tmp_path_factory.mktemp("speculation")
    spec = tiny.write(folder, host_architecture() or "x86-64", num_hidden_layers=1)
    text = spec.read_text().replace("{source: model}", "{source: model, draft: model}")
    pin = f"kv: tq3, speculation: {{method: draft, tokens: {TOKENS}, width: {WIDTH}}}"
    spec.write_text(text.replace("kv: tq3", pin).replace("concurrency: 2", "concurrency: 3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toolchain, "compile", partialmethod(Toolchain.compile, extra=("-O0",)))
        built = command("build", spec, "-o", folder / "bundle")
    assert built.exit_code == 0, built.output
    bundle = open_bundle(folder / "bundle")
    with bundle.opened(1) as engines:
        assert len(engines.engines) == 2
        for engine in engines.engines:
            warm_up(engine)
            measure(engine)
        yield engines, Tokenizer(bundle.model_dir)


class Fewer:
    """An engine of fewer pages, on which sequences take them from one another."""

    def __init__(self, engine: Engine, exact: int, packed: int) -> None:
        limits = engine.program.limits.model_copy(update={"exact_pages": exact, "packed_pages": packed})
        self.program = engine.program.model_copy(update={"limits": limits})
        self._engine = engine

    def step(self, batch: Sequence[SequenceStep], **asked: bool) -> StepResult:
        return self._engine.step(batch, **asked)


def requests(temperature: float) -> list[Request]:
    """Long enough to be compressed while they are answered; the second repeats itself."""
    random = np.random.default_rng(5)
    texts = [random.integers(4, 260, 130), np.tile(random.integers(4, 260, 7), 19)]
    controls = [Controls(temperature=temperature, seed=seed) for seed in range(2)]
    return [
        Request(text.astype(np.int32), 50, control, logprobs=2)
        for text, control in zip(texts, controls, strict=True)
    ]


def loop_of(
    engine: Engine, tokenizer: Tokenizer, proposer: Proposer | None, kept: Kept | None = None
) -> EngineLoop:
    """As much is drafted as may be, whether it pays or not."""
    speculator = None
    if proposer is not None:
        window = proposer.window if isinstance(proposer, Lookahead) else 0
        speculator = Speculator(proposer, TOKENS, 0.5, engine.program.limits, WIDTH, 0.5, window)
        speculator.pace.widths = lambda keys, total: (
            [full_widths(min(TOKENS * WIDTH, total // len(keys) - window), TOKENS, WIDTH)] * len(keys)
        )
    return EngineLoop(engine, tokenizer, 8, kept, speculator)


def told(answers: Sequence[Answer]) -> list[object]:
    """Tokens with the logarithms of their chances, and those next to them."""
    return [
        (answer.sequence.tokens.tolist(), [p.logprobs for p in answer.pieces if isinstance(p, Delta)])
        for answer in answers
    ]


@pytest.mark.parametrize("temperature", [0.0, 0.05])
@pytest.mark.parametrize("kind", ["draft", "ngram", "lookahead"])
def test_answers_have_the_same_bits(opened: tuple[Opened, Tokenizer], kind: str, temperature: float) -> None:
    """Not the tokens alone: every logit behind which a page was compressed since, and those of siblings."""
    engines, tokenizer = opened
    assert engines.speculator is not None
    kept = Kept()
    drafter = engines.speculator.proposer
    proposer = {"draft": drafter, "ngram": Ngram(), "lookahead": Lookahead(4, 3)}[kind]
    found = []
    for drafting in (None, proposer):
        loop = loop_of(engines.engine, tokenizer, drafting, kept)
        answers = submit(loop, *requests(temperature))
        run(loop)
        loop._check_idle()
        found.append(
            [(tokens, [each for piece in pieces for each in piece]) for tokens, pieces in told(answers)]
        )
    assert found[0] == found[1]
    if kind == "draft":
        assert kept.drafts > 10
        assert kept.siblings > 3


def test_answers_survive_company_cancellations_and_preemptions(opened: tuple[Opened, Tokenizer]) -> None:
    engines, tokenizer = opened
    assert engines.speculator is not None
    random, kept = np.random.default_rng(11), Kept()
    layout = engines.engine.program.cache
    fewer = Fewer(engines.engine, layout.exact_pages(150) + 2, layout.packed_pages(150) + 1)
    arrivals = [
        (int(random.integers(0, 9)), int(random.integers(30, 70)), int(random.integers(40, 80)), patience)
        for patience in (None, None, 12, None, 25)
    ]
    wanted = [
        Request(
            random.integers(4, 260, length).astype(np.int32), count, Controls(temperature=0.05, seed=seed)
        )
        for seed, (_, length, count, _) in enumerate(arrivals)
    ]
    loop = loop_of(fewer, tokenizer, engines.speculator.proposer, kept)
    answers = driven(loop, arrivals, wanted)
    loop._check_idle()
    assert kept.preemptions and kept.drafts and kept.siblings
    for index, answer in answers.items():
        (expected,) = submit(alone := loop_of(engines.engine, tokenizer, None), wanted[index])
        run(alone)
        found, whole = answer.sequence.tokens.tolist(), expected.sequence.tokens.tolist()
        assert found == (whole if answer.sequence.ending != "cancelled" else whole[: len(found)])


def test_the_bundles_own_speculation_answers_the_same(opened: tuple[Opened, Tokenizer]) -> None:
    engines, tokenizer = opened
    found = []
    for speculator in (None, engines.speculator):
        loop = EngineLoop(engines.engine, tokenizer, 8, speculator=speculator)
        answers = submit(loop, *requests(0.0))
        run(loop)
        found.append([answer.sequence.tokens.tolist() for answer in answers])
    assert found[0] == found[1]
