"""What a bench makes of a measured run and a plan: medians, ratios, intervals, gates, notes."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from planning import cpu, load, spec, tiny
from pydantic import ValidationError
from rich.console import Console

from infer_compile.catalog.coefficients import Rates
from infer_compile.catalog.facts import load_facts
from infer_compile.evaluate.speed.bench import Bench, Memory, words
from infer_compile.evaluate.speed.comparison import Goal, Speculated, goals, point, strays
from infer_compile.evaluate.speed.load import Drafted, Load, Round, Run, Step
from infer_compile.evaluate.speed.machine import Company, Machine, Rate, resident_bytes
from infer_compile.evaluate.speed.prediction import Prediction
from infer_compile.evaluate.speed.render import as_json, notes, page
from infer_compile.planner.outlook import outlook
from infer_compile.planner.performance.estimate import estimate, subject
from infer_compile.planner.performance.query import query
from infer_compile.planner.plan import Plan
from infer_compile.planner.search import plan
from infer_compile.runtime.stopwatch import Stopwatch
from infer_compile.spec.spec import Slo

ASKED, GRAPH, TARGET = spec(pin={"kv": "tq3", "engine": "native"}), tiny(), cpu()
PLANNED = plan(ASKED, GRAPH, TARGET)
OUTLOOK = outlook(PLANNED, ASKED, GRAPH, TARGET)
FORESEEN = Prediction(PLANNED, None, OUTLOOK)
LOAD = Load(2, 512, 128)


def run(of: Load = LOAD, **changes: Any) -> Run:
    """Three rounds, one of them slow."""
    made = Run(
        load=of,
        rounds=(Round(0.5, 0.010, 90.0), Round(0.4, 0.008, 100.0), Round(4.0, 0.080, 10.0)),
        seconds=8.0,
        first=(0.5,) * 4 + (4.0,) * 2,
        between=(0.008,) * 99 + (0.080,),
        steps=(Step(0.006, 2, True), Step(0.004, 2, True), Step(0.005, 2, True), Step(1.985, 2, False)),
        drafted=Drafted(100, 100, 0, 0),
        preempted=0,
    )
    return replace(made, **changes)


def found(*runs: Run, made: Plan = PLANNED, asked: bool = False, slo: Slo | None = None) -> Bench:
    points = tuple(
        point(each, FORESEEN.of(each.load), made, OUTLOOK, each.load == FORESEEN.planned) for each in runs
    )
    return Bench(
        plan=made,
        fingerprint="0123456789ab",
        engine="cpu",
        isa="avx2",
        threads=2,
        rounds=3,
        start=Stopwatch(0.0, {"bundle": 0.25, "warm_up": 0.5}),
        machine=Machine("a processor", 2, Rate(1.0, 0.5), Rate(0.001, 0.001), True, 0.25),
        memory=Memory(100, 100, 2**30, 2**29),
        points=points,
        goals=goals(slo, points) if slo else (),
        asked=asked,
        stale="",
    )


def test_a_plan_under_its_own_load_is_itself() -> None:
    assert FORESEEN.planned == LOAD
    assert OUTLOOK.at(2, 512, 128) == PLANNED.predicted
    assert FORESEEN.stale == ""
    other = PLANNED.model_copy(update={"predicted": PLANNED.predicted.model_copy(update={"itl_ms": 1.0})})
    assert "and the plan" in Prediction(other, None, OUTLOOK).stale
    assert "not predicted" in Prediction(PLANNED, None, None).stale
    assert Prediction(PLANNED, None, None).of(Load(1, 512, 128)) is None


def test_what_http_takes_is_not_predicted_here() -> None:
    rates = OUTLOOK.chosen.speed.calibration.rates
    assert 0 < rates.http_step_us < rates.step_us and 0 < rates.http_sequence_us < rates.sequence_us
    here, there = FORESEEN.of(LOAD), PLANNED.predicted
    assert here is not None
    taken = (rates.http_step_us + 2 * rates.http_sequence_us) / 1e3
    assert here.step_ms.fixed == pytest.approx(there.step_ms.fixed - taken, rel=1e-3)
    assert here.itl_ms == pytest.approx(there.itl_ms - taken, rel=1e-3)
    # Of one alone also what passes before the engine sees a request.
    alone, apart = OUTLOOK.at(1, 64, 8), FORESEEN.of(Load(1, 64, 8))
    before = OUTLOOK.chosen.speed.calibration.waiting.request_us
    assert apart is not None
    assert apart.ttft_ms == pytest.approx(alone.ttft_ms - (before + rates.http_step_us) / 1e3, rel=1e-3)
    for name in ("weights", "cache", "compute", "prefill"):
        assert getattr(here.step_ms, name) == pytest.approx(getattr(there.step_ms, name), abs=2e-3)
    with pytest.raises(ValidationError, match="HTTP takes more"):
        Rates.model_validate(rates.model_dump() | {"http_step_us": rates.step_us + 1})


def test_what_the_machine_gives_now_is_reckoned_with() -> None:
    def machine(bandwidth: float | None, matrix: float | None) -> Machine:
        return Machine("a processor", 2, Rate(1.0, bandwidth), Rate(0.001, matrix), True)

    said, same = FORESEEN.of(LOAD), FORESEEN.now(machine(1.0, 0.001)).reckoned(LOAD)
    assert said is not None and same == said
    slow = FORESEEN.now(machine(0.5, 0.001)).reckoned(LOAD)
    assert slow is not None and slow.step_ms.compute == said.step_ms.compute
    assert slow.step_ms.weights == pytest.approx(2 * said.step_ms.weights, rel=1e-3)
    weak = FORESEEN.now(machine(1.0, 0.00025)).reckoned(LOAD)
    assert weak is not None and weak.step_ms.weights == said.step_ms.weights
    assert weak.step_ms.compute == pytest.approx(4 * said.step_ms.compute, rel=1e-3)
    assert FORESEEN.now(machine(None, None)).reckoned(LOAD) is None
    made = point(run(), said, PLANNED, OUTLOOK, True, slow).figure("itl_ms")
    assert made is not None and (made.predicted, made.predicted_now) == (said.itl_ms, slow.itl_ms)


@pytest.mark.parametrize("of", [Load(1, 64, 128), Load(2, 64, 900), Load(1, 1, 4)])
def test_other_loads_are_predicted_as_an_estimate_is(of: Load) -> None:
    asked = {"model": "m", "target": "t", "engine": "native", "weights": PLANNED.weights.format, "kv": "tq3"}
    numbers = {"batch": of.sequences, "input": of.input_tokens, "output": of.output_tokens}
    question = query(asked | {name: str(value) for name, value in numbers.items()})
    (said,) = estimate(subject(GRAPH, TARGET, question, load_facts()), [question])
    ours = OUTLOOK.at(of.sequences, of.input_tokens, of.output_tokens)
    made = point(run(of), ours, PLANNED, OUTLOOK, False)
    for name in ("ttft_ms", "itl_ms", "tokens_per_second"):
        figure = made.figure(name)
        assert figure is not None
        for value, end in ((figure.predicted, ""), (figure.low, "_low"), (figure.high, "_high")):
            assert value == pytest.approx(said[f"{name}{end}"], rel=1e-3), name + end


def test_medians_ratios_and_the_interval() -> None:
    said = PLANNED.predicted
    made = point(run(), said, PLANNED, OUTLOOK, True)
    assert [each.name for each in made.figures] == ["ttft_ms", "itl_ms", "tokens_per_second"]
    first, between, rate = made.figures
    assert (first.measured, first.least, first.most) == (500, 400, 4000)
    assert (between.measured, rate.measured) == (10, 90)
    assert between.ratio == 10 / said.itl_ms and between.off_percent == abs(10 / said.itl_ms - 1) * 100
    assert between.inside is (said.itl_ms_low <= 10 <= said.itl_ms_high)
    exact = replace(between, measured=said.itl_ms)
    assert (exact.ratio, exact.off_percent, exact.inside) == (1, 0, True)
    assert replace(between, measured=said.itl_ms_high * 1.01).inside is False
    assert made.ttft_ms[50] == 500 and made.itl_ms[50] == 8 and made.ttft_ms[99] > 3999
    assert made.engine_share == 0.25


def test_one_sequence_has_a_prompt_and_a_user() -> None:
    made = point(run(Load(1, 512, 128)), None, PLANNED, None, False)
    by_name = {each.name: each for each in made.figures}
    assert by_name["prefill_tokens_per_second"].measured == 512 / 0.5
    assert by_name["tokens_per_second_per_user"].measured == 100
    assert all(each.ratio is None and each.inside is None for each in made.figures)


def test_a_step_is_what_all_sequences_decode_in() -> None:
    made = point(run(), PLANNED.predicted, PLANNED, OUTLOOK, True)
    step, parts = made.step, PLANNED.predicted.step_ms
    assert step is not None and step.seconds == 0.005
    assert step.context == PLANNED.predicted.workload.context_tokens == 576
    assert step.predicted == pytest.approx((parts.weights + parts.cache + parts.compute + parts.fixed) / 1e3)
    # What is read takes a nanosecond a byte on this device, at an efficiency of one; the cache's is less.
    one = OUTLOOK.chosen
    cached = parts.cache / 1e3 * one.speed.packed_bandwidth
    assert step.read_bytes is not None and step.read_bytes > parts.weights * 1e6 * 0.999
    assert step.read_bytes < parts.weights * 1e6 * 1.001 + cached * one.speed.exact_bandwidth
    assert step.bytes_per_second == step.read_bytes / 0.005
    assert point(run(steps=()), None, PLANNED, OUTLOOK, True).step is None


def test_what_drafts_brought() -> None:
    drafts = PLANNED.speculation.model_copy(
        update={"method": "ngram", "tokens": 3, "tokens_per_step": 2.0, "acceptance": 0.5}
    )
    made = PLANNED.model_copy(update={"speculation": drafts})
    told = point(run(drafted=Drafted(180, 100, 160, 80)), PLANNED.predicted, made, OUTLOOK, True)
    assert told.speculated is not None
    assert (told.speculated.tokens_per_step, told.speculated.acceptance) == (1.8, 0.5)
    assert told.step is not None and told.step.read_bytes is None
    none = point(run(), PLANNED.predicted, made, OUTLOOK, True).speculated
    assert none is not None and none.acceptance is None
    assert point(run(), PLANNED.predicted, PLANNED, OUTLOOK, True).speculated is None


def test_goals_are_of_the_planned_load() -> None:
    slo = Slo.model_validate({"ttft_ms": 500, "itl_ms": 9.9, "tokens_per_second": 90})
    made = found(run(Load(1, 512, 128)), run(), slo=slo)
    assert made.goals == (
        Goal("ttft_ms", 500, 500),
        Goal("itl_ms", 9.9, 10),
        Goal("tokens_per_second", 90, 90),
    )
    assert [goal.name for goal in made.missed] == ["itl_ms"]
    slower = found(run(), slo=Slo.model_validate({"tokens_per_second": 90.1}))
    assert [goal.name for goal in slower.missed] == ["tokens_per_second"]
    assert found(run(Load(1, 512, 128)), slo=slo, asked=True).goals == ()
    assert any("was not measured" in each for each in notes(found(run(Load(1, 512, 128)), asked=True)))


def test_what_strays() -> None:
    said = FORESEEN.of(LOAD)
    assert said is not None
    exact = Round(said.ttft_ms / 1e3, said.itl_ms / 1e3, said.tokens_per_second)
    points = found(run(rounds=(replace(exact, itl=exact.itl * 1.2),))).points
    assert [figure.name for _, figure in strays(points, 15)] == ["itl_ms"]
    assert strays(points, 21) == ()
    assert len(strays(found(run()).points, 1)) == 3


def test_notes_say_what_spoils_a_measurement() -> None:
    told = notes(found(run(preempted=3)))
    assert any("25%" in each for each in told) and any("50% of the read bandwidth" in each for each in told)
    assert any("3 times a sequence gave" in each for each in told)
    assert not any("matrix" in each for each in told)
    quiet = replace(found(run()), machine=Machine("a", 2, Rate(1, 1), Rate(1, 1), True, None))
    assert notes(quiet) == []


def test_the_object_has_the_figures_of_the_table() -> None:
    slo = Slo.model_validate({"itl_ms": 9.9})
    made = found(run(Load(1, 512, 128)), run(), slo=slo)
    told = as_json(made, 20.0)
    first, planned = told["points"]
    assert (first["planned"], planned["planned"], planned["sequences"]) == (False, True, 2)
    figure = planned["figures"]["itl_ms"]
    here = FORESEEN.of(LOAD)
    assert here is not None and figure["predicted"] == here.itl_ms and figure["measured"] == 10
    assert figure["ratio"] == pytest.approx(10 / here.itl_ms, rel=1e-4)
    assert told["plan"]["itl_ms"] == PLANNED.predicted.itl_ms
    assert planned["itl_ms_percentiles"]["50"] == 8
    assert planned["decode_step"]["bandwidth_share"] == pytest.approx(
        planned["decode_step"]["gbs"] / 0.5, rel=1e-3
    )
    assert told["machine"]["bandwidth_gbs"] == {"planned": 1.0, "now": 0.5, "ratio": 0.5}
    assert told["slo"] == [{"name": "itl_ms", "wanted": 9.9, "measured": 10.0, "held": False}]
    assert told["start"] == {"bundle": 0.25, "warm_up": 0.5, "total": 0.75} and told["within_percent"] == 20
    console = Console(width=160, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(page(made, 20.0))
    said = capture.get()
    for text in (words(LOAD) + ", as planned", "missed", "a decode step takes 5.00 ms", "0.50", "p99"):
        assert text in said, text
    assert "…" not in said


def test_an_open_load_in_words() -> None:
    assert words(Load(1, 10, 1000)) == "1 sequence, prompts of 10 tokens, answers of 1,000"
    assert words(Load(3, 10, 10, 0.5)).startswith("0.5 requests a second (3 sequences in flight at most)")


def test_what_the_system_tells_of_this_process() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc here")
    company = Company()
    others = company.others()
    assert others is None or 0 <= others <= 1
    held = resident_bytes()
    assert held is not None and held > 10**7


def test_a_rate_is_measured_with_its_arrivals() -> None:
    rated = spec(pin={"kv": "tq3"}, workload=load(concurrency=None, requests_per_second=0.001))
    made = plan(rated, GRAPH, TARGET)
    seen = Prediction(made, 0.001, outlook(made, rated, GRAPH, TARGET))
    assert seen.planned == Load(made.limits.max_sequences, 512, 128, 0.001)
    assert seen.of(seen.planned) == made.predicted and seen.stale == ""
    assert seen.reckoned(seen.planned) is None


def test_the_page_names_every_key() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]*)`", page))))
    told = as_json(found(run(), slo=Slo.model_validate({"itl_ms": 9.9})), None)
    one = told["points"][0]
    inner = (*told["machine"], *told["memory"], *told["slo"][0], *one, *one["figures"]["itl_ms"])
    assert {*told, *inner, *one["decode_step"], *told["machine"]["bandwidth_gbs"]} <= named
    drafts = {each.name for each in fields(Speculated)}
    assert drafts <= named
