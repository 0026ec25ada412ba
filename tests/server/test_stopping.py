"""The program's life: its start told in the log, its end by signals, and machines that cannot run it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from test_program import HERE, LAUNCH, write

from infer_compile.runtime.bundle import open_bundle
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.isa import flags, lacking

Launch = Callable[..., subprocess.Popen[str]]
LONG = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Starts the program on a bundle with further options."""
    started: list[subprocess.Popen[str]] = []
    bundle = write(tmp_path / "tiny")

    def start(*options: str, **variables: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-c", LAUNCH, "serve", "--bundle", str(bundle), "--port", "0", *options]
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | variables
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def listening(process: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Where it listens, and what it said before."""
    said = []
    for line in process.stderr:
        if found := re.search(r"listening on (http://[\w.:]+)", line):
            return found[1], said
        said.append(line)
    raise AssertionError("".join(said))


def test_the_log_tells_how_long_each_part_of_the_start_took(launch: Launch) -> None:
    process = launch("--log-format", "json")
    url, said = listening(process)
    events = {line["event"]: line for line in map(json.loads, said)}
    start = events["start"]
    parts = ["bundle_s", "tokenizer_s", "grammars_s", "engine_s", "warm_up_s", "measure_s"]
    assert [name for name in start if name.endswith("_s")] == parts
    assert start["seconds"] == pytest.approx(sum(start[part] for part in parts), abs=0.01)
    assert (events["cache"]["kv"], events["cache"]["bytes_per_token"]) == ("tq3", 52)
    assert {line["level"] for line in events.values()} == {"info"}
    httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 1})
    process.send_signal(signal.SIGTERM)
    _, rest = process.communicate(timeout=10)
    lines = [json.loads(line) for line in rest.splitlines()]
    assert [line["event"] for line in lines] == ["request", "stopping"]


def test_what_is_not_finished_in_time_is_told_so(launch: Launch) -> None:
    process = launch("--drain-seconds", "0")
    url, _ = listening(process)
    with httpx.stream("POST", f"{url}/v1/completions", json=LONG) as response:
        lines = response.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        said = [line for line in lines if line]
    assert json.loads(said[-2].removeprefix("data: "))["error"]["code"] == "IC507"
    assert said[-1] == "data: [DONE]"
    assert process.wait(10) == 0
    assert "cut off requests=1" in process.stderr.read()


def test_a_second_signal_ends_it_at_once(launch: Launch) -> None:
    process = launch("--drain-seconds", "60")
    url, _ = listening(process)
    with httpx.stream("POST", f"{url}/v1/completions", json=LONG) as response:
        next(response.iter_lines())
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5


def test_keys_of_the_environment_guard_the_program(launch: Launch) -> None:
    process = launch("--open-metrics", "--metrics-names", "vllm", INFER_COMPILE_API_KEYS="sesame")
    url, _ = listening(process)
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer sesame"}).status_code == 200
    metrics = httpx.get(f"{url}/metrics").text
    assert "vllm:num_requests_running{" in metrics
    assert "infer_cache_bytes_per_token{" in metrics


def test_keys_that_cannot_be_read_end_it(launch: Launch, tmp_path: Path) -> None:
    process = launch("--api-key-file", str(tmp_path / "none"))
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "error[IC530]" in said


def test_a_processor_without_the_instructions_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx\n")
    has = flags(cpuinfo)
    assert has == {"fpu", "sse4_2", "avx"}
    assert lacking("avx2", has) == ["avx2", "f16c", "fma"]
    assert lacking("portable", has) == lacking("avx2", None) == []
    monkeypatch.setattr("infer_compile.runtime.bundle.flags", lambda: has)
    bundle = open_bundle(write(tmp_path / "tiny", engine={"kind": "cpu", "isa": "avx2"}))
    with pytest.raises(InferCompileError, match="IC523") as caught:
        bundle.engine(1)
    assert "lacks avx2, f16c, fma" in caught.value.problems[0].because
