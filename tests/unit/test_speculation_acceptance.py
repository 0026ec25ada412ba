"""The catalog's acceptance is what the script makes of the measured accept lengths."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infer_compile.catalog.speculation import SpeculationFacts
from infer_compile.planner.speculation import expected_tokens

ROOT = Path(__file__).parents[2]
MEASURED = ROOT.parent / "shared/measurements/speculation.csv"
LENGTHS = Path(__file__).parent / "speculation_lengths.csv"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "speculation_acceptance", ROOT / "benchmarks/speculation_acceptance.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    path = ROOT / "compiler/infer_compile/catalog/speculation.yaml"
    found: list[dict[str, Any]] = yaml.safe_load(path.read_text(encoding="utf-8"))["acceptance"]
    return found


@pytest.fixture(scope="module")
def cited(script: ModuleType) -> list[Any]:
    """The curves of the committed table."""
    _, *lines = LENGTHS.read_text(encoding="utf-8").splitlines()
    curves: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in csv.DictReader(lines):
        curves.setdefault((row["method"], row["kind"]), []).append(row)
    return [
        script.Curves(
            *key,
            *(tuple(float(row[end]) for row in rows) for end in ("low", "expected", "high")),
            int(rows[0]["series"]),
        )
        for key, rows in curves.items()
    ]


def test_the_catalog_holds_what_the_cited_lengths_give(
    script: ModuleType, cited: list[Any], entries: list[dict[str, Any]]
) -> None:
    assert script.acceptance(cited) == entries


def test_rates_give_the_cited_lengths_back(cited: list[Any], entries: list[dict[str, Any]]) -> None:
    """Two rates describe a curve of eight lengths to within 4 %."""
    rates = {(one["method"], one["kind"]): one for one in entries}
    for curve in cited:
        for end in ("low", "expected", "high"):
            lengths = np.array(getattr(curve, end))
            again = expected_tokens(rates[curve.method, curve.kind][end], np.arange(1, len(lengths) + 1))
            assert again == pytest.approx(lengths, rel=0.04), (curve.method, curve.kind, end)


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured runs are not beside this checkout")
def test_the_measured_runs_give_the_cited_lengths_and_the_catalog(
    script: ModuleType, cited: list[Any], entries: list[dict[str, Any]]
) -> None:
    curves = script.summarise(script.series([*script.measured(MEASURED), *script.published()]))
    assert curves == cited
    assert script.acceptance(curves) == entries
    whole = yaml.safe_load(script.CATALOG.read_text(encoding="utf-8"))
    step, each, told = script.overhead(MEASURED, SpeculationFacts.model_validate(whole))
    assert whole["overhead"]["step_us"] == {"value": step, "basis": "published", "source": told}
    assert whole["overhead"]["pass_us"] == {"value": each, "basis": "published", "source": told}


@pytest.mark.skipif(not MEASURED.exists(), reason="the measured runs are not beside this checkout")
def test_writing_what_is_written_changes_nothing(
    script: ModuleType, cited: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = script.CATALOG.read_text(encoding="utf-8")
    copy = tmp_path / "speculation.yaml"
    copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(script, "CATALOG", copy)
    facts = SpeculationFacts.model_validate(yaml.safe_load(text))
    script.write(script.acceptance(cited), script.overhead(MEASURED, facts))
    assert copy.read_text(encoding="utf-8") == text


class TestFit:
    @given(st.floats(0.05, 1), st.integers(0, 99))
    def test_two_rates_are_found_again(self, first: float, later_percent: int) -> None:
        fit = sys.modules["speculation_acceptance"].fit
        later = later_percent / 100
        lengths = {k: float(expected_tokens([first] + [later] * 7, k)) for k in (1, 3, 5, 7)}
        assert fit(lengths) == pytest.approx((first, later), abs=2e-3)
        assert fit({3: lengths[3]}, later)[0] == pytest.approx(first, abs=1e-6)

    @pytest.fixture(autouse=True)
    def _loaded(self, script: ModuleType) -> None:
        """Hypothesis draws no fixtures of its own."""

    def test_a_kind_weighs_as_much_as_another(self, script: ModuleType) -> None:
        def one(kind: str, number: int) -> Any:
            return script.Series("eagle3", f"m{number}", "d", "s", kind, (0.5,) * 8)

        chosen = [one("chat", i) for i in range(4)] + [one("code", i) for i in range(30)] + [one("other", 0)]
        weights = script._weights(chosen)
        assert sum(weights[:4]) == pytest.approx(1) and sum(weights[4:34]) == pytest.approx(1)
        assert weights[-1] == pytest.approx(2 / 34)
        # One lone series does not speak for its kind.
        assert script._weights([one("chat", 0), *chosen[4:]])[0] == pytest.approx(1 / 4)

    def test_quantiles_of_equal_weights_are_the_usual_median(self, script: ModuleType) -> None:
        values = np.array([3.0, 1.0, 2.0])
        assert script.quantile(values, [1, 1, 1], 0.5) == 2
        assert script.quantile(values, [8, 1, 1], 0.5) > 2


class TestMeasured:
    HEAD = (
        "source,target_model,draft,method,engine,gpu,num_gpus,tp,batch_or_concurrency,dataset,k_or_tree,"
        "speedup,accept_len,notes"
    )

    def read(self, script: ModuleType, tmp_path: Path, *rows: str) -> list[Any]:
        path = tmp_path / "runs.csv"
        path.write_text("\n".join((self.HEAD, *rows)) + "\n", encoding="utf-8")
        found: list[Any] = script.measured(path)
        return found

    def test_trees_means_and_unknown_lengths_are_left_out(self, script: ModuleType, tmp_path: Path) -> None:
        rows = [
            f"bundle,M,D,EAGLE-3,SGLang,H200,,,8,{data},{shape},1.5,2.5,"
            for data, shape in (
                ("gsm8k", "steps=5 topk=3 draft_tokens=6"),
                ("mean", "K=3"),
                ("gsm8k", ""),
                ("gsm8k", "width x depth 2x3"),
                ("mtbench", "steps=3 topk=1 draft_tokens=4"),
                ("gsm8k", "2-3 draft tokens (verify)"),
            )
        ]
        found = self.read(script, tmp_path, *rows)
        assert [(run.tokens, run.kind) for run in found] == [(3, "chat"), (2, "reasoning")]

    def test_positions_count_to_the_length_of_the_run(self, script: ModuleType, tmp_path: Path) -> None:
        notes = "per-position acceptance (log): 0.58 0.31 0.16"
        (run,) = self.read(
            script, tmp_path, f"x,M,D,EAGLE-3,vLLM,H100,1,1,8,gsm8k,width x depth 1x2,1.2,,{notes}"
        )
        assert run.lengths == pytest.approx({1: 1.58, 2: 1.89})

    def test_a_task_of_spec_bench_is_scaled_by_its_speed(self, script: ModuleType, tmp_path: Path) -> None:
        rows = [
            f"hemingkx/Spec-Bench,V,,PLD,HF,A100,1,1,1,{data},method default,{gain},1.75,"
            for data, gain in (("mt-bench", 1.5), ("summarization", 2.5), ("translation", 0.5))
        ]
        found = self.read(script, tmp_path, *rows)
        assert [run.lengths[10] for run in found] == pytest.approx([1.75, 1.75 * 2.5 / 1.5, 1.0])
