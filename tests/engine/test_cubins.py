"""The kernels compiled ahead of time, without a GPU: a few of those in docs/cuda-kernels.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from infer_compile.catalog.cuda_kernels import KernelRun, KernelRuns, load_kernel_runs, sources_digest
from infer_compile.catalog.facts import load_facts

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "cuda-kernels.md"
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from cuda_kernels import loops, rows
from infer_compile.codegen.cubins import compile_kernel, disassemble
folder = Path({folder!r})
for row in rows():
    for capability in {wanted!r}.get(row.name, []):
        first = compile_kernel(row.variant, capability, folder)
        assert compile_kernel(row.variant, capability, folder) == first
        loop = max(loops(disassemble(first, folder))) if row.bits else 0
        print(json.dumps([row.name, capability, first.stack, len(first.cubin), loop, first.ptx[:400]]))
"""
WANTED = {
    "seal tq3": [90],
    "merge tq3": [120],
    "attend tq3, decode": [89],
    "attend tq3, chunks of a prompt": [80],
    "latent fp8, decode": [90],
    "skinny int4": [80],
}
PRODUCTS = ("attend ", "latent ", "skinny ")


def test_kernels_compile_without_a_gpu_and_do_not_spill(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="pip install triton")
    script = SCRIPT.format(benchmarks=str(ROOT / "benchmarks"), folder=str(tmp_path), wanted=WANTED)
    environment = {name: text for name, text in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "triton"), "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {name for name, *_ in found} == set(WANTED)
    for name, capability, stack, size, loop, ptx in found:
        assert stack == 0, name
        assert size > 1000
        assert f".target sm_{capability}" in ptx
        assert (loop > 100) == name.startswith(PRODUCTS)


def test_the_table_is_of_these_sources() -> None:
    text = TABLE.read_text()
    assert sources_digest() in text, "python benchmarks/cuda_kernels.py"
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert 30 < len(rows) <= 60
    assert {row[1] for row in rows} == {f"sm_{number}" for number in (80, 86, 87, 89, 90, 100, 120)}
    decode = [row for row in rows if re.match(r"\| (attend|latent) .*decode", row[0])]
    assert len(decode) > 20
    assert all(row[3] == "0" for row in rows)


def test_no_kernel_counts_as_verified_unless_it_was_run_as_it_is() -> None:
    now, before = (
        KernelRun(kernel="attend", digest=digest, compute_capability="9.0", source="drawn")
        for digest in (sources_digest(), "0" * 64)
    )
    assert KernelRuns(schema_version=1, runs=(before, now)).current == (now,)
    current = load_kernel_runs().current
    assert ("**Unverified**" in TABLE.read_text()) == (not current)
    native = next(engine for engine in load_facts().engines.engines if engine.name == "native")
    assert current or not native.on("gpu").verified
