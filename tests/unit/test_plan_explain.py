"""The note on a plan: each decision has a reason and a source, each number its origin; the words are true."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planning import card, cpu, gpu, load, spec, tiny
from rich.console import Console

from infer_compile.build.resolve import plan_of, resolve
from infer_compile.catalog.facts import load_facts
from infer_compile.planner.explain import note, words
from infer_compile.planner.explain.bill import bill
from infer_compile.planner.explain.markdown import markdown
from infer_compile.planner.explain.render import BAR_CELLS, cells, table
from infer_compile.planner.plan import Parallelism, Plan, Reason
from infer_compile.planner.search import plan
from infer_compile.runtime.errors import InferCompileError
from infer_compile.spec.spec import Spec

ROOT = Path(__file__).resolve().parents[2]
SPECS = ROOT / "specs"
FILES = ("llama-3.1-8b-rtx-4090", "llama-3.3-70b-h100", "llama-3.2-1b-jetson-orin-nano")
LLAMA = card("llama-3.1-8b")
DECISIONS = {
    *("engine", "weights", "kv", "kv.page_tokens", "parallelism", "speculation"),
    *("limits.max_context", "limits.max_sequences", "limits.max_batch_tokens"),
    *("quality.max_loss_percent", "cost.usd_per_hour"),
}
OWN = {"weights.head", "weights.group", "kv.sink_pages", "kv.recent_pages", "kv.spare_pages"}


@cache
def of_file(name: str) -> Plan:
    return plan_of(resolve(SPECS / f"{name}.yaml"))


@cache
def native() -> Plan:
    asked = spec(pin={"weights": "int8", "kv": "tq3"}, cost={"usd_per_hour": 0.1, "usd_per_kwh": 0.2})
    return plan(asked, tiny(), cpu())


PLANS = pytest.mark.parametrize("made", [*(lambda name=name: of_file(name) for name in FILES), native])


def on_card(target: Any = None, **fields: Any) -> Plan:
    asked = spec(workload=load(context_tokens=8192, input_tokens=1000, output_tokens=200), **fields)
    return plan(asked, LLAMA, target or gpu())


def reason(made: Plan, key: str) -> Reason:
    return next(reason for reason in made.reasons if reason.key == key)


def rendered(made: Plan, width: int) -> str:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table(made))
    return capture.get()


def leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@PLANS
def test_every_decision_has_a_reason_and_a_source(made: Any) -> None:
    keys = [reason.key for reason in made().reasons]
    assert len(set(keys)) == len(keys)
    assert set(keys) >= (DECISIONS | OWN if made is native else DECISIONS)
    for reason in made().reasons:
        assert reason.value and reason.why and reason.source, reason


@PLANS
def test_every_number_has_an_origin(made: Any) -> None:
    predicted = made().predicted.model_dump(exclude={"sources"})
    numbers = {key for key, value in leaves(predicted) if isinstance(value, int | float)}
    sources = made().predicted.sources
    drafts = {key for key in sources if key.startswith("speculation.")}
    assert numbers | {"bottleneck"} == set(sources) - drafts
    assert bool(drafts) == bool(made().speculation.tokens)
    assert all(source.text for source in sources.values())


def test_a_number_is_worth_no_more_than_what_it_was_made_of() -> None:
    """A guessed device makes every time a guess, and leaves bytes exact."""
    guessed = plan(spec(), tiny(), cpu(measured=False, confidence="C", tdp_w=50)).predicted.sources
    for key in ("itl_ms", "ttft_ms", "tokens_per_second", "step_ms.weights", "memory_gib.capacity"):
        assert guessed[key].basis == "assumption"
    assert guessed["memory_gib.weights"].basis == "arithmetic"
    assert guessed["cost.watts"].basis == "assumption"
    known = plan(spec(), tiny(), cpu(measured=False, tdp_w=50)).predicted.sources
    assert known["cost.watts"].basis == "datasheet"
    priced = native().predicted.sources["cost.usd_per_million_tokens"]
    assert "the spec" in priced.text


@PLANS
def test_the_bar_is_as_wide_as_what_is_held(made: Any) -> None:
    parts, held = note.memory(made()), made().predicted.memory_gib
    counts = cells(parts)
    assert sum(counts) <= BAR_CELLS and min(counts) >= 1
    assert [part.key for part in parts].count("draft") == (held.draft > 0)
    for part, count in zip(parts, counts, strict=True):
        assert part.share == pytest.approx(getattr(held, part.key) / held.capacity)
        assert abs(count - BAR_CELLS * part.share) < 1 + len(parts)
    assert sum(part.share for part in parts) == pytest.approx(held.total / held.capacity, rel=1e-3)


@PLANS
def test_the_parts_of_a_step_make_it_up(made: Any) -> None:
    shares = sum(part.share for part in note.step(made()))
    assert shares == pytest.approx(1, abs=2e-3)
    assert any(part.key == "draft" for part in note.step(made())) == bool(made().speculation.tokens)


@PLANS
@pytest.mark.parametrize("width", [100, 120])
def test_the_page_keeps_its_width_and_leaves_nothing_out(made: Any, width: int) -> None:
    text = rendered(made(), width)
    assert max(map(len, text.splitlines())) <= width
    told = " ".join(text.split())
    for name in ("time to first token", "time between tokens", "decisions", "sources", "arithmetic"):
        assert name in told
    for turn in made().turns:
        assert turn.key in told
    seen = made().predicted
    assert f"({words.between(seen.itl_ms_low, seen.itl_ms_high)})" in told


@PLANS
def test_markdown_tables_are_whole(made: Any) -> None:
    text = markdown(made())
    assert text.startswith(f"# {made().name}\n") and text.endswith("\n")
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 6
    for lines in blocks:
        columns = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
        assert len(set(columns)) == 1 and re.fullmatch(r"\|( --- \|)+", lines[1])
        assert len(lines) > 2
    for reason in made().reasons:
        assert reason.why.replace("|", "\\|") in text
    assert all(one.gives_up in text for one in made().alternatives)


@PLANS
def test_a_plan_read_back_makes_the_same_note(made: Any) -> None:
    again = Plan.from_json(made().to_json())
    assert again == made()
    assert markdown(again) == markdown(made())
    assert rendered(again, 100) == rendered(made(), 100)


ONE = {"context_tokens": 64, "input_tokens": 1, "output_tokens": 60, "concurrency": 1}


@pytest.mark.parametrize(
    ("figures", "workload", "said"),
    [
        ({"bandwidth_gbs": 1e-3, "rates": {"bf16_tflops": 1e3}}, ONE, "weight bandwidth"),
        ({"bandwidth_gbs": 1e6, "rates": {"bf16_tflops": 1e-7}}, ONE, "compute"),
        ({"bandwidth_gbs": 1e6, "rates": {"bf16_tflops": 1e3}}, ONE, "sequential latency"),
        (
            {"bandwidth_gbs": 1e-2, "rates": {"bf16_tflops": 1e3}},
            {"context_tokens": 4096, "input_tokens": 1, "output_tokens": 4000, "concurrency": 32},
            "cache bandwidth",
        ),
        (
            {"bandwidth_gbs": 1e6, "rates": {"bf16_tflops": 1e-7}},
            {"context_tokens": 4096, "input_tokens": 4000, "output_tokens": 10, "concurrency": 8},
            "prefill",
        ),
    ],
)
def test_the_bottleneck_is_what_takes_longest(figures: Any, workload: Any, said: str) -> None:
    pins = {"weights": "bf16", "kv": "bf16"}
    made = plan(spec(workload=workload, pin=pins), tiny(), cpu(**figures))
    longest = max(note.step(made), key=lambda part: part.share)
    sentence = note.limited(made)
    assert f"Limited by {said}: " in sentence
    assert f"{longest.value} of the {words.milliseconds(note.step_ms(made))}" in sentence


def test_a_slow_wire_is_named() -> None:
    wire = {"name": "a wire", "gbs_per_direction": 0.01}
    pins = {"parallelism": {"tensor": 4}, "weights": "bf16"}
    asked = spec(target={"device": "round-gpu", "count": 4}, pin=pins, workload=ONE)
    made = plan(asked, LLAMA, gpu(interconnect=wire))
    assert "Limited by the interconnect: " in note.limited(made)
    assert "over a wire at 0.01 GB/s" in reason(made, "parallelism").why


def test_memory_that_is_full_limits_the_sequences() -> None:
    made = on_card(objective="capacity", pin={"engine": "vllm", "weights": "bf16"})
    assert "Capacity limits the number of sequences" in note.capacity(made)
    assert "there is no room for another" in reason(made, "limits.max_sequences").why
    assert note.capacity(on_card()) == ""


def test_the_runner_up_is_what_a_pin_would_give() -> None:
    made = on_card()
    found = re.search(
        r"the best with (\S+) \(([\d,.]+) against ([\d,.]+) tokens/s\)", reason(made, "weights").why
    )
    assert found
    pinned = on_card(pin={"weights": found[1], "kv": made.kv.level, "engine": made.engine})
    assert words.whole(made.predicted.tokens_per_second) == found[2]
    assert words.whole(pinned.predicted.tokens_per_second) == found[3]


def test_what_lost_is_told_with_what_it_lacks() -> None:
    made = on_card()
    assert "over the budget of 1 % loss" in reason(made, "weights").why
    assert "the native engine has not been run on a gpu" in reason(made, "engine").why
    others = {one.name for one in load_facts().engines.engines} - {made.engine}
    assert all(name in reason(made, "engine").why for name in others)


def test_a_pin_is_called_one() -> None:
    pins = {"weights": "fp8", "kv": "fp8", "engine": "vllm", "speculation": "none"}
    made = on_card(pin=pins | {"parallelism": {"tensor": 1}})
    for key in ("weights", "kv", "engine", "speculation"):
        assert reason(made, key).why.startswith("pinned")
        assert reason(made, key).source == "the spec"


def test_a_compressed_cache_is_told_why() -> None:
    pins = {"engine": "vllm", "weights": "bf16"}
    large = on_card(gpu(memory_gb=80), pin=pins)
    assert large.kv.level == "bf16" and "nothing asks for compression" in reason(large, "kv").why
    found = re.search(r"(\w+) would give ([\d.]+)x", reason(large, "kv").why)
    assert found and 1 < float(found[2]) < 1.1
    # 8,192 tokens of 128 KiB are a GiB; an fp8 cache is half of it.
    small = next(
        made
        for memory in np.arange(18.5, 24, 0.1)
        if (made := fits(memory, pins)) is not None and made.kv.level != "bf16"
    )
    assert "no exact cache keeps the limits (the nearest needs" in reason(small, "kv").why
    assert "65,536 bytes per token against 131,072 in bf16" in reason(small, "kv").why


def fits(memory: float, pins: dict[str, Any]) -> Plan | None:
    try:
        return on_card(gpu(memory_gb=memory), pin=pins)
    except InferCompileError:
        return None


def test_drafting_is_told_with_its_numbers() -> None:
    made = of_file(FILES[0])
    drafts, why = made.speculation, reason(made, "speculation").why
    assert drafts.tokens and drafts.pays_up_to
    assert f"a step yields {drafts.tokens_per_step:.3g} tokens" in why
    assert re.search(rf"pays (up to|at all the) {drafts.pays_up_to:,} sequences", why)
    draft, verify, plain, faster = map(
        float,
        re.findall(
            r"([\d.]+) ms to draft and ([\d.]+) to verify, where a plain step takes ([\d.]+): ([\d.]+)x", why
        )[0],
    )
    assert faster == pytest.approx(drafts.tokens_per_step * plain / (draft + verify), rel=0.02)


def test_drafting_pays_up_to_where_it_says() -> None:
    """Tokens per second with drafts and without cross there, where answers alone are computed."""
    resolved = resolve(SPECS / f"{FILES[0]}.yaml")
    # Memory for all of them, so that time alone decides.
    large = (resolved.target.model_copy(update={"memory_gb": 1000.0}),)

    def planned(concurrency: int, method: str) -> Plan:
        fields = {
            "model": {"source": resolved.spec.model.source},
            "target": "rtx-4090",
            "workload": {"context_tokens": 2048, "input_tokens": 1, "output_tokens": 1000}
            | {"concurrency": concurrency},
            "pin": {"engine": "vllm", "weights": "bf16", "kv": "bf16", "speculation": method},
        }
        loaded = replace(resolved.loaded, spec=Spec.model_validate(fields))
        return plan_of(replace(resolved, loaded=loaded, targets=large))

    limit = planned(8, "ngram").speculation.pays_up_to
    assert limit

    def gain(concurrency: int) -> float:
        drafted, plain = (planned(concurrency, method).predicted for method in ("ngram", "none"))
        return drafted.tokens_per_second / plain.tokens_per_second

    assert gain(max(1, limit // 2)) > 1 > gain(2 * limit)


def test_none_is_told_with_the_best_that_there_was() -> None:
    made = on_card()
    assert made.speculation.method == "none"
    assert "no drafter is known" in reason(made, "speculation").why
    mine = plan(spec(pin={"engine": "native"}), tiny(), gpu())
    assert f"native drafts nothing for LlamaForCausalLM on {gpu().name}" in reason(mine, "speculation").why


def test_the_split_is_told_with_the_next_best() -> None:
    made = of_file(FILES[1])
    why = reason(made, "parallelism").why
    assert "the next best, " in why and "go over NVLink4 at 450 GB/s" in why
    assert reason(made, "parallelism").value == words.split(made.parallelism)


def test_devices_without_an_interconnect_talk_over_the_host() -> None:
    host = {"name": "a bus", "gbs_per_direction": 32.0}
    device = gpu(interconnect=None, host_link=host)
    made = plan(spec(target={"device": "round-gpu", "count": 3}), card("llama-3.1-8b"), device)
    assert "go over a bus at 32 GB/s per direction" in reason(made, "parallelism").why


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (Parallelism(), "one device"),
        (Parallelism(tensor=8, pipeline=2), "tensor 8 x pipeline 2"),
        (Parallelism(tensor=2, data=4, expert=8), "tensor 2 x data 4, experts over 8"),
    ],
)
def test_splits_in_words(sizes: Parallelism, said: str) -> None:
    assert words.split(sizes) == said


def test_what_cannot_be_built_is_said_before_any_number() -> None:
    made = on_card()
    text = rendered(made, 120)
    assert made.not_buildable in text
    assert text.index("Planned only") < text.index("time to first token")
    assert "**Planned only:**" in markdown(made)
    mine = native()
    assert mine.buildable and "Planned only" not in rendered(mine, 120)


def test_a_price_that_is_not_known_is_not_made_up() -> None:
    made = plan(spec(), tiny(), cpu())
    assert [figure.value for figure in bill(made)] == ["not known"]
    named = {figure.name: figure.value for figure in bill(native())}
    assert named["per hour"] == "0.1 USD" and named["per month"] == "73 USD"


def test_the_break_even_is_judged() -> None:
    def even(price: float) -> str:
        cost = {"usd_per_hour": 1.0, "api_usd_per_million_tokens": price}
        found = {figure.name: figure.note for figure in bill(on_card(cost=cost))}
        return found["break-even"]

    assert even(100.0).startswith("from there on cheaper than the API")
    assert even(0.001).startswith("never cheaper than the API")


@pytest.mark.parametrize(
    ("number", "said"),
    [(0.0000716, "0.0000716"), (12.34, "12.3"), (1234.5, "1,230"), (0, "0"), (99.96, "100")],
)
def test_numbers_have_three_digits_and_no_exponent(number: float, said: str) -> None:
    assert words.whole(number) == said


def test_times_share_their_unit() -> None:
    assert words.between(62.2, 1310.4) == "62.2 to 1,310 ms"
    assert words.between(9_000, 12_000) == "9 to 12 s"
    assert words.between(12_000, 30_000) == "12 to 30 s"


def test_the_page_on_the_planner_names_what_there_is() -> None:
    """Files exist; the example is what the planner says: ``python benchmarks/plan_example.py`` renews it."""
    text = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    prose, _, example = text.partition("```text\n")
    package = ROOT / "compiler" / "infer_compile"
    for name in re.findall(r"`((?:\w+/)?\w+\.py)`", prose):
        assert (package / "planner" / name).is_file(), name
    for name in re.findall(r"`(catalog/\S+)`", prose):
        assert (package / name).is_file(), name
    said = rendered(of_file(FILES[0]), 110)
    assert example.removesuffix("\n```\n") in "\n".join(line.rstrip() for line in said.splitlines())
