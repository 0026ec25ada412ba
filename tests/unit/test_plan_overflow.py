"""What a plan says of sequences that outgrow their context, and of windows that free what they leave."""

from __future__ import annotations

from typing import Any

import pytest
from planning import cpu, gpu, load, spec, tiny

from infer_compile.build.templates import render
from infer_compile.lower.lower import lower
from infer_compile.planner.plan import Plan
from infer_compile.planner.search import plan
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.pages import Pages
from infer_compile.spec.spec import Spec

LONG = load(context_tokens=1024, input_tokens=512, output_tokens=128)


def asked(level: str = "tq3", workload: dict[str, Any] = LONG, **fields: Any) -> Spec:
    pin = {"kv": level} | fields.pop("pin", {})
    return spec(workload=workload, pin=pin, serving={"overflow": "evict"}, **fields)


@pytest.mark.parametrize(("level", "target"), [("bf16", cpu()), ("tq3", cpu()), ("tq3", gpu())])
def test_a_plan_that_evicts_says_so_and_builds(level: str, target: Any) -> None:
    made = plan(asked(level, pin={"engine": "native"}), tiny(), target)
    assert made.limits.overflow == "evict"
    (reason,) = [each for each in made.reasons if each.key == "limits.overflow"]
    assert reason.source == "the spec" and "first 32, 32 at a time" in reason.why
    # Whatever the level, the first page stays.
    assert made.kv.sink_pages == 1
    program = lower(tiny(), made)
    assert program.limits.overflow == "evict"
    assert Pages(program.cache, program.limits).context_pages == 1024 // 32
    assert Plan.from_json(made.to_json()) == made


def test_a_plan_that_ends_sequences_is_as_ever() -> None:
    made = plan(spec(workload=LONG, pin={"kv": "bf16"}), tiny(), cpu())
    assert (made.limits.overflow, made.kv.sink_pages) == ("stop", 0)
    assert not [each for each in made.reasons if each.key == "limits.overflow"]
    assert made.inputs.spec != plan(asked("bf16"), tiny(), cpu()).inputs.spec


@pytest.mark.parametrize(
    ("question", "target", "because"),
    [
        (asked(), gpu(), "is not planned to go on beyond the context on a gpu"),
        (
            asked(workload=load(context_tokens=223, input_tokens=100, output_tokens=20)),
            cpu(),
            "the first and the last tokens, which stay, take 224",
        ),
    ],
)
def test_what_cannot_evict_is_refused_by_name(question: Spec, target: Any, because: str) -> None:
    with pytest.raises(InferCompileError) as caught:
        plan(question, tiny(), target)
    assert caught.value.exit is Exit.INFEASIBLE
    (problem,) = caught.value.problems
    assert problem.code == "IC211"
    assert because in problem.because
    assert problem.fix == "overflow: stop, or a longer context"


def test_the_bundle_says_what_it_drops() -> None:
    values = {
        **dict.fromkeys(("name", "version", "python", "model", "target", "weights", "kv"), "x"),
        "packages": [],
        "speculation": {"tokens": 0, "draft": ""},
        "engine": {"kind": "cpu", "verified": True, "isa": "x"},
        "measured": None,
        "port": 1,
        "max_context": 1024,
        "max_sequences": 2,
        "first_tokens": 32,
    }
    ends, evicts = (render("bundle/README.md.j2", **values, overflow=name) for name in ("stop", "evict"))
    assert "goes on" not in ends
    assert "the first\n32 and the latest are kept" in evicts
    assert "infer_evicted_tokens_total" in evicts
    lines = evicts.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("A sequence that outgrows"))
    assert lines[:start] + lines[start + 5 :] == ends.splitlines()


@pytest.mark.parametrize("level", ["bf16", "tq3"])
def test_a_window_of_all_layers_shrinks_the_pools(level: str) -> None:
    windowed = tiny(architectures=["MistralForCausalLM"], sliding_window=100)
    whole = tiny(architectures=["MistralForCausalLM"], sliding_window=None)
    question = spec(workload=LONG, pin={"kv": level})
    small, large = plan(question, windowed, cpu()), plan(question, whole, cpu())
    budget, others = small.limits.max_batch_tokens, small.limits.max_sequences - 1
    program = lower(windowed, small)
    assert program.cache.window == 100
    if level == "bf16":
        # 100 tokens lie on five pages at worst, those of a chunk beside them.
        assert small.kv.exact_pages == 1 + -(-(100 + budget - 2) // 32) + others * 5
    else:
        assert small.kv.packed_pages == -(-(100 + budget - 1) // 32) + others * 4
    assert small.predicted.memory_gib.kv < large.predicted.memory_gib.kv
    assert Pages(program.cache, program.limits).capacity == 1024
    assert lower(whole, large).cache.window is None
