"""The bundle's program: opening a bundle, serving it until a signal, answering once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import toy_model
from fake_engine import FakeEngine, tiny_program

from infer_compile.runtime import bundle as bundles
from infer_compile.runtime.__main__ import main
from infer_compile.runtime.engines import cpu
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.manifest import Manifest
from infer_compile.runtime.formats.program import Program

HERE = Path(__file__).parent
LAUNCH = """
import sys
import test_program
from infer_compile.runtime.__main__ import main
from infer_compile.runtime.engines import cpu
cpu.CpuEngine = test_program.open_engine
sys.exit(main(sys.argv[1:]))
"""


def open_engine(folder: Path, threads: int | None) -> FakeEngine:
    """In place of CpuEngine; a file ``spoil`` in the folder makes it write one byte too many."""
    engine = FakeEngine(Program.from_json((folder / "program.json").read_text()), delay=0.002)
    if (folder / "spoil").exists():
        run = engine.step

        def step(*batch: object, **asked: bool) -> object:
            result = run(*batch, **asked)
            engine.pool("exact")[2 * engine.program.cache.exact_page_bytes + 1000] = 7
            return result

        engine.step = step
    return engine


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "tiny")


def write(folder: Path, **changes: object) -> Path:
    toy_model.write(folder / "model")
    (folder / "engine").mkdir()
    program = tiny_program()
    (folder / "engine" / "program.json").write_text(program.to_json())
    return seal(folder, {"program": program.digest} | changes)


def seal(folder: Path, changes: dict[str, object]) -> Path:
    names = [path for path in folder.rglob("*") if path.is_file() and path.name != "bundle.json"]
    files = {
        str(path.relative_to(folder)): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        for path in names
    }
    manifest = {
        "schema": 1,
        "name": "tiny",
        "plan": "1" * 64,
        "program": "",
        "asked": {"program": "3" * 64},
        "engine": {"kind": "cpu", "isa": "portable"},
        "serving": {"port": 0},
        "source": {"source": "toy", "revision": None, "sha256": "2" * 64},
        "toolchain": {},
        "files": files,
    } | changes
    whole = manifest["schema"] == 1
    text = Manifest.model_validate(manifest).sealed().to_json() if whole else json.dumps(manifest)
    (folder / "bundle.json").write_text(text)
    return folder


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "CpuEngine", open_engine)


def test_a_bundle_opens(bundle: Path) -> None:
    opened = bundles.open_bundle(bundle)
    assert opened.manifest.name == "tiny"
    assert opened.fingerprint == json.loads((bundle / "bundle.json").read_text())["digest"][:12]
    assert opened.program == tiny_program()


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def put(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: put(name, (folder / name).read_text().replace(old, new))(folder)


BROKEN = [
    (drop("bundle.json"), "IC401", 2),
    (put("bundle.json", "{"), "IC402", 5),
    (put("bundle.json", "[]"), "IC402", 5),
    (edit("bundle.json", '"port": 0', '"port": 1'), "IC421", 5),
    (lambda folder: seal(folder, {"schema": 2}), "IC402", 5),
    (drop("engine/program.json"), "IC422", 5),
    (drop("model/tokenizer.json"), "IC422", 5),
    (put("model/tokenizer.json", "{}"), "IC421", 5),
    (edit("engine/program.json", '"tiny"', '"tinx"'), "IC421", 5),
    (lambda folder: seal(folder, {"program": "0" * 64}), "IC430", 5),
    (lambda folder: (put("engine/program.json", "{}")(folder), seal(folder, {})), "IC430", 5),
    (
        lambda folder: seal(
            folder, {"program": tiny_program().digest, "engine": {"kind": "tpu", "isa": "x"}}
        ),
        "IC431",
        5,
    ),
]


@pytest.mark.parametrize(("spoil", "code", "status"), BROKEN)
@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["generate", "hello"]])
def test_a_broken_bundle_never_runs(
    bundle: Path,
    spoil: Callable[[Path], None],
    code: str,
    status: int,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(bundle)
    assert main([*command, "--bundle", str(bundle)]) == status
    said = capsys.readouterr()
    assert f"error[{code}]" in said.err
    assert "listening" not in said.err
    assert said.out == ""


def test_all_files_that_differ_are_told_at_once(bundle: Path) -> None:
    drop("model/tokenizer_config.json")(bundle)
    edit("engine/program.json", '"tiny"', '"tinx"')(bundle)
    with pytest.raises(InferCompileError) as caught:
        bundles.open_bundle(bundle)
    assert [problem.code for problem in caught.value.problems] == ["IC421", "IC422"]


def test_a_cache_that_is_not_as_planned_is_never_served(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "engine" / "spoil").touch()
    assert main(["serve", "--bundle", str(bundle), "--port", "0"]) == 5
    said = capsys.readouterr().err
    assert "error[IC501]" in said
    assert "listening" not in said


def test_a_port_in_use_is_said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--bundle", str(bundle), "--port", port]) == 1
    assert f"error[IC502]: 127.0.0.1:{port}" in capsys.readouterr().err
    assert main(["serve", "--bundle", str(bundle), "--host", "no.such.host.invalid"]) == 1
    assert "error[IC502]" in capsys.readouterr().err


def test_one_answer(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def generate(*words: str) -> tuple[str, str]:
        assert main(["generate", "--bundle", str(bundle), *words]) == 0
        said = capsys.readouterr()
        return said.out, said.err

    chat, told = generate("hello", "--max-tokens", "5")
    assert re.search(
        r"^in 9 \(\d+\.\d tok/s\), out 5 \(\d+\.\d tok/s\), \d+\.\d\d s, length$", told, re.MULTILINE
    )
    assert generate("hello", "--max-tokens", "5", "--stream")[0] == chat
    raw, told = generate("hello", "--max-tokens", "5", "--raw")
    assert "in 5 " in told
    assert raw != chat
    warm = ("hello", "--temperature", "1", "--max-tokens", "9")
    assert generate(*warm, "--seed", "1")[0] == generate(*warm, "--seed", "1")[0]
    assert generate(*warm, "--seed", "1")[0] != generate(*warm, "--seed", "2")[0]


def test_prompts_that_do_not_fit_are_refused(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["x" * 300], ["x" * 300, "--max-tokens", "1"], ["x", "--max-tokens", "300"], ["", "--raw"]):
        assert main(["generate", "--bundle", str(bundle), *words]) == 2
        said = capsys.readouterr()
        assert "error[IC509]" in said.err
        assert said.out == ""


@pytest.mark.parametrize(
    "words",
    [["--port", "65536"], ["--port", "x"], ["--threads", "0"], ["--queue", "-1"]],
)
def test_arguments_out_of_range_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", *words])
    assert f"argument {words[0]}: invalid" in capsys.readouterr().err


@pytest.fixture
def process(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", LAUNCH, "serve", "--bundle", str(bundle), "--port", "0"]
    paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as running:
        yield running
        running.kill()


def address(process: subprocess.Popen[str]) -> str:
    for line in process.stderr:
        if line.startswith("listening on "):
            return line.removeprefix("listening on ").strip()
    raise AssertionError("it ended before it listened")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_answers_under_way(process: subprocess.Popen[str], number: int) -> None:
    body = {"prompt": "a", "max_tokens": 100, "ignore_eos": True, "stream": True}
    with httpx.Client(base_url=address(process)) as client:
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(10) == 0
    said = process.stderr.read()
    assert re.search(
        r"^request id=\w+ .* status=200 .* generated_tokens=100 .* finish=length", said, re.MULTILINE
    )
    assert "Traceback" not in said
