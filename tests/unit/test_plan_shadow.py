"""What a plan sets aside to check answers against an exact cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning import cpu, gpu, load, spec, tiny

from infer_compile.lower.lower import lower
from infer_compile.planner.plan import Plan
from infer_compile.planner.search import plan
from infer_compile.planner.units import GIB
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.pages import Pages
from infer_compile.spec.load import load as read_spec
from infer_compile.spec.spec import Spec

LOAD = load(context_tokens=1024, input_tokens=512, output_tokens=128)


def asked(level: str = "tq3", **shadow: Any) -> Spec:
    serving = {"shadow": shadow} if shadow else {}
    return spec(workload=LOAD, pin={"kv": level}, serving=serving)


@pytest.mark.parametrize("level", ["bf16", "tq3"])
@pytest.mark.parametrize(("tokens", "checked"), [(None, 640), (100, 100), (5000, 1024)])
def test_its_pages_are_counted_and_are_there(level: str, tokens: int | None, checked: int) -> None:
    graph = tiny()
    question = asked(level, fraction=0.01, **({"tokens": tokens} if tokens else {}))
    plain, made = plan(asked(level), graph, cpu()), plan(question, graph, cpu())
    assert (plain.limits.checked_tokens, made.limits.checked_tokens) == (0, checked)
    assert made.limits.max_sequences == plain.limits.max_sequences
    assert made.kv.exact_pages == plain.kv.exact_pages, "sequences have what they had"
    before, program = lower(graph, plain), lower(graph, made)
    cache = program.cache
    assert before.pool_pages == (before.limits.exact_pages, before.limits.packed_pages)
    exact, packed = (now - then for now, then in zip(program.pool_pages, before.pool_pages, strict=True))
    # An answer in an exact cache, and once more as it is served.
    assert exact >= 2 * cache.pages(checked) if level == "bf16" else exact > cache.pages(checked)
    assert packed == cache.packed_pages(checked)
    taken = exact * cache.exact_page_bytes + packed * cache.packed_page_bytes
    more = (made.predicted.memory_gib.kv - plain.predicted.memory_gib.kv) * GIB
    assert more == pytest.approx(taken, rel=0.02)
    assert Pages(cache, program.limits).exact.size == program.limits.exact_pages
    (reason,) = [each for each in made.reasons if each.key == "limits.checked_tokens"]
    assert "asked for" in reason.why
    assert Plan.from_json(made.to_json()) == made


def test_how_many_are_checked_does_not_bear_on_the_plan() -> None:
    one, other, longer = (
        plan(asked(fraction=fraction, tokens=tokens), tiny(), cpu())
        for fraction, tokens in ((0.01, 256), (1.0, 256), (0.01, 512))
    )
    assert one.digest == other.digest != longer.digest


def test_a_fraction_is_one(tmp_path: Path) -> None:
    path = tmp_path / "chat.yaml"
    path.write_text("model: {source: m}\ntarget: l4\nserving: {shadow: {fraction: 2.0, tokens: 0}}\n")
    with pytest.raises(InferCompileError) as caught:
        read_spec(path)
    assert [problem.message for problem in caught.value.problems] == [
        '"serving.shadow.fraction" must be at most 1, not 2.0',
        '"serving.shadow.tokens" must be at least 1, not 0',
    ]


def test_other_engines_do_not_check() -> None:
    with pytest.raises(InferCompileError) as caught:
        plan(spec(workload=LOAD, serving={"shadow": {"fraction": 0.1}}), tiny(), gpu())
    assert caught.value.exit is Exit.INFEASIBLE
    (problem,) = caught.value.problems
    assert (problem.code, problem.fix) == ("IC212", "remove serving.shadow")
    assert "does not check answers" in problem.because
