"""The whole line with the real compiler: a spec built twice, verified, asked and served, without PyTorch."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infer_compile.probe.cpu import host_architecture

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import tiny

PROGRAM = Path(sys.executable).with_name("infer-compile")
# Importing torch fails in every process of these tests, as where it is not installed.
BLOCKER = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": ""}
    tried = subprocess.run([sys.executable, "-c", "import torch"], env=environment, capture_output=True)
    assert b"No module named 'torch'" in tried.stderr
    return environment


def call(environment: dict[str, str], *words: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([PROGRAM, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def bundle(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first")
    spec = tiny.write(folder, host_architecture() or "x86-64")
    spec.write_text(spec.read_text() + "serving: {shadow: {fraction: 1.0}}\n")
    call(environment, "build", spec, "-o", folder / "tiny")
    return folder / "tiny"


def test_built_twice_it_is_the_same_bytes_and_names_no_place(
    environment: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "another place"
    shutil.copytree(bundle.parent, elsewhere, ignore=shutil.ignore_patterns("tiny"))
    call(environment, "build", elsewhere / "tiny.yaml", "-o", elsewhere / "tiny")
    names = sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(elsewhere / "tiny"))
        for path in (elsewhere / "tiny").rglob("*")
        if path.is_file()
    )
    for name in names:
        content = (bundle / name).read_bytes()
        if name != "measured.json":
            assert content == (elsewhere / "tiny" / name).read_bytes(), name
        for place in (bundle.parent, elsewhere):
            assert str(place).encode() not in content, name


def test_it_verifies_and_a_flipped_bit_of_the_engine_does_not(
    environment: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    assert "as built" in call(environment, "verify", bundle).stdout
    copy = tmp_path / "tiny"
    shutil.copytree(bundle, copy)
    library = copy / "engine" / "libengine.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    assert "IC421" in call(environment, "verify", copy, code=5).stderr
    assert "libengine.so" in call(environment, "generate", copy, "hello", code=5).stderr


def test_it_answers_without_a_server_from_any_folder(
    environment: dict[str, str], bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "runtime").mkdir()
    (tmp_path / "runtime" / "__init__.py").write_text("raise SystemExit('the wrong runtime')")
    words = [PROGRAM, "generate", bundle, "--max-tokens", "5", "--", "-hello"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "out 5" in done.stderr
    long = call(environment, "generate", bundle, "x" * 1000, code=2)
    assert "IC509" in long.stderr
    assert "IC401" in call(environment, "generate", tmp_path, "hello", code=2).stderr


@pytest.fixture(scope="module")
def server(environment: dict[str, str], bundle: Path) -> Iterator[http.client.HTTPConnection]:
    words = [PROGRAM, "serve", bundle, "--port", "0"]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        found = re.search(r"listening on http://(\S+)", line)
        if found:
            break
    else:
        pytest.fail("".join(said))
    connection = http.client.HTTPConnection(found[1], timeout=60)
    yield connection
    connection.close()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0


def get(server: http.client.HTTPConnection, path: str, body: object = None) -> tuple[int, str]:
    server.request(
        "POST" if body else "GET", path, body and json.dumps(body), {"Content-Type": "application/json"}
    )
    response = server.getresponse()
    return response.status, response.read().decode()


def test_it_streams_an_answer_over_http(server: http.client.HTTPConnection) -> None:
    status, text = get(
        server,
        "/v1/chat/completions",
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 7,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    )
    assert status == 200
    events = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    assert {choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]} == {None, "length"}


def test_a_cached_token_takes_the_bytes_of_the_plan(server: http.client.HTTPConnection, bundle: Path) -> None:
    planned = json.loads((bundle / "plan.json").read_text())["kv"]["bytes_per_token"]
    status, text = get(server, "/metrics")
    assert status == 200
    found = re.search(r"^infer_cache_bytes_per_token{.*} (\S+)$", text, re.MULTILINE)
    assert found and float(found[1]) == planned
    assert get(server, "/health")[0] == 200


def test_an_answer_is_checked_against_an_exact_cache(
    server: http.client.HTTPConnection, bundle: Path
) -> None:
    plan = json.loads((bundle / "plan.json").read_text())
    limits = json.loads((bundle / "engine" / "program.json").read_text())["limits"]
    assert limits["checked_tokens"] == plan["limits"]["checked_tokens"] == 128
    rule = (bundle / "deploy" / "alerts.yaml").read_text().partition("PerplexityDrift")[2]
    assert f"- 1) > {plan['predicted']['quality_loss_percent']['high']}\n" in rule

    def metric(name: str) -> float:
        found = re.search(rf"^infer_{name}{{.*}} (\S+)$", get(server, "/metrics")[1], re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    before = metric("shadow_tokens_total")
    body = {"prompt": "a long way " * 6, "max_tokens": 50, "temperature": 1, "ignore_eos": True}
    assert get(server, "/v1/completions", body)[0] == 200
    end = time.monotonic() + 30
    while metric("shadow_tokens_total") < before + 50:
        assert time.monotonic() < end, "nothing was checked"
        time.sleep(0.05)
    # tq3 loses something, even behind a first page and four last ones that stay exact; not everything.
    assert 0 <= metric("shadow_divergence_nats_total") < 50


def test_serving_leaves_the_bundle_as_it_was_and_a_taken_port_is_said(
    environment: dict[str, str], bundle: Path, server: http.client.HTTPConnection
) -> None:
    assert "IC502" in call(environment, "serve", bundle, "--port", str(server.port), code=1).stderr
    call(environment, "verify", bundle)
