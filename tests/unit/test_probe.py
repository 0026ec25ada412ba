"""The probe: what is read of the machine, what is measured, and when it is measured again."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
from click.testing import CliRunner

from infer_compile.build.resolve import find_target
from infer_compile.catalog.target import Target, load_target, target_names
from infer_compile.cli.main import main
from infer_compile.probe import cpu, gpu, machine, measure
from infer_compile.probe.cgroup import cpu_quota, memory_limit
from infer_compile.probe.files import write_aside
from infer_compile.runtime.errors import InferCompileError
from infer_compile.spec.check import check
from infer_compile.spec.document import parse

ZEN4 = "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni"
CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9354
flags\t\t: fpu avx2 fma f16c

processor\t: 1
model name\t: another
"""


def test_the_first_processor_of_cpuinfo() -> None:
    fields = cpu.parse(CPUINFO)
    assert fields["model name"] == "AMD EPYC 9354"
    assert fields["flags"] == "fpu avx2 fma f16c"


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        (f"{ZEN4} amx_tile amx_int8 amx_bf16", "amx"),
        (f"{ZEN4} amx_tile amx_bf16", "avx512"),
        (ZEN4, "avx512"),
        # Skylake has no VNNI, and the engine's avx512 path needs it.
        (ZEN4.replace("avx512_vnni", ""), "avx2"),
        (ZEN4.replace("avx512dq", ""), "avx2"),
        ("avx2 fma f16c", "avx2"),
        ("avx2 fma", "portable"),
        ("sse4_2 avx", "portable"),
        ("", "portable"),
    ],
)
def test_an_instruction_set_is_there_whole_or_not(flags: str, isa: str) -> None:
    assert cpu.isa_of(frozenset(flags.split())) == isa


