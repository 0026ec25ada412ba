"""The plan command: formats, files, exit codes; names in a spec become a model and devices."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infer_compile.build.resolve import plan_of, resolve
from infer_compile.cli.main import main
from infer_compile.planner.explain.markdown import markdown
from infer_compile.planner.plan import Plan
from infer_compile.runtime.errors import InferCompileError

SPEC = """\
apiVersion: infer-compile/v1
model: {source: hf://meta-llama/Llama-3.1-8B-Instruct}
target: TARGET
workload: {context_tokens: 4096, input_tokens: 1000, output_tokens: 200, concurrency: 2}
"""
TARGET = """\
id: my-card
name: my card
vendor: NVIDIA
compute_capability: "8.9"
kind: gpu
memory_gb: 40
bandwidth_gbs: 1000
rates: {bf16_tflops: 100}
sources: {default: a guess}
confidence: C
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(target: str, name: str = "chat.yaml") -> Path:
    path = Path(name)
    path.write_text(SPEC.replace("TARGET", target))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


def test_a_table_by_default(here: Path) -> None:
    result = run(write("rtx-4090"))
    assert result.exit_code == 0
    assert "RTX 4090" in result.stdout and "Planned only" in result.stdout
    assert not any(line.endswith(" ") for line in result.stdout.splitlines())


def test_json_on_standard_output_and_in_a_file(here: Path) -> None:
    result = run(write("rtx-4090"), "--format", "json", "-o", "plan.json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["schema"] == 1
    assert Path("plan.json").read_text() == result.stdout
    assert Plan.from_json(result.stdout).model.parameters == 8_030_261_248


def test_markdown(here: Path) -> None:
    result = run(write("rtx-4090"), "--format", "markdown")
    assert result.exit_code == 0 and result.stdout.startswith("# chat\n")


def test_nothing_fits_exits_3(here: Path) -> None:
    path = write("rtx-3070-8gb")
    path.write_text(path.read_text() + "pin: {weights: bf16}\n")
    result = run(path, "--format", "json")
    assert result.exit_code == 3 and result.stdout == ""
    assert "error[IC201]: chat.yaml:" in result.stderr and "concurrency: 1" not in result.stderr
    assert "target: " in result.stderr


def test_a_place_that_cannot_be_written(here: Path) -> None:
    result = run(write("rtx-4090"), "-o", "absent/plan.json")
    assert result.exit_code == 1 and "IC230" in result.stderr
    assert "fix:" in result.stderr


def test_a_target_file_beside_the_spec(here: Path) -> None:
    (here / "specs").mkdir()
    (here / "specs" / "card.yaml").write_text(TARGET)
    path = write("./card.yaml", "specs/chat.yaml")
    resolved = resolve(path)
    assert resolved.target.id == "my-card"
    assert plan_of(resolved).target.memory_gb == 40
    assert resolved.target_of(plan_of(resolved)) is resolved.target


def test_a_list_of_targets(here: Path) -> None:
    resolved = resolve(write("[rtx-4090, h100-sxm]"))
    decided = plan_of(resolved)
    assert decided.target.id == "h100-sxm"
    assert resolved.target_of(decided) is resolved.targets[1]


def test_wrong_names_are_reported_together(here: Path) -> None:
    path = write("[rtx-4091, h100-sxm, ./absent.yaml]")
    path.write_text(path.read_text().replace("hf://meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-9b"))
    with pytest.raises(InferCompileError) as caught:
        resolve(path)
    assert [problem.code for problem in caught.value.problems] == ["IC100", "IC020", "IC020"]
    assert all(problem.where.startswith("chat.yaml:") for problem in caught.value.problems)


def on_a_terminal(path: Path, **environment: str) -> str:
    """What the command writes to a terminal."""
    reader, writer = pty.openpty()
    command = [sys.executable, "-c", "from infer_compile.cli.main import main; main()", "plan", str(path)]
    known = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    process = subprocess.Popen(command, stdout=writer, env=known | {"TERM": "xterm"} | environment)
    os.close(writer)
    text = b""
    try:
        while part := os.read(reader, 65536):
            text += part
    except OSError:
        # The other end of a terminal that was closed is an error, not an end of file.
        pass
    os.close(reader)
    assert process.wait() == 0
    return text.decode()


def test_colour_is_for_terminals_that_want_it(here: Path) -> None:
    path = write("rtx-4090")
    assert "\x1b[" in on_a_terminal(path)
    assert "\x1b[" not in on_a_terminal(path, NO_COLOR="1")
    assert "\x1b[" not in run(path).stdout


def test_a_plan_that_was_written_is_told_again(here: Path) -> None:
    written = Plan.from_json(run(write("rtx-4090"), "--format", "json").stdout)
    assert markdown(written) == run(Path("chat.yaml"), "--format", "markdown").stdout
