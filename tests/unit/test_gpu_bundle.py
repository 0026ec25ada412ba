"""Bundles for GPUs: what they hold, what they say, and what becomes of them on a machine without one."""

from __future__ import annotations

import ctypes
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_bundle
import pytest
import yaml
from test_build import pretend, run, tree
from test_gate_build import unpinned

from infer_compile.build import gate, inputs, phases, ship
from infer_compile.bundle.verify import verify
from infer_compile.evaluate.divergence import Divergence
from infer_compile.planner.plan import Plan
from infer_compile.runtime.errors import Exit, InferCompileError, Problem
from infer_compile.runtime.formats.launches import Cubins, StepTable
from infer_compile.runtime.formats.manifest import Engine
from infer_compile.runtime.formats.program import Program

TARGETS = {"h200-sxm": 90, "jetson-agx-orin-64gb": 87}


@pytest.fixture(scope="module", params=TARGETS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For one of two architectures; its folder has the target's name."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        gpu_bundle.built(gpu_bundle.write(folder, request.param), folder / request.param)
    return folder / request.param


def test_it_is_whole(bundle: Path) -> None:
    manifest, capability = verify(bundle), TARGETS[bundle.name]
    assert manifest.engine == Engine(kind="cuda", isa=f"sm_{capability}", verified=False)
    assert "triton" in manifest.toolchain and "c++" not in manifest.toolchain
    engine = bundle / "engine"
    assert {path.name for path in engine.iterdir()} == {
        "program.json",
        "step.json",
        "weights.bin",
        "kernels",
        f"sm_{capability}",
    }
    table = StepTable.from_json((engine / "step.json").read_text())
    cubins = Cubins.model_validate_json((engine / f"sm_{capability}" / "cubins.json").read_text())
    assert cubins.capability == capability
    assert cubins.kernels.keys() == {table.variant(launch) for launch in table.launches()}
    files = {path.name for path in (engine / f"sm_{capability}").glob("*.cubin")}
    assert files == {cubin.file for cubin in cubins.kernels.values()}
    assert {path.name for path in (engine / "kernels").iterdir()} > {"attend.py", "__init__.py"}
    assert [path.name for path in (bundle / "model").glob("*.safetensors")]


def test_it_says_that_no_gpu_ran_it(bundle: Path) -> None:
    plan = Plan.from_json((bundle / "plan.json").read_text())
    (reason,) = (reason for reason in plan.reasons if reason.key == "engine.kernels")
    assert reason.value == "unverified" and "not run on a GPU" in reason.why
    assert "**Unverified:**" in (bundle / "README.md").read_text()
    for form in ("table", "markdown"):
        said = run("plan", bundle.parent / "tiny.yaml", "--format", form).stdout
        assert "unverified" in said


def test_building_it_again_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another place"
    elsewhere.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        gpu_bundle.built(gpu_bundle.write(elsewhere, bundle.name), elsewhere / "out")
    assert tree(elsewhere / "out") == tree(bundle)


def test_its_files_have_no_complaint_of_the_linters(bundle: Path) -> None:
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is not None:
        done = subprocess.run([linter, bundle / "deploy" / "Dockerfile"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    kubernetes = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for path in sorted((bundle / "deploy" / "kubernetes").iterdir()):
        kubernetes.validate(yaml.safe_load(path.read_text()), kubernetes.latest_version(), strict=True)


def test_it_ships_the_engine_of_its_kind_alone(bundle: Path) -> None:
    runtime = bundle / "runtime"
    shipped = {path.relative_to(runtime).as_posix() for path in runtime.rglob("*.py")}
    root = ship.runtime_folder()
    assert shipped == set(ship.modules(root, "cuda"))
    processors = set(ship.modules(root, "cpu"))
    assert "engines/cuda.py" in shipped - processors and "engines/driver.py" in shipped - processors
    assert "engines/cpu.py" in processors - shipped
    assert "server/run.py" in shipped & processors
    assert not [path for path in shipped | processors if "reference" in path]


def test_its_image_has_pytorch_and_asks_for_a_gpu(bundle: Path) -> None:
    deploy = bundle / "deploy"
    requirements = (deploy / "requirements.txt").read_text()
    assert "\ntorch==" in requirements and "\nnvidia-ml-py==" in requirements and "+cpu" not in requirements
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in (deploy / "Dockerfile").read_text()
    compose = yaml.safe_load((deploy / "compose.yaml").read_text())
    (device,) = compose["services"]["tiny"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    pod = yaml.safe_load((deploy / "kubernetes" / "deployment.yaml").read_text())["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    preferred = pod["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    major, minor = (one["values"] for one in preferred[0]["preference"]["matchExpressions"])
    assert (major, minor) == tuple([digit] for digit in str(TARGETS[bundle.name]))
    assert "--gpus all" in (bundle / "README.md").read_text()


def test_the_pinned_pytorch_is_the_one_that_the_tests_run() -> None:
    root = Path(__file__).resolve().parents[2]
    pins = (ship.runtime_folder() / "requirements-cuda.txt").read_text().split()
    assert set((root / "constraints.txt").read_text().split()) <= set(pins)


def test_a_changed_cubin_is_found(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    first = min(copy.glob("engine/sm_*/*.cubin"))
    code = bytearray(first.read_bytes())
    code[-1] ^= 1
    first.write_bytes(code)
    with pytest.raises(InferCompileError, match=rf"IC421(.|\n)*{first.name}"):
        verify(copy)


def without_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False


@pytest.mark.skipif(not without_gpu(), reason="this machine has an NVIDIA driver")
def test_it_is_refused_where_there_is_no_driver(bundle: Path) -> None:
    """By its own runtime, from its own folder; before it listens."""
    pytest.importorskip("torch")
    command = [sys.executable, "-B", "-m", "runtime", "serve", "--port", "0"]
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error[IC524]"), done.stderr
    assert "listening" not in done.stderr and "Traceback" not in done.stderr
    verify(bundle)


def test_without_pytorch_it_is_refused_too(bundle: Path, tmp_path: Path) -> None:
    blocker = "import sys; sys.modules['torch'] = None\nimport importlib.util as u; f = u.find_spec\n"
    blocker += "u.find_spec = lambda name, package=None: None if name == 'torch' else f(name, package)\n"
    (tmp_path / "sitecustomize.py").write_text(blocker)
    command = [sys.executable, "-B", "-m", "runtime", "generate", "hello"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=bundle, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "IC529" in done.stderr and "not installed" in done.stderr


def test_what_the_kernels_do_not_run_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_bundle.without_compiler(monkeypatch.setattr)
    spec = gpu_bundle.write(tmp_path, "rtx-4090", intermediate_size=200)
    spec.write_text(spec.read_text().replace("{format: int4-rtn, group: 64}", "fp8"))
    done = run("build", spec, "-o", tmp_path / "out")
    assert done.exit_code == 1 and "IC315" in done.stderr and "no multiples of" in done.stderr
    assert not (tmp_path / "out.partial").exists()


def test_why_a_kernel_failed_comes_back_from_another_process() -> None:
    error = InferCompileError(Problem("IC314", "a kernel", because="of this"), Exit.MISMATCH)
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, again.exit, str(again)) == (error.problems, error.exit, str(error))


def test_without_triton_nothing_is_built(tmp_path: Path) -> None:
    """The interpreter in the compiler's place is as good as no compiler."""
    pytest.importorskip("triton")
    spec = gpu_bundle.write(tmp_path, "rtx-4090")
    command = [Path(sys.executable).with_name("infer-compile"), "build", spec, "-o", tmp_path / "out"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "IC313" in done.stderr
    assert not (tmp_path / "out.partial").exists()


def test_its_quality_is_measured_with_the_same_program_on_a_processor_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def gauge(engine: Path, reference: Path, *rest: object) -> Divergence:
        measured.append(f"{engine.name}, {reference.name}")
        program = (engine / "program.json").read_text()
        assert program == (engine.parent / "engine" / "program.json").read_text()
        assert (engine / "libengine.so").is_file()
        return Divergence(100, 1, 20, 20, 0.5, 0.01, 0.005, 0.1, 0.9)

    gpu_bundle.without_compiler(monkeypatch.setattr)
    monkeypatch.setattr(phases, "emit", pretend)
    monkeypatch.setattr(gate, "gauge", gauge)
    monkeypatch.setattr(gate, "write_reference", lambda *words: words[-1].mkdir())
    spec, out = gpu_bundle.write(tmp_path, "rtx-4090"), tmp_path / "out"
    (tmp_path / "text.txt").write_text("a text of letters " * 40)
    spec.write_text(spec.read_text() + "quality: {max_loss_percent: 20, evaluation: text.txt}\n")
    said = gpu_bundle.built(spec, out)
    assert measured == ["stand-in, reference"]
    assert "compiled for this processor, not on the device" in said
    found = Plan.from_json((out / "plan.json").read_text()).measured
    assert found is not None and found.stand_in and found.quality_loss_percent == 0.5
    assert "not on the device" in (out / "README.md").read_text()
    assert {"c++", "triton"} <= verify(out).toolchain.keys()
    assert not (out / "stand-in").exists() and not (out / "reference").exists()
    assert "up to date" in gpu_bundle.built(spec, out) and len(measured) == 1


def test_layers_that_were_raised_are_read_at_their_own_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second layer takes most of the loss: it alone is raised."""

    lost = {"tq2": 1.0, "tq3": 0.5, "bf16": 0.0}, {"tq2": 5.0, "tq3": 0.5, "bf16": 0.0}

    def gauge(engine: Path, *rest: object) -> Divergence:
        layers = Program.from_json((engine / "program.json").read_text()).cache.layers
        loss = sum(parts[layer.level] for parts, layer in zip(lost, layers, strict=True))
        return Divergence(100, 1, 20, 20, loss, 0.01, loss / 100, 0.1, 0.9)

    gpu_bundle.without_compiler(monkeypatch.setattr)
    monkeypatch.setattr(phases, "emit", pretend)
    monkeypatch.setattr(gate, "gauge", gauge)
    monkeypatch.setattr(gate, "write_reference", lambda *words: words[-1].mkdir())
    monkeypatch.setattr(inputs, "_gate", unpinned)
    spec, out = gpu_bundle.write(tmp_path, "rtx-3090"), tmp_path / "out"
    (tmp_path / "text.txt").write_text("a text of letters " * 40)
    said = spec.read_text().replace("kv: tq3", "kv: tq2")
    spec.write_text(said + "quality: {max_loss_percent: 2, evaluation: text.txt}\n")
    gpu_bundle.built(spec, out)
    verify(out)
    assert Plan.from_json((out / "plan.json").read_text()).kv.layers == ("tq2", "tq3")
    table = StepTable.from_json((out / "engine" / "step.json").read_text())
    program = Program.from_json((out / "engine" / "program.json").read_text())
    for kernel in ("seal.seal", "attend.attend"):
        launches = [each for each in table.launches() if each.kernel == kernel]
        bits = [each.constants["KEYS"][0][3] for each in launches]
        places = [each.numbers["packed_place"] for each in launches]
        assert bits == sorted(bits) and set(bits) == {2, 3}
        before = program.cache.layers[0].token_bytes(program.cache.head_dim, program.cache.kv_heads)
        assert set(places) == {0, before * program.cache.page_tokens // 4}
        assert len({table.variant(each) for each in launches}) == len(launches)


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from hashlib import sha256
from test_gpu_step import program, step_table
from infer_compile.codegen import gpu_cubins, nvrtc
quick = ("append.append", "gather.gather", "norm.norm")
def few(launch):
    return launch.kernel in quick or gpu_cubins.by_nvrtc(launch) and nvrtc.installed()
table = step_table(program())
launches = [launch for launch in table.launches() if few(launch)]
gpu_cubins.processes = lambda: int(sys.argv[2])
place = sys.argv[1].rpartition("/tests/")[0].encode()
for made in gpu_cubins.compiled(table, launches, 89, [launch.kernel for launch in launches]):
    assert b".py" not in made.code and place not in made.code, made.cubin
    print(made.cubin, sha256(made.code).hexdigest())
"""


def test_compiled_again_kernels_are_the_same_bytes_and_name_no_place(tmp_path: Path) -> None:
    """In this process, and in two of its own."""
    pytest.importorskip("triton", reason="pip install triton")
    said = []
    for cache, processes in (("one", "1"), ("another", "2")):
        environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(tmp_path / cache), "PYTHONWARNINGS": "ignore"}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), processes]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].count("\n") > 3
