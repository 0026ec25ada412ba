"""``infer-compile bench`` on a small model's bundle, built with the real compiler."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_bundle
import pytest
import tiny
from click.testing import CliRunner
from test_speculation_bundle import predicted

from infer_compile.cli import bench as command
from infer_compile.cli.main import main
from infer_compile.evaluate.speed import machine
from infer_compile.evaluate.speed.bench import Bench
from infer_compile.evaluate.speed.comparison import Goal
from infer_compile.planner.plan import Plan
from infer_compile.probe.cpu import processor

QUICK = """
from infer_compile.evaluate.speed import machine
machine.bandwidth, machine.matrix_rate = lambda cores, memory: 8e9, lambda: 0.1e12
from infer_compile.cli.main import main
main()
"""
"""The command without measuring the machine."""
SPEC = """\
name: tiny
model: {source: model}
target: ./cpu.yaml
workload: {context_tokens: 128, input_tokens: 24, output_tokens: 8, concurrency: 2}
slo: {itl_ms: 60000}
pin: {weights: {format: int4-rtn, group: 64}, kv: tq3, speculation: {method: ngram, tokens: 2}}
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its engine is for the best instruction set of this machine."""
    folder = tmp_path_factory.mktemp("bench")
    host = processor()
    spec = tiny.write(folder, host.architecture or "x86-64", num_hidden_layers=1)
    cpu = folder / "cpu.yaml"
    cpu.write_text(cpu.read_text().replace("isa: portable", f"isa: {host.isa}"))
    spec.write_text(SPEC)
    built = CliRunner().invoke(main, ["build", str(spec), "-o", str(folder / "tiny")])
    assert built.exit_code == 0, built.output
    return folder / "tiny"


@pytest.fixture(autouse=True)
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rates are made up: measuring them takes seconds."""
    monkeypatch.setattr(machine, "bandwidth", lambda cores, memory: 8e9)
    monkeypatch.setattr(machine, "matrix_rate", lambda: 0.1e12)


def run(bundle: Path, *words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["bench", str(bundle), "--rounds", "2", *words])
    assert done.exit_code == code, done.output + repr(done.exception)
    return done.stdout if code == 0 else done.output


def test_the_planned_load_is_measured_beside_its_prediction(bundle: Path) -> None:
    began = time.monotonic()
    told = json.loads(run(bundle, "--json"))
    took = time.monotonic() - began
    plan = Plan.from_json((bundle / "plan.json").read_text())
    assert (told["schema"], told["bundle"], told["kv"], told["rounds"]) == (1, "tiny", "tq3", 2)
    alone, planned = told["points"]
    assert (alone["sequences"], alone["planned"], alone["requests"]) == (1, False, 2)
    assert (planned["sequences"], planned["input_tokens"], planned["output_tokens"]) == (2, 24, 8)
    assert planned["planned"] is True and planned["requests"] == 4
    for name in ("ttft_ms", "itl_ms", "tokens_per_second"):
        figure = planned["figures"][name]
        assert told["plan"][name] == getattr(plan.predicted, name)
        # Without HTTP it is faster.
        assert (figure["predicted"] < told["plan"][name]) is (name != "tokens_per_second")
        assert figure["least"] <= figure["measured"] <= figure["most"]
        assert figure["ratio"] == pytest.approx(figure["measured"] / figure["predicted"], rel=1e-3)
    # A plan for a datasheet's 10 GB/s reckons with 8, which are measured; of operations with half of them.
    first = alone["figures"]["ttft_ms"]
    assert first["predicted_now"] < first["predicted"]
    # What was measured happened within the time that the command took.
    assert 0 < alone["figures"]["ttft_ms"]["most"] < took * 1e3
    for each in (alone, planned):
        rounds = each["requests"] // each["sequences"]
        mean = each["requests"] * 8 / each["seconds"]
        least, most = (each["figures"]["tokens_per_second"][end] for end in ("least", "most"))
        assert rounds == 2 and least * 0.999 <= mean <= most * 1.001
        assert 0 < each["engine_share"] < 1 and each["preempted"] == 0
        assert each["speculation"]["planned_tokens_per_step"] == plan.speculation.tokens_per_step
        assert each["speculation"]["tokens_per_step"] >= 1
    assert told["memory"]["token_bytes"] == told["memory"]["planned_token_bytes"] == plan.kv.bytes_per_token
    assert set(told["start"]) == {"bundle", "tokenizer", "engine", "warm_up", "measure", "total"}
    assert told["machine"]["bandwidth_gbs"] == {"planned": 10.0, "now": 8.0, "ratio": 0.8}
    assert told["slo"][0]["held"] is True and told["threads"] == len(os.sched_getaffinity(0))


