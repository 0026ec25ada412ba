"""Metrics, and what Prometheus makes of them: alert rules, dashboards, a real server that scrapes."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import Running, serving
from fake_engine import FakeEngine, tiny_program
from prometheus_client.parser import text_string_to_metric_families

from infer_compile.build.templates import render
from infer_compile.runtime.server.metrics import VLLM, Metrics
from infer_compile.runtime.speculation.draft import Draft, Verdict
from infer_compile.runtime.speculation.speculator import Outcome

PLAN = {
    "name": "tiny",
    "ttft_seconds": 0.8,
    "itl_seconds": 0.04,
    "max_sequences": 4,
    "acceptance": 0.7,
    "acceptance_low": 0.35,
    "checked_tokens": 64,
    "drift_percent": 1.5,
}


def tool(name: str) -> str:
    """A program of Debian's package ``prometheus``, or a skip that says what was not tested."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"NOT TESTED: there is no {name}; Debian's package prometheus has it")
    return path


def deploy(folder: Path, port: int, **changes: object) -> Path:
    """What a bundle's ``deploy`` holds for Prometheus."""
    for name in ("prometheus.yaml", "alerts.yaml", "dashboard.json"):
        (folder / name).write_text(render(f"deploy/{name}.j2", **(PLAN | {"port": port} | changes)))
    return folder


