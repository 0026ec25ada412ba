"""What is made of figures that were measured on a GPU: tables, goals, the planner's constants, records."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_attention  # noqa: E402
import gpu_decode  # noqa: E402
from gpu_coefficients import entry, rates  # noqa: E402
from gpu_record import EVERY, record  # noqa: E402
from infer_compile.catalog.coefficients import Calibration  # noqa: E402
from infer_compile.catalog.cuda_kernels import sources_digest  # noqa: E402
from infer_compile.catalog.target import load_target  # noqa: E402

CACHE_KERNELS = ("append", "seal", "query", "attend", "merge")
RUNS = ROOT / "compiler" / "infer_compile" / "catalog" / "cuda_kernels.yaml"
COPIED = 4.3e12


def row(subject: str, group: int, batch: int, context: int, seconds: float, bytes_: int) -> dict[str, Any]:
    return {
        "subject": subject,
        "group": group,
        "batch": batch,
        "context": context,
        "seconds": seconds,
        "gbs": bytes_ / seconds / 1e9,
        "of_copy": bytes_ / seconds / COPIED,
        "bound": bytes_ / COPIED,
        "bound_by": "bytes",
        "bytes": bytes_,
        "error": 0.004,
    }


def test_a_subject_s_process_is_told_the_same(tmp_path: Path) -> None:
    words = [
        "--work",
        str(tmp_path),
        "--groups",
        "4",
        "--contexts",
        "4096,32768",
        "--rounds",
        "5",
        "--source",
    ]
    given = gpu_attention.arguments().parse_args(words)
    told = [str(word) for word in gpu_attention.words_of(given, "sdpa", 65)]
    own = gpu_attention.arguments().parse_args(told)
    assert (own.levels, own.peers, own.alone, own.minutes) == ((), ("sdpa",), True, 1.0)
    same = (
        "work",
        "vllm",
        "groups",
        "batches",
        "contexts",
        "rounds",
        "source",
        "device",
        "kv_heads",
        "copied",
    )
    assert {name: getattr(own, name) for name in same} == {name: getattr(given, name) for name in same}


def test_the_table_names_what_is_wrong_absent_or_left_out() -> None:
    rows = [
        row("tq3", 4, 32, 32768, 1e-3, 10**9),
        row("flashinfer-bf16", 4, 32, 32768, 2.5e-3, 4 * 10**9),
        {"subject": "fp8", "group": 4, "batch": 32, "context": 32768, "error": 0.5},
        {"subject": "bf16", "group": 4, "batch": 32, "context": 32768, "skipped": "takes 99 GiB"},
        {"subject": "vllm-3bit", "failed": "it broke"},
    ]
    found = {"device": "a device", "copy_gbs": 4300.0, "replay_us": 2.0, "rounds": 3, "rows": rows}
    said = gpu_attention.table(found)
    assert "WRONG: differs by 0.5" in said and "skipped: takes 99 GiB" in said
    assert "vllm-3bit: failed: it broke" in said
    assert "goal: tq3 3.0 times flashinfer-bf16 at 32 x 32768: 2.50, MISSED" in said
    assert "goal: tq3 5.0 times vllm-3bit at 32 x 32768: no figure" in said
    rows[0]["kernels"] = ["seal", "decode"]
    assert gpu_attention.verified(rows) == ()
    assert gpu_attention.verified([rows[0], rows[1], rows[4]]) == ("seal", "decode")


def test_goals_of_decoding() -> None:
    def decoded(name: str, rate: float, share: float) -> dict[str, Any]:
        return {"name": name, "graph": 1e-3, "tokens_per_second": rate, "of_copy": share}

    said = gpu_decode.goals(
        [
            decoded("bf16/bf16/1/1024", 200, 0.81),
            decoded("int4-rtn/bf16/1/1024", 500, 0.5),
            decoded("int4-rtn/bf16/32/16384", 1000, 0.7),
            decoded("int4-rtn/tq3/32/16384", 1600, 0.6),
        ]
    )
    assert [line.rsplit(" ", 1)[-1] for line in said] == ["met", "MISSED", "met"]


def measured() -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a device that reads at 4.3e12 bytes a second and multiplies at a tenth of its rate when decoding."""
    numbers, rate = 2 * 32 * 32768 * 8 * 128, 98.9e12

    def took(group: int, bytes_: float) -> float:
        return bytes_ / COPIED + group * 2 * numbers / rate

    attention = [
        row(level, group, 32, 32768, took(group, numbers * size), int(numbers * size))
        for level, size in (("bf16", 2), ("tq3", 0.4), ("sdpa", 2))
        for group in (4, 8)
    ]
    decode = [
        {
            "setup": {"weights": weights, "level": "bf16", "batch": batch, "depth": 1024},
            "step": 5e-3 + 1e-5 * batch,
            "graph": 4.9e-3,
            "rest": 3.2e-4,
            "products": size / COPIED + 1e-4 * (batch > 1),
            "weight_bytes": size,
            "product_flops": 1.6e10 * batch,
            "layers": 32,
        }
        for weights, size in (("bf16", 15e9), ("int4-rtn", 4.5e9))
        for batch in (1, 32)
    ]
    chunk = {"products": 0.1, "attention": 0.01, "product_flops": 3.2e13, "attention_flops": 1e12}
    decode[0]["chunk"] = {"tokens": 2048, **chunk}
    about = {"device": "H200", "date": "2026-01-01"}
    return {**about, "rows": attention}, {**about, "rows": decode}


