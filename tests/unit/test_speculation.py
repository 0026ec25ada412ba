"""Drafters are counted as they are published, and the arithmetic of acceptance keeps its laws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infer_compile.catalog.model import load_card
from infer_compile.catalog.speculation import DEPTH, Method, SpeculationFacts
from infer_compile.graph.build import build
from infer_compile.graph.graph import Graph
from infer_compile.graph.storage import native_scheme, shared_bytes
from infer_compile.planner.drafter import mtp_layers
from infer_compile.planner.speculation import (
    NONE,
    Drafting,
    break_even_batch,
    choices,
    expected_tokens,
    sibling_tokens,
    speedup,
)
from infer_compile.runtime.formats.weights import BF16

EVERY: tuple[Method, ...] = ("draft", "ngram", "lookahead", "eagle3", "medusa", "mtp")
CATALOG = Path(__file__).parents[2] / "compiler/infer_compile/catalog/speculation.yaml"

shares = st.floats(0, 1, allow_nan=False)


@pytest.fixture(scope="module")
def raw() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CATALOG.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def facts(raw: dict[str, Any]) -> SpeculationFacts:
    return SpeculationFacts.model_validate(raw)


def graph_of(name: str) -> Graph | None:
    card = load_card(name)
    return None if card is None else build(card.config, name)


def drafts(
    facts: SpeculationFacts, name: str, methods: tuple[Method, ...] = EVERY, **options: Any
) -> tuple[Drafting, ...]:
    card, graph = load_card(name), graph_of(name)
    assert card is not None and graph is not None
    return choices(graph, name, card.config, facts, graph_of, methods, **options)


class TestExpectedTokens:
    @given(st.lists(shares, min_size=DEPTH, max_size=DEPTH))
    def test_it_grows_with_the_draft_and_never_beyond_it(self, rates: list[float]) -> None:
        counts = np.arange(DEPTH + 1)
        lengths = expected_tokens(rates, counts)
        assert lengths[0] == 1
        assert np.all(np.diff(lengths) >= 0)
        assert np.all(lengths <= counts + 1 + 1e-12)

    @given(shares, st.integers(0, DEPTH))
    def test_a_constant_rate_gives_the_geometric_series(self, rate: float, tokens: int) -> None:
        series = sum(rate**i for i in range(tokens + 1))
        closed = (1 - rate ** (tokens + 1)) / (1 - rate) if rate < 0.999 else series
        assert expected_tokens([rate] * DEPTH, tokens) == pytest.approx(closed, rel=1e-9)

    def test_positions_multiply(self) -> None:
        """0.58, 0.31 and 0.16 of all steps accept so far: gpt-oss-120b with EAGLE-3."""
        rates = [0.58, 0.31 / 0.58, 0.16 / 0.31]
        assert expected_tokens(rates, 3) == pytest.approx(1 + 0.58 + 0.31 + 0.16)

    def test_arrays_broadcast(self) -> None:
        rates = np.array([[0.5] * 4, [0.9] * 4])
        assert expected_tokens(rates, np.array([1, 4])) == pytest.approx([1.5, 4.0951])
        assert expected_tokens(rates[0], np.array([[0, 1], [2, 4]])).shape == (2, 2)


class TestSiblings:
    def test_they_catch_a_share_of_what_the_chain_misses(self) -> None:
        """Two tokens, right in 0.6 and 0.5: the first misses in 0.4, the second in 0.6 times 0.5."""
        assert sibling_tokens([0.6, 0.5, 0.9], 2, 0.25) == pytest.approx(0.25 * (0.4 + 0.3))
        assert sibling_tokens([[0.6, 0.5], [1.0, 0.0]], [1, 2], 0.5) == pytest.approx([0.2, 0.5])

    @given(st.lists(shares, min_size=DEPTH, max_size=DEPTH), st.integers(0, DEPTH))
    def test_those_that_are_never_wrong_end_every_chain_with_one_token_more(
        self, rates: list[float], tokens: int
    ) -> None:
        whole = float(np.prod(rates[:tokens]))
        assert sibling_tokens(rates, tokens, 1.0) == pytest.approx(1 - whole, abs=1e-9)

    def test_trees_are_offered_where_other_choices_are_known(self, facts: SpeculationFacts) -> None:
        known = tuple(one for one in facts.siblings if one.method != "eagle3")
        facts = facts.model_copy(update={"siblings": known})
        found = drafts(facts, "llama-3.1-8b", ("draft", "ngram", "eagle3"), widths=range(1, 9))
        wide = [one for one in found if one.width > 1]
        assert {one.method for one in wide} == {"draft", "ngram"}
        assert all(one.rows <= DEPTH for one in wide)
        plain = {(one.method, one.draft, one.tokens): one for one in found if one.width == 1}
        for one in wide:
            chain = plain[one.method, one.draft, one.tokens]
            assert one.expected == pytest.approx(chain.expected + one.by_siblings)
            assert one.acceptance == pytest.approx(chain.acceptance)
            assert one.expected < one.tokens + 1 + 1e-9
        assert drafts(facts, "llama-3.1-8b", ("draft", "ngram")) == tuple(
            one for one in found if one.width == 1 and one.method != "eagle3"
        )


class TestSpeedup:
    def test_free_drafts_and_verification_gain_what_is_accepted(self) -> None:
        assert speedup(0.01, 0.01, 0.0, 2.5) == pytest.approx(2.5)
        assert speedup([0.01, 0.02], [0.02, 0.02], [0.0, 0.02], 2.0) == pytest.approx([1.0, 1.0])

    def test_it_stops_where_the_step_becomes_compute_bound(self) -> None:
        """Weights take 10 ms to read, each token 0.05 ms to compute; a step of 3 + 1 tokens that yields 2.5
        gains while 2.5 (10 + 0.05 b) > 10 + 0.2 b + 1, which is below b = 186.7."""

        def seconds(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return 10 + 0.05 * batch, 10 + 0.2 * batch, np.ones(len(batch))

        assert break_even_batch(seconds, 2.5, np.arange(1, 1025)) == 186
        assert break_even_batch(seconds, 1.0, np.arange(1, 1025)) == 0
        assert break_even_batch(seconds, 2.5, [1, 64, 512]) == 64

    def test_woken_experts_can_make_only_larger_batches_gain(self) -> None:
        """Of 128 experts each token takes 8: at batch 1 four tokens read 3.6 times the experts of one."""

        def seconds(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            def read(tokens: np.ndarray) -> np.ndarray:
                return 128 * (1 - (1 - 8 / 128) ** tokens) + 0.01 * tokens

            return read(batch), read(4 * batch), np.zeros(len(batch))

        plain, verified, drafted = seconds(np.array([1, 64]))
        assert list(speedup(plain, verified, drafted, 2.0) > 1) == [False, True]
        assert break_even_batch(seconds, 2.0, np.arange(1, 4097)) > 64


class TestPublishedRow:
    """8B with a 1B draft, 5 tokens: 80 % -> 3.75x, 90 % -> 3.5x, 70 % -> 2.5x, 50 % -> 1.5x, 30 % -> 1.1x."""

    CLAIMS: Mapping[float, float] = {0.8: 3.75, 0.9: 3.5, 0.7: 2.5, 0.5: 1.5, 0.3: 1.1}

    def test_it_contradicts_itself_and_a_free_draft(self) -> None:
        yielded = {rate: float(expected_tokens([rate] * 5, 5)) for rate in self.CLAIMS}
        assert self.CLAIMS[0.9] < self.CLAIMS[0.8]
        assert yielded[0.8] == pytest.approx(3.69, abs=0.005) and self.CLAIMS[0.8] > yielded[0.8]

    def test_by_bytes_alone_every_claim_is_too_high(self, facts: SpeculationFacts) -> None:
        """Five passes of a 1B read 0.82 of what a step of the 8B reads: a step costs 1.82 at least."""
        target = graph_of("llama-3.1-8b")
        assert target is not None
        one = drafts(facts, "llama-3.1-8b", ("draft",), lengths=(5,))[1]
        assert one.draft == "llama-3.2-1b"
        cost = 1 + one.passes * one.draft_bytes / shared_bytes(target.totals, native_scheme(BF16))
        assert cost == pytest.approx(1.82, abs=0.01)
        for rate, claim in self.CLAIMS.items():
            most = speedup(1.0, 1.0, cost - 1, expected_tokens([rate] * 5, 5))
            assert claim > 1.3 * most, rate


class TestChoices:
    def test_plain_decoding_comes_first_and_costs_nothing(self, facts: SpeculationFacts) -> None:
        found = drafts(facts, "phi-4")
        assert found[0] == NONE and NONE.expected == 1 and NONE.acceptance == 0
        assert {one.method for one in found[1:]} == {"ngram", "lookahead"}

    def test_models_of_every_shape_have_choices(self, facts: SpeculationFacts) -> None:
        for name in (
            "mixtral-8x7b",
            "gemma-3-27b",
            "nemotron-3-super-120b-a12b",
            "deepseek-v3",
            "gpt-oss-20b",
        ):
            for one in drafts(facts, name)[1:]:
                assert 1 < one.expected <= one.tokens + 1
                assert one.expected_low <= one.expected <= one.expected_high
                assert one.source and one.host_seconds > 0
                assert (one.passes == 0) == (one.method in ("ngram", "lookahead"))

    def test_smaller_models_draft_pass_by_pass(self, facts: SpeculationFacts) -> None:
        found = drafts(facts, "llama-3.1-70b", ("draft",), lengths=(1, 4))
        assert [one.draft for one in found[1::2]] == ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"]
        longer = found[2]
        assert (longer.tokens, longer.passes, longer.draft_layers) == (4, 4, 16)
        assert longer.resident_bytes == pytest.approx(2 * 1.236e9, rel=0.001)
        assert longer.draft_cache_elements_per_token == 16 * 2 * 8 * 64
        assert longer.acceptance == pytest.approx((longer.expected - 1) / 4)

    def test_only_known_pairs_of_one_vocabulary(self, facts: SpeculationFacts) -> None:
        assert len(drafts(facts, "qwen2.5-72b", ("draft",))) == 1
        padded = drafts(facts, "qwen2.5-72b", ("draft",), vocabulary_slack=128, lengths=(3,))
        assert [one.draft for one in padded[1:]] == ["qwen2.5-0.5b", "qwen2.5-1.5b"]
        assert len(drafts(facts, "deepseek-v3", ("draft",))) == 1

    def test_a_named_drafter_is_the_only_one(self, facts: SpeculationFacts) -> None:
        found = drafts(facts, "llama-3.1-70b", draft="llama-3.2-3b")
        assert {one.draft for one in found[1:]} == {"llama-3.2-3b"}
        unknown = drafts(facts, "phi-4", ("draft", "ngram"), draft="phi-4")
        assert {one.draft for one in unknown[1:]} == {"phi-4"} and unknown[1].basis == "assumption"
        assert drafts(facts, "llama-3.1-70b", draft="no-such-model") == (NONE,)
        eagle = "yuhuili/EAGLE3-LLaMA3.3-Instruct-70B"
        assert {one.draft for one in drafts(facts, "llama-3.1-70b", draft=eagle)[1:]} == {eagle}

    def test_text_that_is_looked_up_takes_host_time_alone(self, facts: SpeculationFacts) -> None:
        ngram, lookahead, small = drafts(facts, "phi-4", ("ngram", "lookahead"), lengths=(5,))[1:]
        assert (ngram.tokens, ngram.passes, ngram.draft_bytes, ngram.resident_bytes) == (5, 0, 0, 0)
        assert ngram.host_seconds_per_sequence > 0
        assert (lookahead.tokens, lookahead.width, lookahead.rows, lookahead.passes) == (4, 7, 28 + 27, 0)
        assert (small.tokens, small.width, small.columns, small.rows) == (2, 1, 3, 2 + 5)
        assert small.expected < lookahead.expected
        assert lookahead.expected < 5

    def test_text_decides_what_is_accepted(self, facts: SpeculationFacts) -> None:
        chat, code = (drafts(facts, "llama-3.1-8b", ("eagle3",), kind=kind)[3] for kind in ("chat", "code"))
        assert code.expected > chat.expected
        assert drafts(facts, "llama-3.1-8b", ("medusa",), kind="code") == drafts(
            facts, "llama-3.1-8b", ("medusa",)
        )

    def test_heads_draft_in_one_pass(self, facts: SpeculationFacts) -> None:
        found = drafts(facts, "llama-3.1-8b", ("medusa",))
        assert [one.tokens for one in found] == [0, 1, 2, 3, 4]
        assert {one.passes for one in found[1:]} == {1}
        head = 2 * 4096 * (4096 + 128256)
        assert [one.draft_bytes for one in found[1:]] == [head, 2 * head, 3 * head, 4 * head]
        assert {one.resident_bytes for one in found[1:]} == {4 * head}


class TestEagle3:
    @pytest.mark.parametrize(("name", "shown"), [("gpt-oss-20b", 0.9), ("qwen3-32b", 2), ("qwen3-8b", 1)])
    def test_parameters_are_those_of_the_published_checkpoints(
        self, facts: SpeculationFacts, name: str, shown: float
    ) -> None:
        """As the hub shows them in 1e9, rounded, with a copy of the model's embedding: those of the library
        vllm-project/speculators for gpt-oss-20b, Qwen3-32B and Qwen3-8B."""
        graph, one = graph_of(name), drafts(facts, name, ("eagle3",), lengths=(3,))[1]
        assert graph is not None
        billions = (one.resident_bytes / 2 + graph.vocabulary * graph.hidden) / 1e9
        assert round(billions, 1 if billions < 1 else 0) == shown

    def test_llama_8b_by_hand(self, facts: SpeculationFacts) -> None:
        one = drafts(facts, "llama-3.1-8b", ("eagle3",), lengths=(4,))[1]
        layer = 8192 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
        fusing, head = 3 * 4096 * 4096, 32000 * 4096
        assert one.draft_bytes == 2 * (layer + head + fusing / 4)
        assert one.draft_flops_per_token == 2 * (layer + head + fusing / 4)
        assert one.resident_bytes == 2 * (layer + head + fusing)
        assert (one.draft_layers, one.passes, one.draft_cache_elements_per_token) == (1, 4, 2 * 8 * 128)

    def test_a_mixture_needs_the_shape_of_the_layer(
        self, facts: SpeculationFacts, raw: dict[str, Any]
    ) -> None:
        assert len(drafts(facts, "qwen3-235b-a22b", ("eagle3",))) == 1 + DEPTH
        bare = [
            {key: value for key, value in one.items() if key != "layer"}
            for one in raw["eagle3"]["checkpoints"]
        ]
        without = SpeculationFacts.model_validate({**raw, "eagle3": {**raw["eagle3"], "checkpoints": bare}})
        assert len(drafts(without, "qwen3-235b-a22b", ("eagle3",))) == 1
        assert len(drafts(without, "llama-3.1-8b", ("eagle3",))) == 1 + DEPTH

    def test_checkpoints_and_pairs_are_for_models_of_the_catalog(self, facts: SpeculationFacts) -> None:
        names = {
            *(one.model for one in facts.eagle3.checkpoints),
            *(one.model for one in facts.medusa.checkpoints),
            *(name for pair in facts.pairs for name in (pair.draft, *pair.targets)),
        }
        assert [name for name in sorted(names) if load_card(name) is None] == []


class TestMtp:
    def test_deepseek_v3_has_as_much_as_its_makers_say(self, facts: SpeculationFacts) -> None:
        """README_WEIGHTS.md of DeepSeek-V3: 11.5 B parameters of its own; 2.4 B active, head and embedding
        (0.9 B each) among them."""
        one = drafts(facts, "deepseek-v3", ("mtp",), lengths=(2,))[1]
        assert one.resident_bytes / 2 / 1e9 == pytest.approx(11.5, rel=0.02)
        assert one.draft_bytes / 2 / 1e9 + 129280 * 7168 / 1e9 == pytest.approx(2.4, rel=0.1)
        assert (one.passes, one.draft_layers, one.draft) == (2, 1, None)

    def test_a_dense_module_where_that_is_known(self, facts: SpeculationFacts) -> None:
        """Model card of MiMo-V2-Flash: 0.33 B for each module."""
        one = drafts(facts, "mimo-v2-flash", ("mtp",), lengths=(1,))[1]
        assert one.resident_bytes / 2 / 1e9 == pytest.approx(0.33, rel=0.02)
        assert one.mixtures == ()

    def test_more_sequences_reach_more_experts(self, facts: SpeculationFacts) -> None:
        one = drafts(facts, "deepseek-v3", ("mtp",), lengths=(1,))[1]
        read = one.pass_bytes([1, 8, 64, 100000])
        assert read[0] == pytest.approx(one.draft_bytes)
        assert np.all(np.diff(read) > 0)
        head = 2 * 129280 * 7168
        assert read[-1] == pytest.approx(one.resident_bytes + head, rel=1e-3)
        dense = drafts(facts, "llama-3.1-8b", ("eagle3",), lengths=(1,))[1]
        assert list(dense.pass_bytes([1, 64])) == [dense.draft_bytes, dense.draft_bytes]

    @pytest.mark.parametrize(
        ("name", "layers"),
        [
            ("deepseek-v3", 1),
            ("glm-5", 1),
            ("qwen3.5-27b", 1),
            ("qwen3.5-397b-a17b", 1),
            ("nemotron-3-super-120b-a12b", 1),
            ("step-3.7-flash", 3),
            ("mimo-v2-flash", 3),
            ("mimo-7b", 1),
            ("kimi-k2", 0),
            ("minimax-m2.5", 0),
            ("minimax-m3", 0),
            ("llama-3.1-8b", 0),
        ],
    )
    def test_the_config_tells_and_unpublished_weights_do_not_count(
        self, facts: SpeculationFacts, name: str, layers: int
    ) -> None:
        card, graph = load_card(name), graph_of(name)
        assert card is not None and graph is not None
        assert mtp_layers(facts.mtp, graph, card.config) == layers
        assert len(drafts(facts, name, ("mtp",))) == (1 + DEPTH if layers else 1)

    def test_attention_and_experts_in_layers_of_their_own(self, facts: SpeculationFacts) -> None:
        one = drafts(facts, "nemotron-3-super-120b-a12b", ("mtp",), lengths=(1,))[1]
        assert one.mixtures and one.draft_cache_elements_per_token == 2 * 2 * 128


class TestFacts:
    def test_low_expected_and_high_rise_at_every_length(self, facts: SpeculationFacts) -> None:
        counts = np.arange(1, DEPTH + 1)
        for one in facts.acceptance:
            low, expected, high = (
                expected_tokens(rates, counts) for rates in (one.low, one.expected, one.high)
            )
            assert np.all(low <= expected + 1e-9) and np.all(expected <= high + 1e-9), (one.method, one.kind)

    def test_every_method_is_known(self, facts: SpeculationFacts) -> None:
        assert {one.method for one in facts.acceptance} == set(EVERY)
        with pytest.raises(KeyError):
            facts.model_copy(update={"acceptance": ()}).of("mtp")

    def test_a_figure_twice_or_without_the_general_one_is_refused(self, raw: dict[str, Any]) -> None:
        entries = raw["acceptance"]
        for wrong in ([*entries, entries[0]], [one for one in entries if one["kind"] != "general"]):
            with pytest.raises(ValidationError):
                SpeculationFacts.model_validate({**raw, "acceptance": wrong})
        bad = {**entries[0], "low": [1.2, *entries[0]["low"][1:]]}
        with pytest.raises(ValidationError):
            SpeculationFacts.model_validate({**raw, "acceptance": [bad, *entries[1:]]})