@pytest.mark.parametrize(("acceptance", "checked"), [(None, 64), (0.7, 0)])
def test_the_rules_and_the_configuration_are_sound(
    tmp_path: Path, acceptance: float | None, checked: int
) -> None:
    folder = deploy(tmp_path, 8000, acceptance=acceptance, checked_tokens=checked)
    for command in (["rules", "alerts.yaml"], ["config", "prometheus.yaml"]):
        done = subprocess.run(
            [tool("promtool"), "check", *command], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    rules = (folder / "alerts.yaml").read_text()
    assert ("AcceptanceLow" in rules, "PerplexityDrift" in rules) == (acceptance is not None, checked > 0)


TESTS = """
rule_files: [alerts.yaml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'infer_num_requests_waiting{model_name="tiny"}', values: '5x20'}
      - {series: 'infer_kv_cache_usage_perc{model_name="tiny"}', values: '0.99x20'}
      - {series: 'infer_num_preemptions_total{model_name="tiny"}', values: '0+3x20'}
      - {series: 'infer_time_to_first_token_seconds_bucket{model_name="tiny",le="0.5"}', values: '0+1x20'}
      - {series: 'infer_time_to_first_token_seconds_bucket{model_name="tiny",le="1"}', values: '0+10x20'}
      - {series: 'infer_time_to_first_token_seconds_bucket{model_name="tiny",le="+Inf"}', values: '0+10x20'}
      - {series: 'infer_spec_decode_num_accepted_tokens_total{model_name="tiny"}', values: '0+3x40'}
      - {series: 'infer_spec_decode_num_draft_tokens_total{model_name="tiny"}', values: '0+10x40'}
      - {series: 'infer_requests_refused_total{model_name="tiny",status="500"}', values: '0x10 1x10'}
      - {series: 'up{job="tiny"}', values: '0x20'}
      - {series: 'infer_shadow_tokens_total{model_name="tiny"}', values: '0+100x60 6000+100x60'}
      - {series: 'infer_shadow_divergence_nats_total{model_name="tiny"}', values: '0+1x60 60+9x60'}
    alert_rule_test:
"""


def test_the_rules_fire_when_their_thresholds_are_passed(tmp_path: Path) -> None:
    folder = deploy(tmp_path, 8000)
    fired = {
        "QueueLong": 6,
        "CacheFull": 15,
        "TimeToFirstToken": 16,
        "AcceptanceLow": 35,
        "Failures": 12,
        "ServerDown": 2,
        "PerplexityDrift": 120,
    }
    text = TESTS
    for name, minutes in fired.items():
        rule = re.search(
            rf"alert: {name}\n.*?severity: (\w+)", (folder / "alerts.yaml").read_text(), re.DOTALL
        )
        labels = {
            "ServerDown": "job: tiny",
            "TimeToFirstToken": "",
            "PerplexityDrift": "",
            "Failures": "model_name: tiny, status: '500'",
        }
        own = labels.get(name, "model_name: tiny")
        text += f"      - {{eval_time: {minutes}m, alertname: {name}, exp_alerts: ["
        text += (
            f"{{exp_labels: {{severity: {rule[1]}{', ' if own else ''}{own}}}, exp_annotations: {{}}}}]}}\n"
        )
    text += "      - {eval_time: 55m, alertname: PerplexityDrift, exp_alerts: []}\n"
    (folder / "tests.yaml").write_text(text)
    done = subprocess.run(
        [tool("promtool"), "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    # The wording of annotations is not what is tested; everything else is.
    silent = [name for name in fired if re.search(rf"alertname: {name}.*?got:\[\]", said, re.DOTALL)]
    assert silent == []
    assert "time: 55m" not in said, "the drift was within its budget then"


@pytest.fixture(scope="module")
def running(model_dir: Path) -> object:
    with serving(FakeEngine(tiny_program()), model_dir) as server:
        server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 3})
        yield server


def test_everything_that_is_watched_is_exported(running: Running, tmp_path: Path) -> None:
    exported = running.http.get("/metrics").text
    samples = {
        sample.name for family in text_string_to_metric_families(exported) for sample in family.samples
    }
    deploy(tmp_path, 8000)
    for name in ("alerts.yaml", "dashboard.json"):
        watched = set(re.findall(r"\binfer_\w+", (tmp_path / name).read_text()))
        assert watched
        assert watched - samples == set()
    dashboard = json.loads((tmp_path / "dashboard.json").read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"]) == 11


def test_names_are_vllms_by_option() -> None:
    ours, theirs = Metrics("tiny"), Metrics("tiny", "vllm")
    assert {name for name in names(ours) if not name.startswith("infer_")} == set()
    renamed = {name.removeprefix("vllm:") for name in names(theirs) if name.startswith("vllm:")}
    assert renamed <= VLLM
    assert {name.removeprefix("infer_") for name in names(ours)} == renamed | {
        name.removeprefix("infer_") for name in names(theirs) if name.startswith("infer_")
    }
    # Of a registry without an engine: its gauges come with one.
    gauges = {"kv_cache_usage_perc", "num_requests_running", "num_requests_waiting"}
    assert VLLM - renamed == gauges


def names(metrics: Metrics) -> set[str]:
    return {family.name for family in metrics.registry.collect()}


def test_acceptance_is_counted_by_position() -> None:
    metrics = Metrics("tiny")
    line = Draft.line(np.arange(3, dtype=np.int32))
    tree = Draft(line.chain[:2], np.array([[7], [8]], np.int32))
    for draft, accepted, choice in ((line, 2, 0), (line, 0, 0), (tree, 2, 0), (line, 3, 0), (tree, 1, 1)):
        metrics.drafted(Outcome(None, draft, Verdict((), accepted, choice)))
    value = metrics.registry.get_sample_value
    labels = {"model_name": "tiny"}
    assert value("infer_spec_decode_num_drafts_total", labels) == 5
    assert value("infer_spec_decode_num_draft_tokens_total", labels) == 13
    assert value("infer_spec_decode_num_accepted_tokens_total", labels) == 8
    assert value("infer_spec_decode_num_sibling_tokens_total", labels) == 4
    assert value("infer_spec_decode_num_accepted_siblings_total", labels) == 1
    at = "infer_spec_decode_num_accepted_tokens_per_pos_total"
    assert [value(at, labels | {"position": str(place)}) for place in range(4)] == [4, 3, 1, None]


def test_prometheus_scrapes_the_server(running: Running, tmp_path: Path) -> None:
    program = tool("prometheus")
    port = int(running.url.rsplit(":", 1)[1])
    folder = deploy(tmp_path, port)
    text = (folder / "prometheus.yaml").read_text().replace("15s", "200ms")
    (folder / "prometheus.yaml").write_text(text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [program, "--config.file=prometheus.yaml", "--storage.tsdb.path=data"]
    with subprocess.Popen(
        [*command, f"--web.listen-address={address}"], cwd=folder, stderr=subprocess.DEVNULL
    ) as server:
        try:

            def generated() -> list[object]:
                query = {"query": 'infer_generation_tokens_total{job="tiny"}'}
                try:
                    answer = httpx.get(f"http://{address}/api/v1/query", params=query)
                except httpx.TransportError:
                    return []
                # Until it has started it answers with a sentence.
                found = answer.json() if answer.is_success else {}
                return list(found.get("data", {}).get("result", []))

            running.wait(lambda: bool(generated()), 30)
            (series,) = generated()
            assert series["metric"]["model_name"] == "tiny"
            assert series["value"][1] == "3"
        finally:
            server.terminate()
