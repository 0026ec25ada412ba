"""docs/serving.md names every parameter, option and metric that there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program
from prometheus_client.parser import text_string_to_metric_families

from infer_compile.cli.serve import serve
from infer_compile.runtime.__main__ import main
from infer_compile.runtime.server.metrics import VLLM
from infer_compile.runtime.server.protocol import BODIES

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()
NAMED = set(re.findall(r"`([^`\s]+)`", PAGE))


@pytest.fixture(scope="module")
def running(model_dir: Path) -> Iterator[Running]:
    with serving(FakeEngine(tiny_program()), model_dir) as server:
        yield server


def test_every_parameter_is_named() -> None:
    assert {name for names in BODIES.values() for name in names} - NAMED == set()


def test_every_option_is_named_and_both_programs_have_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help", "--bundle"}
    ours = {name for parameter in serve.params for name in parameter.opts if name.startswith("--")}
    assert options == ours
    assert options - NAMED == set()


def test_every_path_is_named(running: Running) -> None:
    paths = running.http.get("/openapi.json").json()["paths"]
    statuses = {status for path in paths.values() for route in path.values() for status in route["responses"]}
    assert statuses == {"200", "4XX", "5XX"}
    assert {path.replace("{name}", "NAME") for path in paths} - set(re.findall(r"/[\w/]+", PAGE)) == set()


def test_every_metric_is_named(running: Running) -> None:
    families = text_string_to_metric_families(running.http.get("/metrics").text)
    exported = {
        name.removeprefix("infer_") for family in families if not (name := family.name).endswith("_created")
    }
    section = PAGE[PAGE.index("## Metrics") :]
    marked = dict(re.findall(r"`(\w+)`(\*?)", section[: section.index("A bundle's")]))
    assert exported - marked.keys() == set()
    assert {name for name in exported if marked[name]} == VLLM & exported
