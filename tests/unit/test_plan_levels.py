"""Cache levels in a plan: counted as they are stored, chosen by the rule, told side by side, refused by
name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from planning import card, cpu, gpu, load, spec, tiny

from infer_compile.catalog.facts import load_facts
from infer_compile.catalog.target import load_target
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.lower.lower import lower
from infer_compile.planner.explain.markdown import markdown
from infer_compile.planner.plan import Plan
from infer_compile.planner.search import plan
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.formats.kv import HEAD_DIMS, LEVELS, layer_cache
from infer_compile.spec.load import load as load_spec

FACTS = load_facts()
COMPRESSED = tuple(level for level in LEVELS if level != "bf16")
# Heads of 64, 96, 128 and 256 elements.
MODELS = {
    "qwen2.5-0.5b": card("qwen2.5-0.5b"),
    "heads-of-96": tiny(head_dim=96),
    "qwen3-0.6b": card("qwen3-0.6b"),
    "heads-of-256": tiny(head_dim=256),
}


def reason(made: Plan, key: str) -> str:
    return next(reason.why for reason in made.reasons if reason.key == key)


def refused(**fields: Any) -> str:
    model, target = fields.pop("model", tiny()), fields.pop("device", cpu())
    with pytest.raises(InferCompileError) as caught:
        plan(spec(**fields), model, target)
    assert caught.value.exit == Exit.INFEASIBLE
    return str(caught.value)


def test_the_catalog_and_the_engine_count_the_same_bits() -> None:
    for width in HEAD_DIMS:
        for level in LEVELS.values():
            assert FACTS.formats.of_kv(level, "native").bits(width) == pytest.approx(
                layer_cache(level, width).bits_per_element(width)
            )
            plane = layer_cache(level, width).keys
            assert FACTS.formats.of_kv(level).calibrated == plane.calibrated


def test_what_llama_cpp_calls_int8_takes_more() -> None:
    assert FACTS.formats.of_kv("int8", "llama.cpp").bits(128) == 8.5
    assert FACTS.formats.of_kv("int8", "native").bits(128) == 8 + 16 / 128


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_planned_is_what_is_stored(name: str, level: str) -> None:
    graph = MODELS[name]
    made = plan(spec(pin={"kv": level}), graph, cpu())
    assert (made.engine, made.kv.level, made.buildable) == ("native", level, True)
    layout = lower(graph, made).cache
    assert made.kv.bytes_per_token == layout.token_bytes
    # At most: values' transforms may be folded into the weights, as these tables have it.
    assert made.kv.table_bytes >= sum(table.bytes for table in layout.tables())
    assert bool(made.kv.table_bytes) == level.startswith("ct")
    assert (made.kv.packed_pages > 0) == (level != "bf16")
    pools = made.kv.exact_pages * layout.exact_page_bytes + made.kv.packed_pages * layout.packed_page_bytes
    held = made.predicted.memory_gib.kv * 2**30
    assert held == pytest.approx(pools + made.kv.table_bytes, rel=1e-3)
    assert (
        made.predicted.quality_loss_percent.high >= FACTS.quality.of_kv(level, graph.parameters).high
        if level != "bf16"
        else True
    )


def test_a_calibrated_level_takes_the_bytes_of_the_rotation_of_its_size() -> None:
    for width in HEAD_DIMS:
        for bits in (4, 3, 2):
            fitted, rotated = (layer_cache(LEVELS[f"{kind}{bits}"], width) for kind in ("ct", "tq"))
            assert fitted.token_bytes(width, 1) == rotated.token_bytes(width, 1)


class TestChoice:
    """8 GiB of bf16 cache of an 8-billion-parameter model; levels lose what the catalog says."""

    GRAPH = card("llama-3.1-8b")
    LOAD = load(context_tokens=16384, input_tokens=15000, output_tokens=1000, concurrency=4)

    def at(self, gigabytes: float, **fields: Any) -> Plan:
        return plan(spec(workload=self.LOAD, **fields), self.GRAPH, cpu(memory_gb=gigabytes))

    def test_with_room_nothing_is_compressed(self) -> None:
        short = load(context_tokens=2048, input_tokens=500, output_tokens=1000, concurrency=4)
        made = plan(spec(workload=short), self.GRAPH, cpu(memory_gb=64))
        assert made.kv.level == "bf16"
        assert "an exact cache keeps every limit" in reason(made, "kv")

    def test_eight_bits_make_long_prompts_faster(self) -> None:
        made = self.at(64)
        exact = next(one for one in made.levels if one.level == "bf16")
        assert made.kv.level == "int8"
        assert made.predicted.itl_ms < exact.itl_ms

    def test_where_memory_is_short_eight_bits_come_first(self) -> None:
        made = self.at(18)
        assert made.kv.level == "int8"
        assert "fewer than 8 bits are for a stated max_loss_percent" in reason(made, "kv")

    def test_and_four_before_two(self) -> None:
        tight = self.at(14.5)
        assert (tight.kv.level, tight.predicted.quality_loss_percent.expected <= 1) == ("ct4", True)
        told = reason(tight, "kv")
        assert "calibrated at build on text" in told and "the extra [torch]" in told
        assert "tq4 takes as many bytes, needs no calibration and is expected to lose 1.5 %" in told

    def test_a_stated_budget_lets_the_planner_go_as_deep_as_it_wins(self) -> None:
        stated = self.at(14.5, quality={"max_loss_percent": 2})
        assert stated.kv.level in ("ct3", "ct4")
        assert stated.predicted.quality_loss_percent.expected <= 2

    def test_of_two_of_a_size_the_one_that_loses_less(self) -> None:
        """As many bytes and nearly the same time: what calibration saves decides."""
        quality, pin = {"max_loss_percent": 60}, {"weights": "int8"}
        levels = [self.at(gigabytes, quality=quality, pin=pin).kv.level for gigabytes in (12, 12.5, 13, 16)]
        assert not any(level.startswith("tq") for level in levels)
        assert {"ct4", "ct3", "ct2"} & set(levels)

    def test_capacity_asks_for_memory(self) -> None:
        long = load(context_tokens=32768, input_tokens=30000, output_tokens=2000, concurrency=1)
        graph = card("qwen2.5-0.5b")
        made = plan(spec(workload=long, objective="capacity"), graph, cpu(memory_gb=4))
        usual = plan(spec(workload=long, objective="throughput"), graph, cpu(memory_gb=4))
        assert usual.kv.level == "int8" and made.kv.level == "ct4"
        assert made.limits.max_sequences > usual.limits.max_sequences

    def test_a_level_that_is_pinned_tells_its_twin(self) -> None:
        told = reason(self.at(64, pin={"kv": "tq3"}), "kv")
        assert told.startswith("pinned; ")
        assert told.endswith("ct3 takes as many bytes, is calibrated at build and is expected to lose 1.5 %")


class TestOnGpus:
    """Every level is served: what a rotation of 3 bits would lose is no reason to keep all of bf16."""

    LOAD = load(context_tokens=32768, input_tokens=16384, output_tokens=4096, concurrency=16)

    def at(self, device: str, **fields: Any) -> Plan:
        asked = spec(target=device, workload=self.LOAD, **fields)
        return plan(asked, card("llama-3.1-8b"), load_target(device, Path()))

    @pytest.mark.parametrize("device", ["rtx-3090", "h100-sxm"])
    def test_a_budget_of_a_percent_is_kept_by_a_calibrated_level(self, device: str) -> None:
        made = self.at(device, quality={"max_loss_percent": 1}, pin={"engine": "native"})
        assert [one.level for one in made.levels] == list(LEVELS)
        levels = {one.level: one for one in made.levels}
        assert "budget 1 %" in levels["tq3"].breaks
        assert made.kv.level == "ct4" and made.predicted.quality_loss_percent.expected <= 1
        assert levels["bf16"].tokens_per_second * 1.3 < made.predicted.tokens_per_second
        assert made.predicted.sources["itl_ms"].basis == "assumption"

    def test_fewer_bits_are_read_sooner(self) -> None:
        levels = {one.level: one for one in self.at("h200-sxm", pin={"engine": "native"}).levels}
        for kind in ("tq", "ct"):
            times = [levels[f"{kind}{bits}"].itl_ms for bits in (2, 3, 4)]
            assert times == sorted(times) and times[-1] < levels["fp8"].itl_ms < levels["bf16"].itl_ms


class TestSideBySide:
    def test_every_level_is_told_with_all_else_as_decided(self) -> None:
        made = plan(spec(), tiny(), cpu())
        assert [one.level for one in made.levels] == list(LEVELS)
        for one in made.levels:
            pinned = plan(spec(pin={"kv": one.level, "weights": made.weights.format}), tiny(), cpu())
            assert (one.bytes_per_token, one.bits_per_element) == (
                pinned.kv.bytes_per_token,
                pinned.kv.bits_per_element,
            )
            if pinned.limits == made.limits:
                assert one.itl_ms == pinned.predicted.itl_ms
                assert one.memory_gib == pinned.predicted.memory_gib.total
            assert one.calibrated == one.level.startswith("ct")
        (chosen,) = (one for one in made.levels if one.level == made.kv.level)
        assert (chosen.itl_ms, chosen.breaks) == (made.predicted.itl_ms, "")

    def test_what_a_level_breaks(self) -> None:
        graph = card("llama-3.1-8b")
        levels = {one.level: one for one in plan(spec(), graph, cpu(memory_gb=64)).levels}
        assert levels["tq3"].breaks == "8.05 %, budget 1 %"
        assert not levels["ct4"].breaks
        assert "| ct4 | 4.12 | 33,792 | " in markdown(plan(spec(), graph, cpu(memory_gb=64)))

    def test_not_where_there_is_one(self) -> None:
        assert plan(spec(pin={"kv": "tq3"}), tiny(), cpu()).levels == ()


class TestRefusals:
    @pytest.mark.parametrize("level", [level for level in COMPRESSED if level != "int8"])
    def test_by_the_heads(self, level: str) -> None:
        odd = tiny(head_dim=32)
        told = refused(pin={"kv": level}, model=odd)
        assert told.startswith(f"error[IC203]: kv level {level} cannot be served\n")
        assert "does not run tiny: head_dim 32; the attention kernels know 64, 96, 128, 256" in told
        assert told.endswith(f"llama.cpp b10142 has no kv level {level}\n  fix: kv: int8")

    def test_by_the_device(self) -> None:
        older = gpu(compute_capability="8.6")
        told = refused(pin={"kv": "fp8", "engine": "sglang"}, device=older, target="round-gpu")
        assert told == (
            "error[IC203]: kv level fp8 cannot be served\n"
            "  because: sglang: sglang has fp8 on NVIDIA devices from compute capability 8.9; "
            "AMD devices of gfx942, gfx950, not on a round card (8.6)\n"
            "  fix: kv: bf16"
        )

    def test_by_every_engine(self) -> None:
        told = refused(pin={"kv": "ct3"}, device=gpu(), target="round-gpu")
        for engine in ("tensorrt-llm 1.3", "vllm 0.26", "sglang 0.5.18", "llama.cpp b10142"):
            assert f"{engine} has no kv level ct3" in told
        assert "the native engine has not been run on a gpu" in told
        assert told.endswith("fix: kv: fp8")

    @pytest.mark.parametrize("level", [level for level in COMPRESSED if level != "fp8"])
    def test_by_the_pinned_engine(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
        monkeypatch.chdir(tmp_path)
        text = f"model: {{source: m}}\ntarget: l4\npin:\n  engine: sglang\n  kv: {level}\n"
        Path("chat.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(InferCompileError) as caught:
            load_spec(Path("chat.yaml"))
        others = "native or llama.cpp" if level == "int8" else "native"
        assert str(caught.value) == (
            f'error[IC014]: chat.yaml:5: kv level "{level}" is not served by engine "sglang"\n'
            "  because: sglang 0.5.18 serves bf16, fp8\n"
            f"  fix: kv: fp8, or engine: {others}"
        )


@pytest.fixture
def quickstart() -> Graph:
    folder = Path(__file__).resolve().parents[2] / "specs" / "models" / "quickstart"
    return build(json.loads((folder / "config.json").read_text()), "quickstart")


def test_the_quickstart_at_every_level(quickstart: Graph) -> None:
    for level in LEVELS:
        made = plan(spec(pin={"kv": level}), quickstart, cpu())
        assert made.kv.layers == (level,) * quickstart.cache_layers