@pytest.mark.parametrize(("kept", "isa"), [(True, "amx"), (False, "avx512")])
def test_tiles_count_where_the_system_keeps_them(
    kept: bool, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_keeps_tiles", lambda: kept)
    assert cpu.isa_of(cpu.usable(frozenset(f"{ZEN4} amx_tile amx_int8".split()))) == isa
    assert cpu.usable(frozenset({"avx2"})) == {"avx2"}


def test_this_processor() -> None:
    found = cpu.processor()
    assert found.name and found.cores >= 1
    if found.architecture == "aarch64":
        assert found.isa == "portable"


def group(root: Path, **files: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name.replace("__", ".")).write_text(text + "\n")


def test_the_tightest_limit_of_the_control_groups_counts(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/pods/this\n")
    group(root, memory__max="max")
    group(root / "pods", memory__max="2000", cpu__max="150000 100000")
    group(root / "pods" / "this", memory__max="3000", cpu__max="max 100000")
    assert memory_limit(root, own) == 2000
    assert cpu_quota(root, own) == 1.5
    assert memory_limit(tmp_path / "none", own) is None and cpu_quota(root, tmp_path / "none") is None


def test_a_container_whose_own_path_is_hidden(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("0::/docker/0123\n")
    group(root, memory__max="5000", cpu__max="200000 100000")
    assert memory_limit(root, own) == 5000 and cpu_quota(root, own) == 2


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    root, own = tmp_path / "cgroup", tmp_path / "self"
    own.write_text("5:memory:/box\n4:cpu,cpuacct:/box\n")
    group(root / "memory" / "box", memory__limit_in_bytes="7000")
    group(root / "memory", memory__limit_in_bytes="9223372036854771712")
    group(root / "cpu,cpuacct" / "box", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    assert memory_limit(root, own) == 7000 and cpu_quota(root, own) == 0.5


def test_the_best_round_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 5.0, 5.0, 7.0, 7.0, 10.0, 10.0])
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    assert measure.best(lambda: None, seconds=0.0, rounds=3) == 2.0


def test_bandwidth_is_bytes_over_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_a_second(work: object) -> float:
        assert callable(work)
        work()
        return 0.5

    monkeypatch.setattr(measure, "best", half_a_second)
    # An eighth of the memory, in whole numbers of eight bytes for each of three cores.
    assert measure.bandwidth(3, 8 * 2400) == 2 * 2400
    assert measure.matrix_rate() == 2 * 2 * measure.MATRIX**3


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A cache folder of the test's own, and measurements that take no time but are counted."""
    measured: list[str] = []

    def bandwidth(cores: int, memory: int) -> float:
        measured.append("bandwidth")
        return 12.3456e9 * len(measured)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "bandwidth", bandwidth)
    monkeypatch.setattr(machine, "matrix_rate", lambda: 0.98765e12)
    monkeypatch.setattr(
        machine, "processor", lambda: cpu.Processor("a chip", "me", "x86-64", "avx2", frozenset(), 4)
    )
    monkeypatch.setattr(machine, "memory_bytes", lambda: 16_000_000_000)
    return measured


def test_this_machine_is_measured_once(counted: list[str], tmp_path: Path) -> None:
    first = machine.this_machine()
    assert first.measured and first.kind == "cpu" and first.cpu is not None
    assert (first.bandwidth_gbs, first.rates.bf16_tflops, first.memory_gb) == (12.3, 0.988, 16.0)
    assert (first.cpu.isa, first.cpu.cores) == ("avx2", 4)
    for figure in ("bandwidth_gbs", "rates.bf16_tflops", "memory_gb", "cpu"):
        assert first.source(figure)
    assert machine.this_machine() == first and len(counted) == 1
    kept = tmp_path / "cache" / "infer-compile" / "this-machine.yaml"
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
    assert load_target(str(kept), Path("/")) == first
    assert find_target("this-machine", Path(), "") == first


def test_what_was_kept_meanwhile_stands(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = machine.probe()
    monkeypatch.setattr(
        machine, "probe", lambda: machine.remember(measured).model_copy(update={"bandwidth_gbs": 1.0})
    )
    assert machine.this_machine() == measured


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processor", cpu.Processor("another chip", "me", "x86-64", "avx2", frozenset(), 4)),
        ("processor", cpu.Processor("a chip", "me", "x86-64", "avx2", frozenset(), 2)),
        ("processor", cpu.Processor("a chip", "me", "x86-64", "avx512", frozenset(), 4)),
        ("memory_bytes", 8_000_000_000),
    ],
)
def test_another_machine_is_measured_again(
    counted: list[str], monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    machine.this_machine()
    monkeypatch.setattr(machine, name, lambda: value)
    machine.this_machine()
    assert len(counted) == 2


def test_a_damaged_memory_is_mended(counted: list[str]) -> None:
    first = machine.this_machine()
    machine.cache_file().write_text("id: [broken")
    assert machine.this_machine().memory_gb == first.memory_gb and len(counted) == 2
    assert machine.recall() is not None


def test_figures_that_cannot_be_kept_are_an_error(counted: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(InferCompileError) as caught:
        machine.this_machine()
    assert caught.value.problems[0].code == "IC231" and "probe -o" in caught.value.problems[0].fix


def test_an_unknown_processor_is_refused(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    other = cpu.Processor("a mainframe", "me", None, "portable", frozenset(), 4)
    monkeypatch.setattr(machine, "processor", lambda: other)
    with pytest.raises(InferCompileError) as caught:
        machine.probe()
    assert caught.value.problems[0].code == "IC232"


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_aside(path, "first")
    write_aside(path, "second")
    assert path.read_text() == "second" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "folder").mkdir()
    with pytest.raises(InferCompileError) as caught:
        write_aside(tmp_path / "folder", "text")
    assert caught.value.problems[0].code == "IC230"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "plan.json"]


class Nvml(types.SimpleNamespace):
    """The driver's answers for one RTX 4090."""

    NVML_CLOCK_MEM = 2

    class NVMLError(Exception):
        pass

    def __init__(self, name: str = "NVIDIA GeForce RTX 4090") -> None:
        super().__init__()
        self.closed = False
        self.nvmlInit = lambda: None
        self.nvmlShutdown = lambda: setattr(self, "closed", True)
        self.nvmlDeviceGetCount = lambda: 1
        self.nvmlDeviceGetHandleByIndex = lambda index: index
        self.nvmlDeviceGetName = lambda handle: name.encode()
        self.nvmlDeviceGetCudaComputeCapability = lambda handle: (8, 9)
        self.nvmlDeviceGetMaxClockInfo = lambda handle, clock: 10501
        self.nvmlDeviceGetMemoryBusWidth = lambda handle: 384
        self.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(total=24564 << 20)


def test_a_gpu_as_the_driver_shows_it() -> None:
    binding = Nvml()
    (found,) = gpu.gpus(binding)  # type: ignore[arg-type]
    assert binding.closed
    assert found.name == "NVIDIA GeForce RTX 4090" and found.compute_capability == "8.9"
    # 1,008 GB/s by the datasheet.
    assert found.bandwidth == pytest.approx(1008e9, rel=1e-3)
    known = load_target("rtx-4090", Path())
    made = gpu.target(found, known)
    assert made.memory_gb == 25.76 and made.rates == known.rates and not made.measured
    assert "NVML" in made.source("memory_gb")
    # What the catalog does not know is left open, and is a target file all the same.
    unknown = gpu.target(found, None)
    assert unknown.rates.bf16_tflops is None and "bf16_tflops" in unknown.note
    assert check(Target, parse(machine.to_yaml(unknown), "gpu.yaml")) == unknown


def test_no_binding_or_no_driver_is_no_gpu() -> None:
    assert gpu.gpus(None) == ()
    binding = Nvml()

    def fail() -> None:
        raise binding.NVMLError

    binding.nvmlInit = fail
    assert gpu.gpus(binding) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("NVIDIA L40S", "l40s"),
        ("a card of tomorrow", None),
    ],
)
def test_the_drivers_name_in_the_catalog(name: str, target: str | None) -> None:
    assert gpu.match(gpu.Gpu(name, 1, "9.0", 1), target_names()) == target


def test_the_command(counted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("infer_compile.cli.probe.nvml", lambda: None)
    shown = CliRunner().invoke(main, ["probe"])
    assert shown.exit_code == 0
    assert check(Target, parse(shown.stdout, "probe")).bandwidth_gbs == 12.3
    assert "remembered in" in shown.stderr
    # Asked for, it measures anew, and that is what this-machine means from then on.
    written = CliRunner().invoke(main, ["probe", "-o", str(tmp_path / "box.yaml")])
    assert written.exit_code == 0 and len(counted) == 2
    assert load_target(str(tmp_path / "box.yaml"), Path()) == machine.this_machine()
    assert machine.this_machine().bandwidth_gbs == 24.7
    refused = CliRunner().invoke(main, ["probe", "--gpu"])
    assert refused.exit_code == 1 and "IC233" in refused.stderr


def test_the_command_with_a_gpu(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infer_compile.cli.probe.nvml", Nvml)
    shown = CliRunner().invoke(main, ["probe"])
    assert shown.exit_code == 0 and "target: rtx-4090" in shown.stderr
    described = CliRunner().invoke(main, ["probe", "--gpu"])
    assert check(Target, parse(described.stdout, "gpu")).compute_capability == "8.9"
    assert len(counted) == 1
