"""Loading a spec: what is accepted, its defaults, and the exact words for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from infer_compile.catalog.engines import load_engines
from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.formats.kv import LEVELS
from infer_compile.runtime.formats.weights import NAMES
from infer_compile.spec.load import LoadedSpec, load, name_from
from infer_compile.spec.names import ENGINES, GROUPED, KV, SPECULATION, WEIGHTS
from infer_compile.spec.pin import SpeculationPin, WeightsPin
from infer_compile.spec.spec import DeviceGroup, Spec
from infer_compile.spec.unserved import UNSERVED, nearest

# Every name that a spec of any version may hold.
LANGUAGE = {
    "weights": "bf16 fp8 int8 int4-rtn int4-awq int4-gptq int4-hqq nvfp4 mxfp4 "
    "q8_0 q6_k q5_k_m q4_k_m q4_0 q3_k_m q2_k iq4_xs",
    "kv": "bf16 fp8 int8 k8v4 tq4 tq3 tq2 ct4 ct3 ct2",
    "speculation": "none draft ngram eagle3 medusa mtp lookahead",
}
MINIMAL = "model: {source: m}\ntarget: this-machine\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the working directory, so that messages show short paths."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, name: str = "chat.yaml") -> LoadedSpec:
    Path(name).write_text(text, encoding="utf-8")
    return load(Path(name))


@pytest.mark.usefixtures("folder")
class TestAccepted:
    def test_only_model_and_target_are_required(self) -> None:
        spec = read(MINIMAL).spec
        assert spec.name == "chat"
        assert spec.model.source == "m"
        assert spec.model.draft == "auto"
        assert spec.targets == (DeviceGroup(device="this-machine"),)
        workload = spec.workload
        assert (workload.context_tokens, workload.input_tokens, workload.output_tokens) == (4096, 2048, 512)
        assert (workload.concurrency, workload.requests_per_second) == (1, None)
        assert (spec.objective, spec.serving.port) == ("throughput", 8000)
        assert spec.pin.weights is spec.pin.kv is spec.pin.engine is spec.pin.parallelism is None
        assert spec.slo.ttft_ms is spec.quality.max_loss_percent is spec.cost.usd_per_hour is None

    def test_everything(self) -> None:
        loaded = read(
            """\
