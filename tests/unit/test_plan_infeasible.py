"""What does not fit is refused with numbers, and every change that is named mends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from planning import card, cpu, gpu, load, spec, tiny

from infer_compile.catalog.target import Target
from infer_compile.planner.search import plan
from infer_compile.runtime.errors import InferCompileError, Problem
from infer_compile.spec.spec import Spec

GOLDEN = Path(__file__).with_name("golden")
LLAMA = card("llama-3.1-8b")
LARGE = {"context_tokens": 16384, "input_tokens": 12000, "output_tokens": 400, "concurrency": 48}
OURS = {"engine": "native"}


def problem(asked: Spec, target: Target, *neighbours: Target) -> Problem:
    with pytest.raises(InferCompileError) as caught:
        plan(asked, LLAMA, target, where=lambda key: f"chat.yaml:{len(key)}", neighbours=lambda: neighbours)
    assert caught.value.exit == 3
    return caught.value.problems[0]


def feasible(device: Target | None = None, **fields: Any) -> bool:
    try:
        plan(spec(**fields), LLAMA, device or gpu())
    except InferCompileError:
        return False
    return True


def test_the_whole_message() -> None:
    larger, other = (
        gpu(id="larger", memory_gb=64.0),
        gpu(id="another-makers", memory_gb=40.0, vendor="somebody"),
    )
    asked = spec(target="round-gpu", workload=LARGE, pin=OURS)
    found = problem(asked, gpu(), gpu(id="same", memory_gb=24.0), other, larger)
    assert f"{found}\n" == (GOLDEN / "infeasible.txt").read_text()


def test_each_of_its_changes_is_enough_and_no_more_than_that() -> None:
    assert not feasible(workload=LARGE, pin=OURS)
    larger = gpu(id="larger", memory_gb=64.0)
    said = problem(spec(target="round-gpu", workload=LARGE, pin=OURS), gpu(), larger).fix

    def after(words: str) -> float:
        return float(said.split(words)[1].split()[0].rstrip(",)"))

    most = int(after("concurrency: "))
    assert feasible(workload=LARGE | {"concurrency": most}, pin=OURS)
    assert not feasible(workload=LARGE | {"concurrency": most + 1}, pin=OURS)
    shorter = {f"{key}_tokens": int(after(f"{key}_tokens: ")) for key in ("context", "input", "output")}
    assert feasible(workload=LARGE | shorter, pin=OURS)
    assert not feasible(workload=LARGE | shorter | {"context_tokens": 16384}, pin=OURS)
    loss = after("max_loss_percent no tighter than the ")
    assert feasible(workload=LARGE, quality={"max_loss_percent": loss}, pin=OURS)
    assert not feasible(workload=LARGE, quality={"max_loss_percent": loss - 0.05}, pin=OURS)
    more = int(after("count: "))
    assert feasible(workload=LARGE, target={"device": "round-gpu", "count": more}, pin=OURS)
    assert not feasible(workload=LARGE, target={"device": "round-gpu", "count": more // 2}, pin=OURS)
    assert feasible(larger, workload=LARGE, pin=OURS)


def test_a_pin_in_the_way_is_named() -> None:
    fewer = LARGE | {"concurrency": 16}
    found = problem(spec(workload=fewer, pin=OURS | {"weights": "bf16"}), gpu())
    assert "remove pin.weights (native: int8" in found.fix
    both = OURS | {"weights": "bf16", "kv": "bf16"}
    # Beside weights in bf16 a cache of 2 bits would fit, and would lose too much.
    found = problem(spec(workload=fewer, pin=both, quality={"max_loss_percent": 3.5}), gpu())
    assert "remove pin.kv (" not in found.fix
    assert "remove every pin (" in found.fix


def test_a_speed_limit_is_named_with_what_can_be_had() -> None:
    found = problem(spec(slo={"itl_ms": 1}), gpu(memory_gb=80.0))
    assert found.where == f"chat.yaml:{len('slo.itl_ms')}"
    assert "itl_ms no tighter than the " in found.fix
    limit = float(found.fix.split("itl_ms no tighter than the ")[1].split(" ms")[0])
    assert feasible(gpu(memory_gb=80.0), slo={"itl_ms": limit * 1.01})


def test_a_model_too_large_for_anything_says_so() -> None:
    found = problem(spec(workload=load(context_tokens=1024, concurrency=1)), cpu(memory_gb=1.0))
    assert found.fix == "a smaller model, or more and larger devices"


def test_a_rate_that_nothing_carries() -> None:
    workload = {"context_tokens": 4096, "input_tokens": 1000, "output_tokens": 200, "requests_per_second": 50}
    found = problem(spec(workload=workload), gpu(memory_gb=80.0))
    assert "requests_per_second" in found.because
    carried = float(found.fix.split("requests_per_second: ")[1].split(" ")[0])
    assert 0 < carried < 50
    assert feasible(gpu(memory_gb=80.0), workload=workload | {"requests_per_second": carried * 0.999})


def test_a_tiny_model_fits_a_tiny_machine() -> None:
    assert plan(spec(), tiny(), cpu(memory_gb=0.5)).predicted.memory_gib.total < 0.45
