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
    assert set(GROUPED) == set(NAMES) - {"bf16"}


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


BROKEN = {
    "an unknown key names the nearest": (
        MINIMAL + "workload: {contxt_tokens: 100}\n",
        """\
error[IC004]: chat.yaml:3: unknown key "workload.contxt_tokens"
  because: the keys here are context_tokens, input_tokens, output_tokens, requests_per_second, concurrency
  fix: did you mean context_tokens?""",
    ),
    "an unknown key at the top": (
        MINIMAL + "zzz: 1\n",
        """\
error[IC004]: chat.yaml:3: unknown key "zzz"
  because: the keys here are apiVersion, name, model, target, workload, slo, quality, objective, cost, pin, \
serving""",
    ),
    "an unknown key in a form of the target": (
        "model: {source: m}\ntarget:\n  device: l4\n  number: 2\n",
        """\
error[IC004]: chat.yaml:4: unknown key "target.number"
  because: the keys here are device, count, nodes""",
    ),
    "an unknown key in a pin": (
        MINIMAL + "pin:\n  weights:\n    format: int8\n    grup: 32\n",
        """\
error[IC004]: chat.yaml:6: unknown key "pin.weights.grup"
  because: the keys here are format, group
  fix: did you mean group?""",
    ),
    "what is required": (
        "name: x\n",
        """\
error[IC005]: chat.yaml:1: "model" is missing
  fix: add model: to the file
error[IC005]: chat.yaml:1: "target" is missing
  fix: add target: to the file""",
    ),
    "what is required inside": (
        "model:\n  revision: a\ntarget: {count: 2}\n",
        """\
error[IC005]: chat.yaml:1: "model.source" is missing
  fix: add source: to model
error[IC005]: chat.yaml:3: "target.device" is missing
  fix: add device: to target""",
    ),
    "a duplicate key": (
        MINIMAL + "serving:\n  port: 1\n  port: 2\n",
        """\
error[IC003]: chat.yaml:5: "serving.port" is given twice
  because: it stands on line 4 already
  fix: keep one of the two""",
    ),
    "wrong types": (
        """\
name: no
model: hf://a/b
target: 4090
workload: {context_tokens: 2k, concurrency: 1.5, requests_per_second: true}
slo:
pin: {weights: 8, kv: [tq3], parallelism: {tensor: "2"}, speculation: [draft]}
cost: {usd_per_hour: "1"}
""",
        """\
error[IC006]: chat.yaml:1: "name" must be text, not false
  fix: put it in quotes if it is meant as text
error[IC006]: chat.yaml:2: "model" must be a mapping, not "hf://a/b"
error[IC006]: chat.yaml:3: "target" must be a name, a list of names, or {device, count, nodes}, not 4090
error[IC006]: chat.yaml:4: "workload.context_tokens" must be a whole number, not "2k"
error[IC006]: chat.yaml:4: "workload.requests_per_second" must be a number, not true
error[IC006]: chat.yaml:4: "workload.concurrency" must be a whole number, not 1.5
error[IC006]: chat.yaml:5: "slo" must be a mapping, not an empty value
  fix: give it a value, or remove the key
error[IC006]: chat.yaml:6: "pin.weights" must be a name, or {format, group}, not 8
error[IC006]: chat.yaml:6: "pin.kv" must be text, not a list
error[IC006]: chat.yaml:6: "pin.speculation" must be a name, or {method, tokens}, not a list
error[IC006]: chat.yaml:6: "pin.parallelism.tensor" must be a whole number, not "2"
error[IC006]: chat.yaml:7: "cost.usd_per_hour" must be a price, or {target: price}, not "1\"""",
    ),
    "values that cannot be": (
        """\
model: {source: ""}
target: []
workload:
  context_tokens: 0
  input_tokens: -1
  output_tokens: 0
  requests_per_second: 0
slo: {ttft_ms: -5, itl_ms: .inf}
quality: {max_loss_percent: -0.5}
serving: {port: 65536}
name: Support Bot
pin: {weights: {format: int8, group: 48}, speculation: {method: draft, tokens: 0}}
cost: {usd_per_hour: {l4: 0}, api_usd_per_million_tokens: -1, usd_per_kwh: 0}
""",
        """\
error[IC007]: chat.yaml:1: "model.source" must not be empty
error[IC007]: chat.yaml:2: "target" must not be empty
error[IC007]: chat.yaml:4: "workload.context_tokens" must be at least 1, not 0
error[IC007]: chat.yaml:5: "workload.input_tokens" must be at least 1, not -1
error[IC007]: chat.yaml:6: "workload.output_tokens" must be at least 1, not 0
error[IC007]: chat.yaml:7: "workload.requests_per_second" must be greater than 0, not 0
error[IC007]: chat.yaml:8: "slo.ttft_ms" must be greater than 0, not -5
error[IC006]: chat.yaml:8: "slo.itl_ms" must be a finite number, not inf
error[IC007]: chat.yaml:9: "quality.max_loss_percent" must be at least 0, not -0.5
error[IC007]: chat.yaml:10: "serving.port" must be at most 65535, not 65536
error[IC007]: chat.yaml:11: "name" cannot be "Support Bot"
  because: a name has up to 63 lower-case letters, digits, dots and hyphens, and a letter or digit at each end
error[IC007]: chat.yaml:12: "pin.weights.group" must be one of 32, 64, 128, not 48
error[IC007]: chat.yaml:12: "pin.speculation.tokens" must be at least 1, not 0
error[IC007]: chat.yaml:13: "cost.usd_per_hour.l4" must be greater than 0, not 0
error[IC007]: chat.yaml:13: "cost.api_usd_per_million_tokens" must be greater than 0, not -1
error[IC007]: chat.yaml:13: "cost.usd_per_kwh" must be greater than 0, not 0""",
    ),
    "names that do not exist": (
        MINIMAL + "objective: througput\npin: {weights: int4rtn, kv: tq33, engine: nativ}\napiVersion: v1\n",
        """\
error[IC008]: chat.yaml:3: "objective" must be latency, throughput, cost or capacity, not "througput"
  fix: objective: throughput
error[IC008]: chat.yaml:4: there is no engine "nativ"
  because: the names are native, tensorrt-llm, vllm, sglang, llama.cpp
  fix: engine: native
error[IC008]: chat.yaml:4: there is no weight format "int4rtn"
  because: the names are bf16, int8, int4-rtn, fp8, int4-awq, int4-gptq, nvfp4, mxfp4, q8_0, q6_k, q5_k_m, \
q4_k_m, q4_0, q3_k_m, q2_k, iq4_xs
  fix: weights: int4-rtn
error[IC008]: chat.yaml:4: there is no kv level "tq33"
  because: the names are bf16, tq3, fp8, int8
  fix: kv: tq3
error[IC008]: chat.yaml:5: "apiVersion" must be infer-compile/v1, not "v1\"""",
    ),
    "what is still to come": (
        """\
model: {source: "s3://bucket/model", draft: "s3://bucket/draft"}
target: l4
quality: {calibration: a.jsonl, evaluation: b.jsonl}
pin:
  weights: {format: int4-hqq, group: 32}
  kv: ct4
  speculation: {method: lookahead, tokens: 4}
""",
        """\
error[IC009]: chat.yaml:1: sources of the kind "s3://" are not served by this version
  fix: source: hf://organisation/name, or a folder
error[IC009]: chat.yaml:1: sources of the kind "s3://" are not served by this version
  fix: source: hf://organisation/name, or a folder
error[IC009]: chat.yaml:3: "quality.calibration" is not served by this version
  because: no weight format or kv level that this version writes is calibrated
  fix: remove calibration
error[IC009]: chat.yaml:3: "quality.evaluation" is not served by this version
  because: this version does not measure the quality of a bundle
  fix: remove evaluation
error[IC009]: chat.yaml:5: weight format "int4-hqq" is not served by this version
  because: its engines serve bf16, int8, int4-rtn, fp8, int4-awq, int4-gptq, nvfp4, mxfp4, q8_0, q6_k, \
q5_k_m, q4_k_m, q4_0, q3_k_m, q2_k, iq4_xs
  fix: weights: int4-rtn
error[IC009]: chat.yaml:6: kv level "ct4" is not served by this version
  because: its engines serve bf16, tq3, fp8, int8
  fix: kv: tq3
error[IC009]: chat.yaml:7: speculation "lookahead" is not served by this version
  because: its engines serve none, draft, ngram, eagle3, mtp, medusa
  fix: speculation: ngram""",
    ),
    "pins that the pinned engine does not serve": (
        """\
model: {source: m}
target: {device: l4, nodes: 2}
pin:
  weights: {format: q4_k_m}
  kv: tq3
  engine: sglang
  speculation: {method: medusa, tokens: 3}
  parallelism: {tensor: 2}
""",
        """\
error[IC014]: chat.yaml:4: weight format "q4_k_m" is not served by engine "sglang"
  because: sglang 0.5.18 serves bf16, fp8, int8, int4-rtn, int4-awq, int4-gptq, nvfp4, mxfp4
  fix: weights: mxfp4, or engine: llama.cpp
error[IC014]: chat.yaml:5: kv level "tq3" is not served by engine "sglang"
  because: sglang 0.5.18 serves bf16, fp8
  fix: kv: fp8, or engine: native
error[IC014]: chat.yaml:7: speculation "medusa" is not served by engine "sglang"
  because: sglang 0.5.18 serves draft, ngram, eagle3, mtp
  fix: speculation: mtp, or engine: vllm""",
    ),
    "an engine that neither drafts nor splits so": (
        """\
model: {source: m}
target: l4
pin:
  engine: native
  speculation: draft
  parallelism:
    tensor: 2
    pipeline: 2
    data: 2
""",
        """\
error[IC014]: chat.yaml:5: speculation "draft" is not served by engine "native"
  because: native serves none
  fix: speculation: none, or engine: tensorrt-llm or vllm or sglang or llama.cpp
error[IC014]: chat.yaml:8: pipeline and data parallelism is not served by engine "native"
  because: native splits a model by tensor
  fix: remove pipeline and data, or another engine""",
    ),
    "an engine of one machine on several": (
        "model: {source: m}\ntarget: {device: h100-sxm, nodes: 2}\npin: {engine: llama.cpp}\n",
        """\
error[IC014]: chat.yaml:3: several machines are not served by engine "llama.cpp"
  fix: nodes: 1, or engine: tensorrt-llm or vllm or sglang""",
    ),
    "groups of an engine that has none to choose": (
        MINIMAL + "pin: {weights: {format: int8, group: 64}, engine: vllm}\n",
        """\
error[IC013]: chat.yaml:3: engine "vllm" has no groups to choose
  because: the format fixes what shares a scale
  fix: remove group, or engine: native""",
    ),
    "a draft that is wanted and not": (
        "model: {source: m, draft: none}\ntarget: l4\npin: {speculation: {method: draft, tokens: 4}}\n",
        """\
error[IC015]: chat.yaml:3: speculation: draft needs a draft model, and model.draft is none
  fix: model: {draft: auto}, or another method""",
    ),
    "tokens of no speculation": (
        MINIMAL + "pin: {speculation: {method: none, tokens: 4}}\n",
        """\
error[IC015]: chat.yaml:3: speculation: none drafts no tokens
  fix: remove tokens, or name a method""",
    ),
    "more tokens than are asked for": (
        MINIMAL + "workload: {requests_per_second: 2, output_tokens: 100}\nslo: {tokens_per_second: 250}\n",
        """\
error[IC016]: chat.yaml:4: 250 tokens per second cannot be generated for this load
  because: 2 requests per second with answers of 100 tokens are 200 tokens per second
  fix: tokens_per_second: 200, or a load that brings more""",
    ),
    "a price of another target": (
        "model: {source: m}\ntarget: [l4, t4]\ncost:\n  usd_per_hour:\n    l4: 0.5\n    a10: 0.6\n",
        """\
error[IC017]: chat.yaml:6: a price is given for "a10", which is no target of the spec
  because: its targets are l4, t4
  fix: remove the price, or add the target""",
    ),
    "a prompt and an answer beyond the context": (
        MINIMAL + "workload:\n  context_tokens: 100\n  input_tokens: 90\n  output_tokens: 20\n",
        """\
error[IC010]: chat.yaml:6: input_tokens 90 and output_tokens 20 do not fit context_tokens 100
  because: together they are 110
  fix: context_tokens: 110, or a shorter prompt or answer""",
    ),
    "a default beyond the context": (
        MINIMAL + "workload: {input_tokens: 4000}\n",
        """\
error[IC010]: chat.yaml:3: input_tokens 4000 and output_tokens 512 do not fit context_tokens 4096
  because: together they are 4512; what is not stated takes its default
  fix: context_tokens: 4512, or a shorter prompt or answer""",
    ),
    "two measures of load": (
        MINIMAL + "workload:\n  concurrency: 2\n  requests_per_second: 3\n",
        """\
error[IC011]: chat.yaml:4: concurrency and requests_per_second cannot both be given
  because: with an open load the concurrency follows from the rate and the speed
  fix: keep one of the two""",
    ),
    "a revision of a folder": (
        "model: {source: ./m, revision: main}\ntarget: l4\n",
        """\
error[IC012]: chat.yaml:1: a revision needs an hf:// source, and "./m" is not one
  fix: remove revision""",
    ),
    "groups where there are none": (
        MINIMAL + "pin: {weights: {format: bf16, group: 32}}\n",
        """\
error[IC013]: chat.yaml:3: weights "bf16" have no groups to choose
  because: int8 and int4-rtn of the native engine have
  fix: remove group""",
    ),
    "a hub name without its organisation": (
        "model: {source: hf://Llama-3.1-8B}\ntarget: l4\n",
        """\
error[IC007]: chat.yaml:1: "hf://Llama-3.1-8B" does not name a model of the hub
  fix: source: hf://organisation/name""",
    ),
    "broken YAML": (
        "model: {source: m}\ntarget: [a\nname: x\n",
        """\
error[IC002]: chat.yaml:3: is not valid YAML
  because: while parsing a flow sequence, expected ',' or ']', but got ':'""",
    ),
    "a tab": (
        "model:\n\tsource: m\n",
        """\
error[IC002]: chat.yaml:2: is not valid YAML
  because: while scanning for the next token, found character '\\t' that cannot start any token""",
    ),
    "two documents": (
        "a: 1\n---\nb: 2\n",
        """\
error[IC002]: chat.yaml:2: is not valid YAML
  because: expected a single document in the stream, but found another document""",
    ),
    "nothing": ("# soon\n", "error[IC002]: chat.yaml: is empty"),
    "a list": ("- model\n", "error[IC006]: chat.yaml:1: must be a mapping of keys to values"),
    "a key that is no text": (
        MINIMAL + "? [a, b]\n: 1\n",
        "error[IC006]: chat.yaml:3: a key must be plain text",
    ),
    "a control character": (
        MINIMAL + "name: a\x07\n",
        """\
error[IC002]: chat.yaml:3: is not valid YAML
  because: it holds the character U+0007""",
    ),
    "an alias that contains itself": (
        "model: &a {source: *a}\n",
        "error[IC002]: chat.yaml:1: an alias contains itself",
    ),
    "too deep": ("a: " + "[" * 40 + "]" * 40, "error[IC002]: chat.yaml:1: is nested too deeply"),
    "far too deep": ("[" * 1000, "error[IC002]: chat.yaml: is nested too deeply"),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("case", BROKEN)
def test_broken_specs(case: str) -> None:
    text, expected = BROKEN[case]
    with pytest.raises(InferCompileError) as caught:
        read(text)
    assert str(caught.value) == expected
    assert caught.value.exit == Exit.USAGE


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