apiVersion: infer-compile/v1
name: support-bot
model: {source: hf://meta-llama/Llama-3.1-8B-Instruct, revision: abc123, draft: none}
target: {device: h100-sxm, count: 8, nodes: 2}
workload: {context_tokens: 32768, input_tokens: 3000, output_tokens: 400, requests_per_second: 0.5}
slo: {ttft_ms: 800, itl_ms: 40.5, tokens_per_second: 200}
quality: {max_loss_percent: 1.0}
objective: cost
cost: {usd_per_hour: 0.44, api_usd_per_million_tokens: 0.6, usd_per_kwh: 0.3}
pin:
  weights: int4-awq
  kv: fp8
  engine: vllm
  speculation: {method: eagle3, tokens: 3}
  parallelism: {tensor: 2}
serving: {port: 80}
"""
        )
        spec = loaded.spec
        assert spec.targets == (DeviceGroup(device="h100-sxm", count=8, nodes=2),)
        assert spec.workload.concurrency is None
        assert spec.slo.itl_ms == 40.5
        assert spec.pin.weights == WeightsPin(format="int4-awq")
        assert spec.pin.speculation == SpeculationPin(method="eagle3", tokens=3)
        assert (spec.cost.hourly("h100-sxm"), spec.cost.usd_per_kwh) == (0.44, 0.3)
        assert spec.pin.parallelism is not None
        assert (spec.pin.parallelism.tensor, spec.pin.parallelism.data) == (2, None)
        assert loaded.where("slo.itl_ms") == "chat.yaml:6"
        assert loaded.where("pin.weights.format") == "chat.yaml:11"
        assert loaded.where("pin.speculation.tokens") == "chat.yaml:14"
        assert loaded.where("pin.parallelism.pipeline") == "chat.yaml:15"
        assert loaded.where("nowhere") == "chat.yaml:1"
        assert loaded.base == Path.cwd()

    def test_the_short_forms(self) -> None:
        spec = read("model: {source: m}\ntarget: [rtx-4090, l4]\npin: {weights: int8}\n").spec
        assert spec.targets == (DeviceGroup(device="rtx-4090"), DeviceGroup(device="l4"))
        assert spec.pin.weights == WeightsPin(format="int8")

    def test_groups_and_lengths_in_the_long_forms(self) -> None:
        pins = "pin: {weights: {format: int4-rtn, group: 32}, engine: native, speculation: {method: none}}\n"
        pin = read(MINIMAL + pins).spec.pin
        assert pin.weights == WeightsPin(format="int4-rtn", group=32)
        assert pin.speculation == SpeculationPin(method="none")
        short = read(MINIMAL + "pin: {speculation: ngram}\n").spec.pin.speculation
        assert short == SpeculationPin(method="ngram", tokens=None)

    def test_a_price_for_each_of_several_targets(self) -> None:
        text = "model: {source: m}\ntarget: [rtx-4090, l4]\ncost: {usd_per_hour: {l4: 0.4}}\n"
        cost = read(text).spec.cost
        assert (cost.hourly("l4"), cost.hourly("rtx-4090")) == (0.4, None)
        assert read(MINIMAL).spec.cost.hourly("this-machine") is None

    @pytest.mark.parametrize("draft", ["none", "auto", "llama-3.2-1b", "hf://a/b", "./folder"])
    def test_drafts(self, draft: str) -> None:
        assert read(f"model: {{source: m, draft: '{draft}'}}\ntarget: l4\n").spec.model.draft == draft

    def test_a_stated_input_leaves_the_rest_to_its_defaults(self) -> None:
        workload = read(MINIMAL + "workload: {context_tokens: 80, input_tokens: 70}\n").spec.workload
        assert workload.output_tokens == 10

    @pytest.mark.parametrize("name", WEIGHTS)
    def test_every_weight_format_that_an_engine_serves(self, name: str) -> None:
        spec = read(MINIMAL + f"pin: {{weights: {name}}}\n").spec
        assert spec.pin.weights == WeightsPin(format=name)

    @pytest.mark.parametrize("name", KV)
    def test_every_cache_level_that_an_engine_serves(self, name: str) -> None:
        assert read(MINIMAL + f"pin: {{kv: {name}}}\n").spec.pin.kv == name

    def test_aliases_of_yaml(self) -> None:
        spec = read("model: &m {source: x}\ntarget: &t this-machine\nname: a\n").spec
        assert spec.model.source == "x"

    def test_a_spec_cannot_be_changed(self) -> None:
        spec = read(MINIMAL).spec
        with pytest.raises(ValidationError, match="frozen"):
            spec.name = "other"  # type: ignore[misc]

    def test_python_values_are_checked_as_strictly(self) -> None:
        with pytest.raises(ValidationError):
            Spec.model_validate({"model": {"source": "m"}, "target": "t", "serving": {"port": "80"}})


def test_the_names_are_those_of_the_table_of_engines() -> None:
    engines = load_engines()
    assert set(WEIGHTS) == set(engines.served("weights"))
    assert set(KV) == set(engines.served("kv"))
    assert set(SPECULATION) == {"none", *engines.served("speculation")}
    assert engines.names == ENGINES
    native = engines.of("native")
    assert tuple(native.weights) == NAMES
    assert tuple(native.kv) == tuple(LEVELS)
    assert set(GROUPED) == set(NAMES) - {"bf16", "fp8"}


def test_every_name_of_the_language_is_served_or_refused_by_name() -> None:
    served = {"weights": WEIGHTS, "kv": KV, "engine": ENGINES, "speculation": SPECULATION}
    for key, names in served.items():
        assert not set(UNSERVED[key]) & set(names)
        assert set(UNSERVED[key].values()) <= set(names)
    assert set(WEIGHTS) | set(UNSERVED["weights"]) == set(LANGUAGE["weights"].split())
    assert set(KV) | set(UNSERVED["kv"]) == set(LANGUAGE["kv"].split())
    assert set(SPECULATION) | set(UNSERVED["speculation"]) == set(LANGUAGE["speculation"].split())


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("chat.yaml", "chat"),
        ("Llama 3.1_8B.yaml", "llama-3.1-8b"),
        ("___.yaml", "deployment"),
        (f"{'a' * 80}.yaml", "a" * 63),
    ],
)
def test_a_bundle_is_named_after_the_file(file: str, name: str) -> None:
    assert name_from(Path(file)) == name


def test_nearest() -> None:
    assert nearest("contxt_tokens", ["concurrency", "context_tokens"]) == "context_tokens"
    assert nearest("APIVERSION", ["apiVersion"]) == "apiVersion"
    assert nearest("zebra", ["concurrency", "context_tokens"]) is None


class TestFiles:
    def test_a_missing_file(self, folder: Path) -> None:
        with pytest.raises(InferCompileError) as caught:
            load(Path("specs/none.yaml"))
        assert str(caught.value) == "error[IC001]: specs/none.yaml: there is no such file"
        assert caught.value.exit == Exit.USAGE

    def test_a_folder(self, folder: Path) -> None:
        with pytest.raises(InferCompileError) as caught:
            load(Path())
        expected = "error[IC001]: .: cannot be read\n  because: Is a directory"
        assert str(caught.value) == expected

    def test_not_text(self, folder: Path) -> None:
        Path("chat.yaml").write_bytes(b"name: a\nmodel: \xff\xfe\n")
        with pytest.raises(InferCompileError) as caught:
            load(Path("chat.yaml"))
        expected = "error[IC002]: chat.yaml:2: is not UTF-8 text\n  fix: save the file in UTF-8"
        assert str(caught.value) == expected

    def test_a_byte_order_mark_is_harmless(self, folder: Path) -> None:
        Path("chat.yaml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
        assert load(Path("chat.yaml")).spec.model.source == "m"


WORDS = (
    "model source target device count workload context_tokens pin weights format group kv speculation method "
    "serving port apiVersion name slo x 0"
)
KEYS = st.sampled_from(WORDS.split())
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["int8", "tq3"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_tree_loads_or_is_refused_with_places(folder: Path, tree: dict[str, object]) -> None:
    text = yaml.safe_dump(tree, allow_unicode=True)
    try:
        read(text)
    except InferCompileError as error:
        assert error.exit == Exit.USAGE
        assert all(problem.where.startswith("chat.yaml") for problem in error.problems)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_loads_or_is_refused(folder: Path, text: str) -> None:
    try:
        read(text)
    except InferCompileError as error:
        assert error.exit == Exit.USAGE
