"""Specs that are refused, in the exact words, with the place of each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.spec.load import load

MINIMAL = "model: {source: m}\ntarget: this-machine\n"

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
error[IC006]: chat.yaml:6: "pin.speculation" must be a name, or {method, tokens, width}, not a list
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
  because: the names are bf16, fp8, int8, k8v4, tq4, tq3, tq2, ct4, ct3, ct2
  fix: kv: tq3
error[IC008]: chat.yaml:5: "apiVersion" must be infer-compile/v1, not "v1\"""",
    ),
    "what is still to come, and what contradicts itself": (
        """\
model: {source: "s3://bucket/model", draft: "s3://bucket/draft"}
target: l4
quality: {calibration: a.jsonl, evaluation: ./a.jsonl}
pin:
  weights: {format: int4-hqq, group: 32}
""",
        """\
error[IC009]: chat.yaml:1: sources of the kind "s3://" are not served by this version
  fix: source: hf://organisation/name, or a folder
error[IC009]: chat.yaml:1: sources of the kind "s3://" are not served by this version
  fix: source: hf://organisation/name, or a folder
error[IC019]: chat.yaml:3: calibration and evaluation are the same text
  because: a loss on the text that a cache was fitted to says little of any other
  fix: name another text, or remove evaluation
error[IC009]: chat.yaml:5: weight format "int4-hqq" is not served by this version
  because: its engines serve bf16, int8, int4-rtn, fp8, int4-awq, int4-gptq, nvfp4, mxfp4, q8_0, q6_k, \
q5_k_m, q4_k_m, q4_0, q3_k_m, q2_k, iq4_xs
  fix: weights: int4-rtn""",
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
  fix: speculation: mtp, or engine: native or vllm""",
    ),
    "an engine that neither drafts nor splits so": (
        """\
model: {source: m}
target: l4
pin:
  engine: native
  speculation: mtp
  parallelism:
    tensor: 2
    pipeline: 2
    data: 2
""",
        """\
error[IC014]: chat.yaml:5: speculation "mtp" is not served by engine "native"
  because: native serves lookahead, ngram, draft, medusa, eagle3
  fix: speculation: eagle3, or engine: tensorrt-llm or vllm or sglang or llama.cpp
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
    "choices of an engine that verifies chains": (
        MINIMAL + "pin: {engine: vllm, speculation: {method: ngram, tokens: 3, width: 2}}\n",
        """\
error[IC014]: chat.yaml:3: several choices for a drafted token are not served by engine "vllm"
  because: vllm 0.26 is planned to verify chains
  fix: width: 1, or engine: native""",
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


@pytest.mark.parametrize("case", BROKEN)
def test_broken_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)  # so that messages show short paths
    text, expected = BROKEN[case]
    Path("chat.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InferCompileError) as caught:
        load(Path("chat.yaml"))
    assert str(caught.value) == expected
    assert caught.value.exit == Exit.USAGE
