"""Metrics for Prometheus: vLLM's names under our own prefix or its own, in a registry of their own."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..loop import EngineLoop
from ..measure import Measured
from ..sequence import Sequence
from ..shadow import Unchecked, drift_percent
from ..speculation.speculator import Outcome

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SHORT = (
    0.001,
    0.0025,
    0.005,
    0.0075,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
)
LONG = (*SHORT, 20, 40, 80, 160, 320, 640, 1280, 2560)
COUNTS = tuple(float(2**power) for power in range(18))
PERCENT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
Names = Literal["infer", "vllm"]
OWN = "infer_"
PREFIX: dict[Names, str] = {"infer": OWN, "vllm": "vllm:"}
VLLM = frozenset(
    {
        "e2e_request_latency_seconds",
        "generation_tokens",
        "inter_token_latency_seconds",
        "iteration_tokens_total",
        "kv_cache_usage_perc",
        "num_preemptions",
        "num_requests_running",
        "num_requests_waiting",
        "prefix_cache_hits",
        "prefix_cache_queries",
        "prompt_tokens",
        "request_decode_time_seconds",
        "request_generation_tokens",
        "request_params_max_tokens",
        "request_prefill_time_seconds",
        "request_prompt_tokens",
        "request_queue_time_seconds",
        "request_success",
        "spec_decode_num_accepted_tokens",
        "spec_decode_num_accepted_tokens_per_pos",
        "spec_decode_num_draft_tokens",
        "spec_decode_num_drafts",
        "time_to_first_token_seconds",
    }
)
"""Names that vLLM has too (docs/design/metrics.md there); all others keep our prefix whatever is chosen."""

REFUSALS = (400, 401, 404, 408, 413, 429, 500, 503)


class Metrics:
    """Every series carries the model's name; see the help texts for units."""

    def __init__(self, model: str, names: Names = "infer") -> None:
        self.registry = CollectorRegistry()
        self._model = model
        self._prefix = PREFIX[names]
        self._steps = self._histogram("iteration_tokens_total", "Tokens computed per engine step.", COUNTS)
        self._first = self._histogram("time_to_first_token_seconds", "Arrival to first token.", LONG)
        self._between = self._histogram(
            "inter_token_latency_seconds", "Between tokens of one sequence.", SHORT
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "Arrival to the end.", LONG)
        self._queued = self._histogram("request_queue_time_seconds", "Arrival to admission.", LONG)
        self._prefill = self._histogram("request_prefill_time_seconds", "Admission to first token.", LONG)
        self._decode = self._histogram("request_decode_time_seconds", "First to last token.", LONG)
        self._prompts = self._histogram("request_prompt_tokens", "Prompt tokens per sequence.", COUNTS)
        self._answers = self._histogram("request_generation_tokens", "Generated tokens per sequence.", COUNTS)
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of admitted sequences.")
        self._generation_tokens = self._counter("generation_tokens", "Generated tokens.")
        self._evicted = self._counter(
            "evicted_tokens", "Tokens dropped from the contexts of sequences that outgrew them."
        )
        self._queried = self._counter("prefix_cache_queries", "Prompt tokens looked for in the cache.")
        self._hits = self._counter("prefix_cache_hits", "Prompt tokens that the cache held.")
        self._preemptions = self._counter(
            "num_preemptions", "Sequences that gave their pages to others, to compute their tokens again."
        )
        self._drafts = self._counter("spec_decode_num_drafts", "Steps of a sequence that verified drafts.")
        self._draft_tokens = self._counter(
            "spec_decode_num_draft_tokens", "Drafted tokens, one behind the other."
        )
        self._accepted = self._counter("spec_decode_num_accepted_tokens", "Drafted tokens that were kept.")
        self._at = self._labelled(
            "spec_decode_num_accepted_tokens_per_pos", "The same, by place behind the last token.", "position"
        )
        self._sibling_tokens = self._counter(
            "spec_decode_num_sibling_tokens", "Drafted tokens beside those: other choices for a place."
        )
        self._accepted_siblings = self._counter(
            "spec_decode_num_accepted_siblings", "The same, those that were drawn."
        )
        self._limits = self._histogram("request_params_max_tokens", "Longest answer asked for.", COUNTS)
        self._success = self._labelled(
            "request_success", "Sequences that ended with an answer, by reason.", "finished_reason"
        )
        self._unfinished = self._labelled(
            "request_unfinished",
            "Sequences without a whole answer: cancelled by the client, out of time, or failed.",
            "reason",
        )
        for reason in ("stop", "length"):
            self._success.labels(model, reason)
        for reason in ("cancelled", "deadline", "error"):
            self._unfinished.labels(model, reason)
        self._drift = self._histogram(
            "perplexity_drift_percent",
            "What the served cache adds to the perplexity of a checked answer, against an exact cache.",
            PERCENT,
        )
        self._checked_tokens = self._counter("shadow_tokens", "Tokens of checked answers.")
        self._nats = self._counter(
            "shadow_divergence_nats", "Divergence of the served cache from an exact one over these tokens."
        )
        self._shadow = self._labelled(
            "shadow_answers",
            "Answers drawn for a check: checked, or not, for too many waited or it was too long.",
            "outcome",
        )
        for outcome in ("checked", "busy", "too_long"):
            self._shadow.labels(model, outcome)
        self._refused = self._labelled(
            "requests_refused", "Requests answered with an error, by status.", "status"
        )
        # A series that begins with its first error shows no increase.
        for status in REFUSALS:
            self._refused.labels(model, str(status))

    def _name(self, name: str) -> str:
        return f"{self._prefix if name in VLLM else OWN}{name}"

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        whole = self._name(name)
        histogram = Histogram(whole, text, ["model_name"], registry=self.registry, buckets=buckets)
        return histogram.labels(self._model)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(self._name(name), text, ["model_name"], registry=self.registry).labels(self._model)

    def _labelled(self, name: str, text: str, label: str) -> Counter:
        """A counter with a second label."""
        return Counter(self._name(name), text, ["model_name", label], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(self._name(name), text, ["model_name"], registry=self.registry).labels(self._model)

    def watch(self, engine: EngineLoop, measured: Measured) -> None:
        """Adds the gauges, which are read from ``engine`` when asked for."""
        scheduler, pages = engine.scheduler, engine.pages
        running = self._gauge("num_requests_running", "Sequences in the batch.")
        running.set_function(lambda: len(scheduler.running))
        waiting = self._gauge("num_requests_waiting", "Sequences in the queue.")
        waiting.set_function(lambda: len(scheduler.waiting))
        usage = self._gauge("kv_cache_usage_perc", "Share of the cache's bytes in use, 0 to 1.")
        usage.set_function(lambda: pages.usage)
        token_bytes = self._gauge("cache_bytes_per_token", "Bytes of one cached token, measured at start.")
        token_bytes.set(measured.token_bytes)
        exact_bytes = self._gauge("cache_exact_bytes_per_token", "The same in an exact page, measured.")
        exact_bytes.set(measured.exact_token_bytes)
        for pool in (pages.exact, pages.packed):
            total = self._gauge(f"cache_{pool.name}_pages", f"Pages of the {pool.name} pool.")
            total.set(pool.size)
            used = self._gauge(f"cache_{pool.name}_pages_used", f"Pages of the {pool.name} pool in use.")
            used.set_function(lambda pool=pool: pool.used)

    def stepped(self, tokens: int) -> None:
        self._steps.observe(tokens)

    def evicted(self, tokens: int) -> None:
        self._evicted.inc(tokens)

    def admitted(self, sequence: Sequence) -> None:
        self._queried.inc(sequence.prompt_tokens)
        self._hits.inc(sequence.cached_tokens)

    def preempted(self, sequences: int) -> None:
        self._preemptions.inc(sequences)

    def drafted(self, outcome: Outcome) -> None:
        draft, verdict = outcome.draft, outcome.verdict
        depth = len(draft.chain)
        self._drafts.inc()
        self._draft_tokens.inc(depth)
        self._accepted.inc(verdict.accepted)
        for position in range(verdict.accepted):
            self._at.labels(self._model, str(position)).inc()
        self._sibling_tokens.inc(draft.rows - depth)
        self._accepted_siblings.inc(verdict.choice > 0)

    def drew(self, sequence: Sequence, since: float) -> None:
        self._generation_tokens.inc()
        (self._between if sequence.generated else self._first).observe(since)

    def ended(self, sequence: Sequence) -> None:
        times = sequence.times
        if sequence.ending in ("cancelled", "deadline", "error"):
            self._unfinished.labels(self._model, sequence.ending).inc()
            return
        self._success.labels(self._model, sequence.ending).inc()
        self._prompt_tokens.inc(sequence.prompt_tokens)
        self._prompts.observe(sequence.prompt_tokens)
        self._answers.observe(sequence.generated)
        self._limits.observe(sequence.request.max_tokens)
        self._whole.observe(times.ended - times.arrived)
        self._queued.observe(times.admitted - times.arrived)
        self._prefill.observe(times.first - times.admitted)
        self._decode.observe(times.last - times.first)

    def checked(self, tokens: int, nats: float) -> None:
        self._shadow.labels(self._model, "checked").inc()
        self._checked_tokens.inc(tokens)
        self._nats.inc(nats)
        self._drift.observe(drift_percent(nats, tokens))

    def unchecked(self, why: Unchecked) -> None:
        self._shadow.labels(self._model, why).inc()

    def refused(self, status: int) -> None:
        """A request was answered with an error."""
        self._refused.labels(self._model, str(status)).inc()

    def text(self) -> bytes:
        """The exposition, as ``CONTENT_TYPE``."""
        return bytes(generate_latest(self.registry))
