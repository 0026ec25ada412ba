"""The command line: its table, how errors look, and the commands that need no model."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator

from infer_compile.catalog.resources import folder
from infer_compile.catalog.target import Isa, target_names
from infer_compile.cli import console, doctor
from infer_compile.cli.main import COMMANDS, main
from infer_compile.codegen.toolchain import Toolchain
from infer_compile.probe import cpu
from infer_compile.probe.cpu import Processor
from infer_compile.probe.gpu import Gpu
from infer_compile.runtime.errors import Exit, InferCompileError, Problem
from infer_compile.spec.document import read as read_document
from infer_compile.spec.load import load
from infer_compile.spec.schema import json_schema

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(main, arguments, prog_name="infer-compile")


class TestTable:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_every_command_is_there_and_has_help(self, run: Run, name: str) -> None:
        done = run(name, "--help")
        assert done.exit_code == Exit.DONE, done.output
        assert done.stdout.startswith(f"Usage: infer-compile {name} ")

    def test_help_lists_them_without_importing_any(self) -> None:
        code = (
            "import sys; from infer_compile.cli.main import COMMANDS, main\n"
            "try: main(['--help'])\n"
            "except SystemExit as left: assert left.code == 0\n"
            "print([name for name in COMMANDS if f'infer_compile.cli.{name}' in sys.modules])\n"
            "print([name for name in ('numpy', 'torch', 'rich', 'jinja2') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("[]\n[]\n")
        assert all(f"  {name}" in done.stdout for name in COMMANDS)

    def test_version(self, run: Run) -> None:
        assert run("--version").stdout == "infer-compile 0.1.0\n"

    def test_no_command(self, run: Run) -> None:
        done = run()
        assert (done.exit_code, done.stdout) == (Exit.USAGE, "")
        assert done.stderr.startswith("Usage: infer-compile ")


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (
                ["modles"],
                'error[IC030]: there is no command "modles", did you mean models?\n'
                "  fix: infer-compile --help\n",
            ),
            (
                ["targets", "l4", "t4"],
                "error[IC030]: Got unexpected extra argument (t4)\n  fix: infer-compile targets --help\n",
            ),
            (
                ["models", "lama-3.1-8b"],
                'error[IC021]: there is no model "lama-3.1-8b" in the catalog\n'
                "  because: the catalog knows ids of its own and repositories of the hub\n"
                "  fix: did you mean llama-3.1-8b?\n",
            ),
            (
                ["targets", "h100"],
                'error[IC020]: there is no target "h100"\n  fix: did you mean h100-sxm?\n',
            ),
        ],
        ids=["command", "argument", "model", "target"],
    )
    def test_they_go_to_standard_error_with_status_2(
        self, run: Run, arguments: list[str], message: str
    ) -> None:
        done = run(*arguments)
        assert (done.exit_code, done.stdout, done.stderr) == (Exit.USAGE, "", message)

    @pytest.mark.parametrize("status", Exit)
    def test_an_error_decides_the_exit_status(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, status: Exit
    ) -> None:
        @click.command()
        def broken() -> None:
            raise InferCompileError([Problem("IC200", "one"), Problem("IC201", "two", "a.yaml:3")], status)

        monkeypatch.setattr("infer_compile.cli.targets.targets", broken)
        done = run("targets")
        assert done.exit_code == status
        assert done.stderr == "error[IC200]: one\nerror[IC201]: a.yaml:3: two\n"

    def test_what_nobody_foresaw_is_not_hidden(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        @click.command()
        def broken() -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr("infer_compile.cli.targets.targets", broken)
        assert isinstance(run("targets").exception, ZeroDivisionError)

    def test_a_command_can_leave_with_a_status(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        @click.command()
        @click.pass_context
        def leaving(context: click.Context) -> None:
            context.exit(4)

        monkeypatch.setattr("infer_compile.cli.targets.targets", leaving)
        assert run("targets").exit_code == 4

    @pytest.mark.parametrize(
        ("terminal", "no_color", "coloured"), [(True, "", True), (True, "1", False), (False, "", False)]
    )
    def test_colour_only_on_a_terminal_that_wants_it(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        terminal: bool,
        no_color: str,
        coloured: bool,
    ) -> None:
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        console.report(InferCompileError(Problem("IC008", "m", "s.yaml:1", "b", "f")))
        text = capsys.readouterr().err
        assert ("\x1b[" in text) == coloured
        plain = "error[IC008]: s.yaml:1: m\n  because: b\n  fix: f\n"
        assert click.unstyle(text) == plain
        assert coloured or text == plain


class TestCatalogs:
    def test_targets(self, run: Run) -> None:
        lines = run("targets").stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["name", *target_names()]
        assert next(line for line in lines if line.startswith("h100-sxm ")).split()[1:] == (
            ["gpu", "85.52", "3350", "989", "1978", "1978", "-", "A"]
        )

    def test_one_target(self, run: Run) -> None:
        lines = run("targets", "rtx-4090").stdout.splitlines()
        memory = next(line for line in lines if line.startswith("memory_gb"))
        assert memory.split(maxsplit=4)[1:] == ["25.76", "1e9", "bytes", "24564 MiB reported by nvidia-smi"]

    def test_targets_as_json(self, run: Run) -> None:
        listed = json.loads(run("targets", "--json").stdout)
        assert listed["schema"] == 1
        assert [target["id"] for target in listed["targets"]] == list(target_names())
        one = json.loads(run("targets", "l4", "--json").stdout)
        assert one["schema"] == 1
        assert one["target"] in listed["targets"]

    def test_a_target_file(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "mine.yaml").write_text((folder("targets") / "l4.yaml").read_text())
        assert "bandwidth_gbs" in run("targets", str(tmp_path / "mine.yaml")).stdout

    def test_models(self, run: Run) -> None:
        lines = run("models").stdout.splitlines()
        row = next(line for line in lines if line.startswith("llama-3.1-8b "))
        assert row.split()[1:7] == ["8.03", "B", "8.03", "B", "32", "131072"]
        assert row.split()[-2:] == ["yes", "meta-llama/Llama-3.1-8B"]
        assert next(line for line in lines if line.startswith("mixtral-8x7b ")).split()[-2] == "yes"
        assert next(line for line in lines if line.startswith("deepseek-v3.2 ")).split()[-2] == "counted"

    def test_one_model(self, run: Run) -> None:
        text = run("models", "meta-llama/Llama-3.3-70B-Instruct").stdout
        assert "llama-3.1-70b" in text
        assert "num_key_value_heads" in text

    def test_models_as_json(self, run: Run) -> None:
        listed = json.loads(run("models", "--json").stdout)
        assert listed["schema"] == 1
        served = {model["id"]: (model["served"], bool(model["reason"])) for model in listed["models"]}
        assert served["qwen3-8b"] == ("yes", False)
        assert served["deepseek-v3.2"] == ("counted", True)
        one = json.loads(run("models", "qwen3-8b", "--json").stdout)
        assert one["model"] in listed["models"]


class TestSchema:
    def test_the_file_beside_the_examples_is_current(self, run: Run) -> None:
        """Regenerated by: infer-compile schema -o specs/schema.json"""
        assert (folder("specs") / "schema.json").read_text(encoding="utf-8") == run("schema").stdout

    def test_it_writes_a_file(self, run: Run, tmp_path: Path) -> None:
        path = tmp_path / "schema.json"
        assert run("schema", "-o", str(path)).stdout == ""
        assert json.loads(path.read_text()) == json_schema()

    def test_it_is_a_json_schema(self) -> None:
        Draft202012Validator.check_schema(json_schema())

    @pytest.mark.parametrize(
        "text",
        [
            "{model: {source: m, draft: none}, target: t, pin: {weights: q4_k_m, engine: llama.cpp}}",
            "{model: {source: m}, target: [t, u], cost: {usd_per_hour: {t: 1.5}, usd_per_kwh: 0.3}}",
            "{model: {source: m}, target: t, pin: {weights: {format: int8, group: 32}, kv: fp8}}",
            "{model: {source: m}, target: t, pin: {speculation: {method: eagle3, tokens: 3}}}",
            "{model: {source: m}, target: t, pin: {speculation: ngram, parallelism: {expert: 2}}}",
        ],
    )
    def test_an_editor_is_content_with_what_loads(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "s.yaml").write_text(text)
        Draft202012Validator(json_schema()).validate(read_document(tmp_path / "s.yaml").value)
        load(tmp_path / "s.yaml")

    @pytest.mark.parametrize("path", sorted(folder("specs").glob("*.yaml")), ids=lambda path: path.name)
    def test_the_examples_pass_the_schema_and_load(self, path: Path) -> None:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=schema.json"
        Draft202012Validator(json_schema()).validate(read_document(path).value)
        assert load(path).spec.name == path.stem

    @pytest.mark.parametrize("path", sorted(folder("specs").glob("llama-*.yaml")), ids=lambda path: path.name)
    def test_the_examples_of_known_models_have_a_plan_without_a_network(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, path: Path
    ) -> None:
        def refuse(*arguments: object) -> None:
            raise AssertionError("the network was asked")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        done = run("plan", str(path), "--format", "json")
        assert done.exit_code == Exit.DONE, done.output
        asked, plan = load(path).spec, json.loads(done.stdout)
        assert plan["target"]["id"] == asked.targets[0].device
        assert plan["limits"]["max_context"] == asked.workload.context_tokens

    @pytest.mark.parametrize(
        "text",
        [
            "{model: {source: m}}",
            "{model: {source: m}, target: 3}",
            "{model: {source: m}, target: {count: 2}}",
            "{model: {source: m}, target: t, workload: {input_tokens: 0}}",
            "{model: {source: m}, target: t, pin: {weights: int4-hqq}}",
            "{model: {source: m}, target: t, pin: {speculation: {tokens: 3}}}",
            "{model: {source: m}, target: t, cost: {usd_per_hour: {t: 0}}}",
            "{model: {source: m}, target: t, pin: {weights: {group: 32}}}",
            "{model: {source: m}, target: t, pin: {kv: tq5}}",
            "{model: {source: m}, target: t, extra: 1}",
            "{model: {source: m}, target: t, name: A B}",
        ],
    )
    def test_an_editor_sees_what_is_wrong(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "s.yaml").write_text(text)
        with pytest.raises(InferCompileError):
            load(tmp_path / "s.yaml")
        document = read_document(tmp_path / "s.yaml")
        assert not Draft202012Validator(json_schema()).is_valid(document.value)


class TestDoctor:
    def findings(self, run: Run) -> tuple[int, dict[str, dict[str, str]]]:
        done = run("doctor", "--json")
        fields = json.loads(done.stdout)
        assert fields["schema"] == 1
        return done.exit_code, {finding["check"]: finding for finding in fields["findings"]}

    def test_a_machine_that_lacks_nothing(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "find", lambda architecture: Toolchain(("g++",), "g++ 12", zig=False))
        status, found = self.findings(run)
        assert status == Exit.DONE
        assert "missing" not in {finding["status"] for finding in found.values()}
        assert found["compiler"]["message"] == "g++ 12"
        assert f" {len(os.sched_getaffinity(0))} cores" in found["processor"]["message"]
        lines = run("doctor").stdout.splitlines()
        assert "ok  compiler: g++ 12" in lines

    def test_no_compiler(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        status, found = self.findings(run)
        assert status == Exit.FAILED
        assert found["compiler"]["status"] == "missing"
        assert found["compiler"]["fix"] == f"{sys.executable} -m pip install ziglang"
        assert run("doctor").exit_code == Exit.FAILED

    def test_a_package_is_gone(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "_installed", lambda name: name not in ("uvicorn", "torch"))
        status, found = self.findings(run)
        assert status == Exit.FAILED
        assert found["packages"]["message"] == "uvicorn not installed"
        assert found["packages"]["fix"].endswith("-m pip install uvicorn")
        assert found["torch"]["status"] == "note"

    def test_a_processor_that_no_engine_knows(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "host_architecture", lambda: None)
        status, found = self.findings(run)
        assert status == Exit.FAILED
        assert found["compiler"]["status"] == "missing"

    @pytest.mark.parametrize(("isa", "says"), [("amx", "run emulated only"), ("avx512", "withholds")])
    def test_matrix_tiles(self, isa: Isa, says: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        flags = frozenset({"amx_tile", "amx_int8"})
        found = Processor("Xeon", "GenuineIntel", "x86-64", isa, flags, 2)
        monkeypatch.setattr(doctor, "processor", lambda: found)
        monkeypatch.setattr(cpu, "_keeps_tiles", lambda: isa == "amx")
        finding = self.findings(run)[1]["matrix tiles"]
        assert finding["status"] == "note" and says in finding["message"]

    def test_a_gpu(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "gpus", lambda binding: (Gpu("NVIDIA L4", 24 << 30, "8.9", 300),))
        assert self.findings(run)[1]["gpu"]["message"] == "NVIDIA L4, 24.0 GiB, compute capability 8.9"

    def test_a_driver_that_cannot_be_asked(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "nvml", lambda: None)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
        finding = self.findings(run)[1]["gpu"]
        assert finding["status"] == "note"
        assert finding["fix"].endswith("-m pip install nvidia-ml-py")

    def test_little_room(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(doctor, "LITTLE", 1 << 80)
        assert self.findings(run)[1]["disk"]["status"] == "note"