def test_constants_are_what_was_measured() -> None:
    target = load_target("h200-sxm", Path())
    found = rates(*measured(), target)
    share = pytest.approx(COPIED / 4.8e12, abs=2e-3)
    assert found["cache_efficiency"] == {"other": share, "bf16": share, "tq3": share}
    assert found["decode_attention_efficiency"] == pytest.approx(0.1, abs=1e-3)
    assert found["weight_efficiency"] == {"other": share, "bf16": share, "int4-rtn": share}
    assert found["matrix_efficiency"] == {"other": pytest.approx(3.2e14 / 989e12, abs=1e-3)} | {
        "bf16": pytest.approx(3.2e14 / 989e12, abs=1e-3)
    }
    assert found["layer_us"] == pytest.approx(10) and found["step_us"] == pytest.approx(110)
    assert found["sequence_us"] == pytest.approx(10)


def test_constants_are_an_entry_of_the_catalog() -> None:
    text = entry(*measured(), load_target("h200-sxm", Path()))
    (fields,) = yaml.safe_load(text)
    calibration = Calibration.model_validate(fields)
    assert (calibration.engine, calibration.device_class, calibration.devices) == (
        "native",
        "hopper",
        ("h200-sxm",),
    )
    assert "# Not measured, as the prior has it: coded_attention" in text


def test_runs_are_recorded_as_the_sources_are_now(tmp_path: Path) -> None:
    path = tmp_path / "runs.yaml"
    shutil.copy(RUNS, path)
    head = path.read_text()[: path.read_text().index("runs:")]
    record(path, EVERY, "9.0", "tests on a device")
    record(path, CACHE_KERNELS, "8.9", "another device")
    found = record(path, CACHE_KERNELS, "9.0", "a benchmark")
    assert path.read_text().startswith(head)
    assert {run.digest for run in found.runs} == {sources_digest()}
    assert sorted((run.kernel, run.compute_capability) for run in found.runs) == sorted(
        [(kernel, "9.0") for kernel in EVERY] + [(kernel, "8.9") for kernel in CACHE_KERNELS]
    )
    assert {run.source for run in found.runs if run.kernel == "attend"} == {"another device", "a benchmark"}
    path.write_text(path.read_text().replace(sources_digest(), "ab" * 32))
    assert len(record(path, CACHE_KERNELS, "9.0", "later").runs) == len(CACHE_KERNELS)
