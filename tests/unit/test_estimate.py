"""``infer-compile estimate``: points and tables, what their columns mean, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from infer_compile.cli.main import main
from infer_compile.planner.performance.estimate import COLUMNS
from infer_compile.planner.performance.query import query
from infer_compile.runtime.errors import InferCompileError

POINT = ("--model", "llama-3.1-8b", "--target", "h100-sxm", "--engine", "vllm")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["estimate", *arguments], catch_exceptions=False)


def point(*arguments: str) -> dict[str, Any]:
    ran = run(*POINT, *arguments, "--json")
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(ran.output)
    assert found.pop("schema") == 1
    return found


def table(tmp_path: Path, rows: list[dict[str, object]], *names: str) -> list[dict[str, str]]:
    given, out = tmp_path / "rows.csv", tmp_path / "out.csv"
    with given.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ran = run("--csv", str(given), "-o", str(out))
    assert ran.exit_code == 0, ran.output
    with out.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_columns_of_a_point() -> None:
    found = point("--batch", "8", "--input", "1000", "--output", "100")
    assert tuple(found) == COLUMNS
    for name in ("ttft_ms", "itl_ms", "e2e_s", "prefill_tps", "tokens_per_second"):
        assert found[name + "_low"] < found[name] < found[name + "_high"]
    assert found["e2e_s"] == pytest.approx((found["ttft_ms"] + 99 * found["itl_ms"]) / 1e3)
    assert found["tokens_per_second"] == pytest.approx(8 * 100 / found["e2e_s"])
    assert found["tokens_per_second_per_user"] == pytest.approx(1e3 / found["itl_ms"])


def test_a_static_batch_is_its_prompts_then_its_steps() -> None:
    found = point("--load", "static", "--batch", "16", "--input", "512", "--output", "64")
    assert found["e2e_s"] == pytest.approx((found["ttft_ms"] + 63 * found["itl_ms"]) / 1e3)
    assert found["prefill_tps"] == pytest.approx(16 * 512 / found["ttft_ms"] * 1e3)


def test_pure_decoding_and_pure_prefill() -> None:
    decoding = point("--load", "static", "--input", "0", "--output", "128")
    assert decoding["prefill_tps"] is None
    assert decoding["tokens_per_second"] == pytest.approx(decoding["tokens_per_second_per_user"])
    prompt = point("--load", "static", "--input", "512", "--output", "0")
    assert prompt["itl_ms"] is None and prompt["tokens_per_second"] is None
    assert prompt["prefill_tps"] == pytest.approx(512 / prompt["e2e_s"])


def test_a_rate_is_served_with_as_many_in_flight_as_it_takes() -> None:
    slow, fast = (point("--rate", rate, "--input", "500", "--output", "100") for rate in ("0.5", "5"))
    assert slow["tokens_per_second"] == pytest.approx(50, rel=1e-3)
    assert fast["tokens_per_second"] == pytest.approx(500, rel=1e-3)
    assert fast["itl_ms"] > slow["itl_ms"] and fast["ttft_ms"] > slow["ttft_ms"]


def test_more_devices_share_a_layer_except_in_llama_cpp(tmp_path: Path) -> None:
    base = {"model": "llama-3-70b", "target": "rtx-3090", "weights": "q4_k_m", "input": 0, "output": 128}
    base |= {"load": "static"}
    rows = [base | {"engine": engine, "count": count} for engine in ("llama.cpp", "vllm") for count in (1, 4)]
    one, four, single, split = table(tmp_path, rows)
    assert float(four["itl_ms"]) >= float(one["itl_ms"]) * 0.999
    assert float(four["memory_gib"]) < float(one["memory_gib"]) / 2
    assert float(split["itl_ms"]) < float(single["itl_ms"]) / 2


def test_devices_beyond_the_layout_stay_idle(tmp_path: Path) -> None:
    base = {"model": "llama-3.1-8b", "target": "h100-sxm", "engine": "vllm", "tensor": 2, "batch": 4}
    two, eight = table(tmp_path, [base | {"count": 2}, base | {"count": 8}])
    assert {name: two[name] for name in COLUMNS} == {name: eight[name] for name in COLUMNS}


def test_a_table_keeps_its_columns_and_answers_row_by_row(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"note": "a, b", "model": "llama-3.1-8b", "target": "h100-sxm", "batch": "", "expert": 0},
        {"note": "c", "model": "llama-3.1-9b", "target": "h100-sxm", "batch": 1},
        {"note": "d", "model": "llama-3.1-8b", "target": "h100-sxm", "batch": "many"},
        {"note": "e", "model": "llama-3.1-8b", "target": "h100-sxn", "batch": 1},
        {"note": "f", "model": "", "target": "h100-sxm", "batch": -1},
        {"note": "g", "model": "llama-3.1-8b", "target": "h100-sxm", "batch": "2.0"},
    ]
    found = table(tmp_path, rows, "note", "model", "target", "batch", "expert")
    assert [row["note"] for row in found] == ["a, b", "c", "d", "e", "f", "g"]
    assert [row["error"][:5] for row in found] == ["", "IC100", "IC041", "IC020", "IC040", ""]
    assert "IC041" in found[4]["error"]
    assert found[0]["itl_ms"] and not found[1]["itl_ms"]
    assert list(found[0]) == ["note", "model", "target", "batch", "expert", *COLUMNS, "error"]


def test_a_row_alone_and_in_a_table_is_the_same(tmp_path: Path) -> None:
    base: dict[str, object] = {"model": "mixtral-8x7b", "target": "a100-sxm-80gb", "engine": "vllm"}
    sizes = [(1, 1, 100, 50), (2, 64, 2000, 300), (4, 300, 8000, 1000), (8, 7, 0, 10)]
    rows = [base | {"tensor": t, "count": t, "batch": b, "input": i, "output": o} for t, b, i, o in sizes]
    together = table(tmp_path, rows)
    for row, answer in zip(rows, together, strict=True):
        alone = table(tmp_path, [row])[0]
        assert alone == answer


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--engine", "vlm"), "IC044"),
        (("--weights", "int5"), "IC045"),
        (("--kv", "fp9"), "IC046"),
        (("--kv", "ct3"), "IC049"),
        (("--kv", "ct3", "--engine", "vllm"), "IC049"),
        (("--engine", "native", "--weights", "nvfp4"), "IC045"),
        (("--engine", "native", "--weights", "fp8", "--target", "a100-sxm-80gb"), "IC045"),
        (("--batch", "0"), "IC041"),
        (("--rate", "-1"), "IC041"),
        (("--rate", "1", "--load", "static"), "IC042"),
        (("--input", "0", "--output", "0"), "IC043"),
        (("--model", "nothing"), "IC100"),
        (("--target", "raspberry-pi-5"), "IC048"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], code: str) -> None:
    with pytest.raises(InferCompileError) as caught:
        CliRunner().invoke(
            main, ["estimate", *POINT, *arguments], catch_exceptions=False, standalone_mode=False
        )
    assert [problem.code for problem in caught.value.problems] == [code]


def test_a_question_tells_all_that_is_wrong() -> None:
    with pytest.raises(InferCompileError) as caught:
        query({"model": "m", "batch": "x", "load": "bursty"})
    assert [problem.code for problem in caught.value.problems] == ["IC040", "IC041", "IC042"]
    assert caught.value.exit == 2


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    missing = run("--csv", str(tmp_path / "none.csv"))
    (tmp_path / "bare.csv").write_text("model\nllama-3.1-8b\n")
    lacking = run("--csv", str(tmp_path / "bare.csv"))
    for ran in (missing, lacking):
        assert ran.exit_code == 2 and "IC047" in ran.output
    assert run("--csv", str(tmp_path / "bare.csv"), "--batch", "4").exit_code == 2


def test_a_page_for_people() -> None:
    ran = run(*POINT, "--batch", "4")
    assert ran.exit_code == 0
    assert "tokens_per_second" in ran.output and "bottleneck" in ran.output
