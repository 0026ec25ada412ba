"""The server's own OpenAPI, fuzzed by schemathesis: bodies that it describes, and such as it does not."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from infer_compile.runtime.server.protocol import BODIES
from infer_compile.runtime.server.service import Limits

schemathesis = pytest.importorskip("schemathesis", reason="NOT TESTED: there is no schemathesis")

EXAMPLES = 60
"""Of each route that takes a body, in either mode; a fifth of them of the others."""


@pytest.fixture(scope="module")
def running(model_dir: Path) -> Iterator[Running]:
    engine = FakeEngine(tiny_program(context=64, sequences=8))
    with serving(engine, model_dir, queue=64, limits=Limits(choices=4)) as server:
        yield server


def operations(running: Running) -> list[Any]:
    schema = schemathesis.openapi.from_url(f"{running.url}/openapi.json")
    return [each.ok() for each in schema.get_all_operations()]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_nothing_is_the_servers_fault_and_every_refusal_names_its_field(running: Running, mode: Any) -> None:
    seen: Counter[tuple[str, int]] = Counter()
    for operation in operations(running):
        fuzz(running, operation, mode, seen)
    running.wait_idle()
    assert running.service.engine.alive
    assert not [status for _, status in seen if status >= 500]
    for route in ("/v1/chat/completions", "/v1/completions", "/tokenize"):
        assert seen[(route, 400)], f"{route} refused nothing"
    if mode is schemathesis.GenerationMode.POSITIVE:
        assert seen[("/v1/completions", 200)], "nothing was ever answered"


def fuzz(running: Running, operation: Any, mode: Any, seen: Counter[tuple[str, int]]) -> None:
    has_body = bool(list(operation.body))
    if not has_body and mode is schemathesis.GenerationMode.NEGATIVE:
        return

    # The same in every run.
    @settings(
        max_examples=EXAMPLES if has_body else EXAMPLES // 5,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
    )
    @given(st.data())
    def one(data: st.DataObject) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        if mode is schemathesis.GenerationMode.POSITIVE and isinstance(case.body, dict):
            # Of many fields one is always refused; and no text that anybody draws is the model's name.
            others = sorted(case.body.keys() - {"model", "messages", "prompt", "tokens"})
            kept = data.draw(st.sets(st.sampled_from(others), max_size=3)) if others else set()
            for name in {*others, "model"} - kept:
                case.body.pop(name, None)
        response = case.call(base_url=running.url, timeout=30)
        seen[(operation.path, response.status_code)] += 1
        assert response.status_code < 500, (response.status_code, response.text, case.body)
        if response.status_code >= 400 and operation.path not in ("/health", "/ready"):
            refused(response.status_code, response.json(), case.body)

    one()


def refused(status: int, said: Any, body: Any) -> None:
    assert list(said) == ["error"], said
    error = said["error"]
    assert error.keys() == {"message", "type", "param", "code"}, error
    assert error["message"] and error["type"]
    if status == 400 and isinstance(body, dict):
        names = {*body, *(name for names in BODIES.values() for name in names)}
        assert any(re.fullmatch(rf"{re.escape(name)}([.\[].*)?", error["param"]) for name in names), error
