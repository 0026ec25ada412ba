"""What measures on a GPU, run without one: the interpreter computes, a clock stands in for the device's."""

from __future__ import annotations

import interpreted  # noqa: F401  # before all that imports triton

# isort: split
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_attention  # noqa: E402
import gpu_decode  # noqa: E402
import gpu_start  # noqa: E402
from gpu_apart import apart  # noqa: E402
from gpu_peers import Absent, vllm  # noqa: E402
from gpu_subjects import Case, Heads, level_subject  # noqa: E402
from gpu_timer import Timer  # noqa: E402
from infer_compile.catalog.cuda_kernels import KernelRuns  # noqa: E402

RUNS = ROOT / "compiler" / "infer_compile" / "catalog" / "cuda_kernels.yaml"
CACHE = ["--kv-heads", "1", "--head-dim", "64", "--page-tokens", "16", "--copied", "3", "--groups", "2"]
SMALL = ["--device", "cpu", "--rounds", "1", "--alone", *CACHE]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def attention(work: Path, *words: str) -> tuple[int, list[dict[str, object]]]:
    out = work / "attention.json"
    status = gpu_attention.main([*SMALL, "--work", str(work), "--json", str(out), *words])
    return status, json.loads(out.read_text())["rows"]


def test_attention_is_held_to_pytorch_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs.yaml"
    shutil.copy(RUNS, runs)
    status, rows = attention(
        tmp_path, "--batches", "1", "--contexts", "110", "--levels", "bf16,tq3", "--record", str(runs)
    )
    said = capsys.readouterr().out
    assert status == 0, said
    ours = {row["subject"]: row for row in rows}
    assert all(0 < ours[level]["error"] < 0.02 for level in ("bf16", "tq3", "sdpa"))
    # One sink page and four recent ones, of 7; the last has 14 of its tokens.
    packed = 110 - (6 * 16 - 2)
    assert ours["tq3"]["bytes"] == (110 - packed) * 256 + packed * 2 * (64 * 3 // 8 + 2)
    assert ours["bf16"]["bytes"] == ours["sdpa"]["bytes"] == 110 * 256
    assert "flashinfer cannot be imported" in said and "of copy" in said
    found = KernelRuns.model_validate(yaml.safe_load(runs.read_text()))
    assert {run.kernel for run in found.current} == {"append", "seal", "query", "attend", "merge"}


def test_a_wrong_result_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is further off than is allowed is printed so, not timed and not recorded."""
    monkeypatch.setattr(gpu_attention, "TOLERANCE", 1e-9)
    runs = tmp_path / "runs.yaml"
    shutil.copy(RUNS, runs)
    words = ("--batches", "1", "--contexts", "20", "--levels", "bf16", "--peers", "", "--record", str(runs))
    status, rows = attention(tmp_path, *words)
    assert status == 1
    assert "WRONG" in capsys.readouterr().out
    assert "seconds" not in rows[0]
    assert runs.read_text() == RUNS.read_text()


def test_what_is_right_is_close_in_every_head() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3, 8, 64)
    found = expected.clone()
    assert gpu_attention.difference(found, expected) == 0
    found[2, 5] = expected[2, 4]
    assert gpu_attention.difference(found, expected) > 1
    found[2, 5] = float("nan")
    assert not gpu_attention.difference(found, expected) <= gpu_attention.TOLERANCE


def test_a_page_that_is_read_wrongly_is_found(tmp_path: Path) -> None:
    """What is expected is told page by page: of another place in the pool it is another."""
    subject = level_subject("tq3", Heads(1, 64, 16, 3), Case(2, 2, 110), "cpu", tmp_path, False)
    first, second = subject.expected()
    assert gpu_attention.difference(first[None], second[None]) > 10 * gpu_attention.TOLERANCE


def test_vllm_is_absent_by_name(tmp_path: Path) -> None:
    with pytest.raises(Absent, match=r"there is no v1/.*\.py in"):
        vllm(Heads(1, 64), Case(2, 1, 16), "cpu", tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


def test_decoding_by_its_parts(tmp_path: Path) -> None:
    out = tmp_path / "decode.json"
    words = [
        "--work",
        str(tmp_path),
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--rounds",
        "1",
        "--alone",
        "setups",
    ]
    status = gpu_decode.main([*words, "--setups", "bf16/bf16/1/20", "--chunk", "36", "--json", str(out)])
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert status == 0
    # Four matrices of 128 x 256, 128 x 128, 256 x 128 and 128 x 128, and the head of 64 x 128, in bf16.
    assert row["weight_bytes"] == 2 * (128 * 256 + 128 * 128 + 256 * 128 + 128 * 128 + 64 * 128)
    assert row["cache_bytes"] == 21 * 256
    parts = [row[name] for name in ("products", "attention", "rest")]
    assert all(part > 0 for part in parts) and sum(parts) < 2 * row["graph"]
    assert row["chunk"]["tokens"] == 36 and row["tokens_per_second"] == pytest.approx(1 / row["step"])
    text = gpu_decode.table({**found, "rows": [row, {"name": "x", "failed": "it broke"}]})
    assert "bf16/bf16/1/20" in text and "failed: it broke" in text


def test_the_start_adds_up(tmp_path: Path) -> None:
    given = gpu_decode.arguments().parse_args(["--work", str(tmp_path), "--shape", "tiny", "--device", "cpu"])
    engine = gpu_decode.stored(given, gpu_decode.Setup("bf16", "tq3", 1, 70))
    out = tmp_path / "start.json"
    gpu_start.main(
        ["--began", str(time.time()), "--engine", str(engine), "--device", "cpu", "--json", str(out)]
    )
    found = json.loads(out.read_text())
    assert {"imports", "weights", "device and kernels", "buffers", "first token"} <= found["spent"].keys()
    assert sum(found["spent"].values()) == pytest.approx(found["total"], rel=0.2, abs=0.1)


def test_what_fails_apart_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys, time\nif 'slow' in sys.argv: time.sleep(9)\nsys.exit('no such device')\n")
    assert apart(str(script), [], tmp_path / "out.json", 20) == ({}, "no such device")
    assert apart(str(script), ["slow"], tmp_path / "out.json", 1) == ({}, "took longer than 1 s")


class FakeCuda:
    """What a timer asks of torch.cuda; a device's clock that goes a millisecond at each event."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.clock = 0.0

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        own = SimpleNamespace(at=None)

        def record() -> None:
            self.clock += 1.0
            own.at = self.clock

        own.record, own.elapsed_time = record, lambda end: end.at - own.at
        return own

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.said.append("wait"))

    @contextmanager
    def entered(self, what: object) -> Iterator[None]:
        self.said.append("capture" if hasattr(what, "replay") else "aside")
        yield
        self.said.append("end")

    def put_in(self, monkeypatch: pytest.MonkeyPatch) -> None:
        graph = SimpleNamespace(replay=lambda: self.said.append("replay"))
        for name, put in {
            "Event": self.event,
            "Stream": self.stream,
            "current_stream": self.stream,
            "synchronize": lambda *_: self.said.append("synchronize"),
            "CUDAGraph": lambda: graph,
            "graph": self.entered,
            "stream": self.entered,
        }.items():
            monkeypatch.setattr(torch.cuda, name, put)


def test_a_graph_is_warm_before_it_is_captured_and_timed_by_events(monkeypatch: pytest.MonkeyPatch) -> None:
    timer, cuda = Timer("cpu", 3), FakeCuda()
    monkeypatch.setattr(Timer, "cuda", True)
    cuda.put_in(monkeypatch)
    assert timer.replayed(lambda: cuda.said.append("work")) == pytest.approx(1e-3)
    warm, _, rest = " ".join(cuda.said).partition("synchronize ")
    assert warm.split() == ["wait", "aside", *["work"] * 3, "end", "wait"]
    assert rest.split() == ["capture", "work", "end", "replay", "synchronize", *["replay"] * 3, "synchronize"]