def test_a_grid_has_every_combination_and_a_page(bundle: Path) -> None:
    words = ["--batch", "1,2", "--input", "8,40", "--output", "4", "--threads", "1"]
    told = json.loads(run(bundle, *words, "--json"))
    shapes = [(each["sequences"], each["input_tokens"], each["output_tokens"]) for each in told["points"]]
    assert shapes == [(1, 8, 4), (2, 8, 4), (1, 40, 4), (2, 40, 4)] and told["threads"] == 1
    assert not any(each["planned"] for each in told["points"]) and told["slo"] == []
    assert all(each["figures"]["itl_ms"]["predicted"] for each in told["points"])
    said = run(bundle, *words)
    assert said.count("time to first token") == 4 and "which was not measured" in said
    assert "\x1b" not in said


def test_a_figure_further_off_than_allowed_is_status_4(bundle: Path) -> None:
    said = run(bundle, "--batch", "1", "--within", "0.0001", code=4)
    assert said.count("error[IC373]") >= 4 and "time between tokens" in said
    assert run(bundle, "--batch", "1", "--within", "1e9")


def test_a_goal_of_the_spec_that_is_missed_is_status_4(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest: Callable[..., Bench] = command.measure

    def slower(*words: Any) -> Bench:
        return replace(honest(*words), goals=(Goal("itl_ms", 5, 6),))

    monkeypatch.setattr(command, "measure", slower)
    said = run(bundle, code=4)
    assert "IC372" in said and "itl_ms is 6, and the spec wants 5" in said and "missed" in said


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["--input", "125"], 2, ["IC370", "sequences of 128 tokens"]),
        (["--batch", "3,2,4"], 2, ["3 sequences", "4 sequences", "IC371", "--batch 2 or less"]),
        (["--batch", "1,"], 2, ["IC030"]),
        (["--batch", "0"], 2, ["IC030"]),
        (["--within", "0"], 2, ["IC030"]),
        (["--rounds", "0"], 2, ["IC030"]),
    ],
)
def test_what_cannot_be_measured(bundle: Path, words: list[str], code: int, expected: list[str]) -> None:
    said = run(bundle, *words, code=code)
    assert all(each in said for each in expected), said


def test_what_is_no_bundle_or_a_changed_one(bundle: Path, tmp_path: Path) -> None:
    assert "IC401" in run(tmp_path, code=2)
    shutil.copytree(bundle, tmp_path / "tiny")
    (tmp_path / "tiny" / "plan.json").write_text("{}")
    assert "IC221" in run(tmp_path / "tiny", code=1)


def test_a_bundle_of_a_gpu_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    gpu_bundle.without_compiler(monkeypatch.setattr)
    gpu_bundle.built(gpu_bundle.write(tmp_path, "rtx-4090"), tmp_path / "out")
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    said = run(tmp_path / "out", code=1)
    assert "IC524" in said or "IC529" in said
    assert predicted(tmp_path / "out").stale == ""


def test_it_stops_at_once(bundle: Path) -> None:
    words = [sys.executable, "-c", QUICK, "bench", bundle, "--rounds", "1000000", "--batch", "1"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        running.stderr.readline()
        running.send_signal(signal.SIGINT)
        said = running.stderr.read()
        assert running.wait(timeout=20) == 1
    assert "interrupted" in said and "Traceback" not in said
