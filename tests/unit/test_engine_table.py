"""What engines serve: the table, its traps, the words of a refusal, the page made from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from planning import card, tiny
from pydantic import ValidationError

from infer_compile.catalog.engines import Architectures, Devices, Engine, EngineKind, Engines, load_engines
from infer_compile.catalog.model import card_names
from infer_compile.catalog.target import Target, load_target, target_names
from infer_compile.graph.build import ARCHITECTURES, COUNTED
from infer_compile.graph.graph import Graph
from infer_compile.planner import support
from infer_compile.runtime.formats.kv import LEVELS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def engines() -> Engines:
    return load_engines()


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    return {name: load_target(name, Path()) for name in target_names()}


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    return {name: card(name) for name in card_names()}


class TestTable:
    def test_the_order_is_the_preference_among_equals(self, engines: Engines) -> None:
        assert engines.names == ("native", "tensorrt-llm", "vllm", "sglang", "llama.cpp")

    def test_every_class_of_a_model_is_one_that_is_counted(self, engines: Engines) -> None:
        known = {*ARCHITECTURES, *COUNTED}
        for engine in engines.engines:
            parts = (engine.weights, engine.kv, engine.speculation)
            named = {name for part in parts for needs in part.values() for name in needs.architectures}
            assert {*engine.architectures.served, *named} <= known, engine.name
            assert engine.architectures.own or named <= set(engine.architectures.served), engine.name

    def test_an_engine_has_memory_figures_for_every_kind_that_it_runs_on(
        self, engines: Engines, targets: dict[str, Target]
    ) -> None:
        for engine in engines.engines:
            for target in targets.values():
                if any(support.fits(target, devices) for devices in engine.devices):
                    assert engine.on(target.kind).kind == target.kind
        with pytest.raises(KeyError):
            engines.of("vllm").on("cpu")
        with pytest.raises(KeyError):
            engines.of("ollama")

    def test_only_our_own_engine_has_a_step_that_was_not_run(self, engines: Engines) -> None:
        unverified = {(e.name, kind.kind) for e in engines.engines for kind in e.kinds if not kind.verified}
        assert unverified == {("native", "gpu"), ("native", "unified")}
        assert {engine.name: engine.builds for engine in engines.engines if engine.builds} == {
            "native": ("cpu", "gpu", "unified")
        }

    def test_activations_are_known_where_they_are_not_counted(self, engines: Engines) -> None:
        for engine in engines.engines:
            for kind in engine.kinds:
                assert (kind.activations is None) == engine.architectures.own
                if kind.activations:
                    assert 1 in kind.activations.factor
                    assert kind.activations.factor.keys() == kind.activations.mixture_factor.keys()

    def test_what_cannot_be_is_refused(self, engines: Engines) -> None:
        with pytest.raises(ValidationError, match="compute capability"):
            Devices(least="Ampere")
        with pytest.raises(ValidationError, match="not among those served"):
            Architectures(served=("A",), assumed=("B",), source="a test")
        fields = engines.of("native").on("cpu").model_dump()
        fields["memory_fraction"]["value"] = 1.1
        with pytest.raises(ValidationError, match="at most 1"):
            EngineKind.model_validate(fields)


class TestDevices:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [("rtx-4090", (8, 9)), ("b200-sxm", (10, 0)), ("mi300x", "gfx942"), ("m4-10-core", "Metal")],
    )
    def test_generations(self, targets: dict[str, Target], name: str, expected: object) -> None:
        assert support.capability(targets[name]) == expected

    def test_a_processor_has_none(self, targets: dict[str, Target]) -> None:
        assert support.capability(targets["raspberry-pi-5"]) == ""

    def test_ten_is_later_than_nine(self, targets: dict[str, Target]) -> None:
        hopper = Devices(vendor="NVIDIA", least="9.0", most="9.0")
        fitting = {name for name, target in targets.items() if support.fits(target, hopper)}
        assert "h100-sxm" in fitting
        assert not fitting & {"b200-sxm", "rtx-4090", "mi300x", "m4-10-core"}

    def test_every_device_of_the_catalog_but_these_has_an_engine(
        self, engines: Engines, targets: dict[str, Target]
    ) -> None:
        graph = card("llama-3.1-8b")
        without = {
            name
            for name, target in targets.items()
            if all(support.refusal(engine, graph, target) for engine in engines.engines)
        }
        assert without == {"gaudi-3", "tpu-v5e", "tpu-v5p", "tpu-v6e"}


class TestModels:
    @pytest.mark.parametrize("name", card_names())
    def test_every_model_of_the_catalog_runs_somewhere(
        self, engines: Engines, targets: dict[str, Target], graphs: dict[str, Graph], name: str
    ) -> None:
        target = targets["b200-sxm"]
        runs = [e for e in engines.engines if not support.refusal(e, graphs[name], target)]
        assert runs
        for engine in runs:
            assert "bf16" in support.weights(engine, graphs[name], target)
            assert "bf16" in support.levels(engine, graphs[name], target)
            assert support.methods(engine, graphs[name], target)[0] == "none"

    @pytest.mark.parametrize(
        ("model", "engine", "words"),
        [
            ("deepseek-v3.2", "native", "our own engine does not run deepseek-v3.2: keys that an index"),
            ("qwen3.5-27b", "native", "our own engine does not run qwen3.5-27b: "),
            ("gemma-2-9b", "tensorrt-llm", "tensorrt-llm 1.3 does not run Gemma2ForCausalLM"),
            ("mimo-7b", "llama.cpp", "llama.cpp b10142 does not run MiMoForCausalLM"),
        ],
    )
    def test_a_model_that_an_engine_lacks(
        self, engines: Engines, targets: dict[str, Target], model: str, engine: str, words: str
    ) -> None:
        assert support.refusal(engines.of(engine), card(model), targets["h100-sxm"]).startswith(words)

    def test_a_device_that_an_engine_does_not_run_on(
        self, engines: Engines, targets: dict[str, Target]
    ) -> None:
        graph, apple = tiny(), targets["m4-10-core"]
        assert support.refusal(engines.of("native"), graph, apple) == (
            "native runs on processors; NVIDIA GPUs and chips with unified memory from compute capability "
            f"8.0, not on {apple.name} (Metal)"
        )
        assert support.refusal(engines.of("llama.cpp"), graph, apple) == ""

    def test_several_machines(self, engines: Engines, targets: dict[str, Target]) -> None:
        alone = [e.name for e in engines.engines if support.refusal(e, tiny(), targets["h100-sxm"], 2)]
        assert alone == ["native", "llama.cpp"]
        assert support.refusal(engines.of("native"), tiny(), targets["h100-sxm"], 2) == (
            "native runs on one machine"
        )

    def test_a_model_that_some_devices_run(self, engines: Engines, targets: dict[str, Target]) -> None:
        graph, trtllm = card("deepseek-v4-flash"), engines.of("tensorrt-llm")
        assert support.refusal(trtllm, graph, targets["b200-sxm"]) == ""
        assert "compute capability 10.0" in support.refusal(trtllm, graph, targets["h100-sxm"])


class TestFormats:
    def served(self, engine: Engine, graph: Graph, target: Target) -> set[str]:
        return set(support.weights(engine, graph, target))

    @pytest.mark.parametrize("name", ["b300-sxm", "gb300", "b200-sxm", "rtx-5090"])
    def test_no_int8_products_on_blackwell(
        self, engines: Engines, targets: dict[str, Target], name: str
    ) -> None:
        graph = card("llama-3.1-8b")
        for engine in engines.engines:
            own = engine.architectures.own
            assert own or "int8" not in self.served(engine, graph, targets[name]), engine.name

    def test_fp8_by_generation(self, engines: Engines, targets: dict[str, Target]) -> None:
        graph = card("llama-3.1-8b")
        have = {
            name: [e.name for e in engines.engines if "fp8" in self.served(e, graph, targets[name])]
            for name in ("t4", "a100-sxm-80gb", "rtx-4090", "h100-sxm", "mi300x", "m4-10-core")
        }
        assert have == {
            "t4": [],
            "a100-sxm-80gb": ["vllm", "sglang"],
            "rtx-4090": ["native", "tensorrt-llm", "vllm", "sglang"],
            "h100-sxm": ["native", "tensorrt-llm", "vllm", "sglang"],
            "mi300x": ["vllm", "sglang"],
            "m4-10-core": [],
        }

    def test_mxfp4_is_for_the_model_that_was_trained_in_it(
        self, engines: Engines, targets: dict[str, Target]
    ) -> None:
        hopper = targets["h100-sxm"]
        for engine in engines.engines[1:]:
            assert "mxfp4" in self.served(engine, card("gpt-oss-20b"), hopper)
            assert "mxfp4" not in self.served(engine, card("llama-3.1-8b"), hopper)
            why = support.why_not(engine, card("llama-3.1-8b"), hopper, "weights", "mxfp4")
            assert why == f"{engine.name} has mxfp4 for GptOssForCausalLM, not for LlamaForCausalLM"

    def test_ggufs_are_for_llama_cpp_alone(self, engines: Engines, targets: dict[str, Target]) -> None:
        have = [e.name for e in engines.engines if "q4_k_m" in self.served(e, tiny(), targets["l4"])]
        assert have == ["llama.cpp"]

    def test_matrices_that_do_not_divide_into_groups(
        self, engines: Engines, targets: dict[str, Target]
    ) -> None:
        why = support.why_not(engines.of("vllm"), card("gpt-oss-20b"), targets["l4"], "weights", "int4-awq")
        assert why == (
            "layers.0.attention.qkv of gpt-oss-20b has 2880 inputs; int4-awq needs a multiple of 128"
        )

    def test_a_name_that_an_engine_does_not_know(self, engines: Engines, targets: dict[str, Target]) -> None:
        why = support.why_not(engines.of("vllm"), tiny(), targets["l4"], "kv", "tq3")
        assert why == "vllm 0.26 has no kv level tq3"


class TestLevels:
    def test_heads_that_the_rotation_is_made_for(self, engines: Engines, targets: dict[str, Target]) -> None:
        native, target = engines.of("native"), targets["raspberry-pi-5"]
        assert support.levels(native, tiny(), target) == tuple(LEVELS)
        odd = tiny(head_dim=32)
        assert support.levels(native, odd, target) == ("bf16",)
        assert support.why_not(native, odd, target, "kv", "ct3") == (
            "heads of tiny have 32 elements; kernels of the cache take 64, 96, 128, 256"
        )

    @pytest.mark.parametrize("name", ["rtx-3090", "a100-sxm-80gb", "jetson-orin-nano-8gb", "rtx-4090"])
    def test_every_kernel_for_gpus_reads_them_all(
        self, engines: Engines, targets: dict[str, Target], name: str
    ) -> None:
        """Without arithmetic of 8-bit floats too: the kernels open them by whole numbers."""
        assert support.levels(engines.of("native"), tiny(), targets[name]) == tuple(LEVELS)

    def test_latent_attention_in_fp8(self, engines: Engines, targets: dict[str, Target]) -> None:
        graph, sparse = card("deepseek-v3"), card("deepseek-v3.2")
        for name in ("tensorrt-llm", "vllm", "sglang"):
            engine = engines.of(name)
            assert "fp8" in support.levels(engine, graph, targets["h200-sxm"])
            assert "fp8" not in support.levels(engine, graph, targets["a100-sxm-80gb"])
        assert support.levels(engines.of("vllm"), graph, targets["mi300x"]) == ("bf16", "fp8")
        assert support.levels(engines.of("vllm"), sparse, targets["mi300x"]) == ("bf16",)
        assert support.why_not(engines.of("llama.cpp"), graph, targets["l4"], "kv", "int8") == (
            "llama.cpp has no int8 for latent attention"
        )


class TestMethods:
    def test_what_drafts_for_whom(self, engines: Engines, targets: dict[str, Target]) -> None:
        hopper = targets["h100-sxm"]
        assert support.methods(engines.of("native"), tiny(), hopper) == ("none",)
        vllm = engines.of("vllm")
        assert "mtp" in support.methods(vllm, card("deepseek-v3"), hopper)
        assert "mtp" not in support.methods(vllm, card("llama-3.1-8b"), hopper)
        assert support.why_not(vllm, tiny(), hopper, "speculation", "none") == ""
        assert "ngram" not in support.methods(engines.of("sglang"), tiny(), targets["mi300x"])


def script() -> ModuleType:
    found = importlib.util.spec_from_file_location("engine_table", ROOT / "benchmarks" / "engine_table.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_page_is_the_table(engines: Engines) -> None:
    """Regenerated by: python benchmarks/engine_table.py"""
    assert (ROOT / "docs" / "engines.md").read_text(encoding="utf-8") == script().page(engines)
