"""Time: fixed cost + bytes / bandwidth + operations / rate + links, one term each, added.

Adding (rather than taking the largest) overlaps nothing, and no efficiency is above one, so a prediction
never lies below the physical bound. Numbers may be arrays, one entry per candidate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...catalog.coefficients import Calibration, Coefficients, Generation, Rates, Reach
from ...catalog.figure import Basis
from ...catalog.formats import CacheScheme, WeightScheme
from ...catalog.target import Link, Target
from ...graph.cost import Attention, Totals, expected_experts
from ...runtime.errors import Exit, InferCompileError, Problem
from ...runtime.formats.kv import HEAD_DIMS, LEVELS, layer_cache
from ...runtime.formats.weights import BF16
from .cache import Cache, Floats, Read, packed_share, read_bytes
from .layout import Layout
from .shape import Shape, Stored

REDUCES_PER_LAYER = 2
"""Tensor parallelism adds up partial sums after attention and after the MLP."""
EXCHANGES_PER_MIXTURE = 2
"""Expert parallelism over copies of the attention sends tokens to their experts, and the sums back."""
SENT_ELEMENT_BYTES = 2


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds by what they are spent on: floats, or equally long arrays."""

    weights: Floats = 0.0
    cache: Floats = 0.0
    compute: Floats = 0.0
    fixed: Floats = 0.0
    links: Floats = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            self.weights + other.weights,
            self.cache + other.cache,
            self.compute + other.compute,
            self.fixed + other.fixed,
            self.links + other.links,
        )

    def __sub__(self, other: Times) -> Times:
        return self + other.times(-1.0)

    def times(self, factor: Floats) -> Times:
        return Times(
            self.weights * factor,
            self.cache * factor,
            self.compute * factor,
            self.fixed * factor,
            self.links * factor,
        )

    @property
    def total(self) -> Floats:
        return self.weights + self.cache + self.compute + self.fixed + self.links


@dataclass(frozen=True, slots=True)
class Speed:
    """What one device does per second for one engine, weight scheme and cache level, efficiencies applied:
    bytes and operations; and seconds of fixed cost per step, layer, layer with experts, sequence, prompt,
    layer of a prompt, all-reduce and message between machines. ``*_issue``: bytes of the cache for which
    attention of single tokens issues its instructions, infinite where none are counted. ``packed_attention``:
    how many times faster attention multiplies what is packed than numbers in bf16, of single tokens
    ``decode_packed_attention``. ``link`` and ``network`` (bytes per second and direction within and between
    machines) are 0 where the target has none.

    ``peak_*`` are what the target states, for the bound.
    """

    weight_bandwidth: float
    exact_bandwidth: float
    packed_bandwidth: float
    exact_issue: float
    packed_issue: float
    matrix_rate: float
    expert_rate: float
    attention_rate: float
    decode_matrix_rate: float
    decode_attention_rate: float
    packed_attention: float
    decode_packed_attention: float
    link: float
    network: float
    step: float
    layer: float
    mixture: float
    sequence: float
    prompt: float
    prompt_layer: float
    reduce: float
    node: float
    routing: float
    peak_bandwidth: float
    peak_rate: float
    calibration: Calibration
    generation: Generation
    reach: Reach
    widen: float

    @property
    def basis(self) -> Basis:
        """What a time is worth as far as the engine is concerned: carried over from elsewhere, it is
        assumed."""
        return self.calibration.basis if self.reach in ("device", "class") else "assumption"

    @property
    def source(self) -> str:
        return self.calibration.source


def matrix_tflops(target: Target, scheme: WeightScheme) -> float | None:
    """Dense rate for products with ``scheme``, 1e12 per second; None where the target states none.

    Inputs rounded to fewer bits run at that rate where it is known, else at the bf16 rate.
    """
    rates = target.rates
    own = {"fp8": rates.fp8_tflops, "int8": rates.int8_tops, "fp4": rates.fp4_tflops}.get(scheme.products)
    return own or rates.bf16_tflops


def slots_per_second(target: Target, coefficients: Coefficients) -> float:
    """Instructions of lanes that a device issues: from its rate in bf16, or infinitely many where it states
    none."""
    rate = target.rates.bf16_tflops
    return np.inf if rate is None else rate * 1e12 * coefficients.issue.share(target)


def link_gbs(target: Target) -> float | None:
    """1e9 bytes per second and direction between two devices."""
    return _gbs(between_devices(target))


def network_gbs(target: Target) -> float | None:
    """1e9 bytes per second and direction of one device between machines."""
    return _gbs(between_machines(target))


def between_devices(target: Target) -> Link | None:
    """What two devices of a machine are joined by: the interconnect, else the host."""
    return _first(target.interconnect, target.host_link)


def between_machines(target: Target) -> Link | None:
    """What a device sends to other machines over: the network, else its host, else as to its neighbours."""
    return _first(target.network, target.host_link) or between_devices(target)


def _first(*links: Link | None) -> Link | None:
    """The first whose speed is known."""
    return next((link for link in links if _gbs(link) is not None), None)


def _gbs(link: Link | None) -> float | None:
    return None if link is None else link.gbs_per_direction


def speed(
    target: Target,
    coefficients: Coefficients,
    engine: str,
    scheme: WeightScheme,
    level: CacheScheme,
    build: str | None = None,
    *,
    own: bool = False,
) -> Speed:
    """``target`` as ``engine`` uses it. ``build``: a version, or empty for the newest that was measured, as
    its benchmark ran it; None: as one would run it, no request kept waiting for a slot that is free. ``own``:
    our own engine, whose exact pages are bf16 at any level.

    Raises IC206 where the target does not state the rate of the
    products."""
    found, reach = coefficients.find(engine, target, scheme.name, build)
    if build is None and found.waiting.queued:
        found = found.model_copy(update={"waiting": found.waiting.model_copy(update={"queued": 0.0})})
    matrices = matrix_tflops(target, scheme)
    if matrices is None:
        raise InferCompileError(
            Problem(
                "IC206",
                f"{target.id} states no rate of matrix products",
                fix="copy the target's file and add rates.bf16_tflops",
            ),
            Exit.INFEASIBLE,
        )
    plain = target.rates.bf16_tflops or matrices
    bandwidth = target.bandwidth_gbs * 1e9
    if target.kind == "cpu" and not target.measured:
        bandwidth *= coefficients.sustained
    rates = found.rates
    # What is counted are the instructions of our own kernels.
    slots = slots_per_second(target, coefficients) if own else np.inf
    packed = _packed_attention(level.name, rates) if own else 1.0
    integers = (target.rates.int8_tops or plain) / plain if level.name in rates.integer_levels else 1.0
    exact, exact_bits = (BF16.name, BF16.bits) if own else (level.name, level.number_bits)
    return Speed(
        weight_bandwidth=bandwidth * coefficients.share(rates.weight_efficiency, scheme.name),
        exact_bandwidth=bandwidth * coefficients.share(rates.cache_efficiency, exact),
        packed_bandwidth=bandwidth * coefficients.share(rates.cache_efficiency, level.name),
        exact_issue=_issue(exact, exact_bits, rates, slots),
        packed_issue=_issue(level.name, level.number_bits, rates, slots),
        matrix_rate=matrices * 1e12 * coefficients.share(rates.matrix_efficiency, scheme.name),
        expert_rate=matrices * 1e12 * coefficients.share(rates.expert_efficiency, scheme.name),
        attention_rate=plain * 1e12 * rates.attention_efficiency,
        decode_matrix_rate=matrices * 1e12 * coefficients.share(rates.decode_matrix_efficiency, scheme.name),
        decode_attention_rate=plain * 1e12 * rates.decode_attention_efficiency,
        packed_attention=packed,
        decode_packed_attention=packed * integers if own else 1.0,
        link=(link_gbs(target) or 0.0) * 1e9 * rates.link_efficiency,
        network=(network_gbs(target) or 0.0) * 1e9 * rates.link_efficiency,
        **_seconds(rates),
        routing=rates.routing,
        peak_bandwidth=target.bandwidth_gbs * 1e9,
        peak_rate=max(matrices, plain) * 1e12,
        calibration=found,
        generation=coefficients.settings(found),
        reach=reach,
        widen=coefficients.widen[reach],
    )


def _issue(level: str, bits: float, rates: Rates, slots: float) -> float:
    """Bytes per second of numbers of so many bits; infinitely many where nothing is counted."""
    each = rates.cache_slots.get(level)
    return bits / 8 * slots / each if each else np.inf


def _packed_attention(level: str, rates: Rates) -> float:
    """Keys and values are half of the products each; those kept as numbers are multiplied as bf16 is."""
    planes = layer_cache(LEVELS[level], HEAD_DIMS[0])
    codes = sum(plane.kind == "codes" for plane in (planes.keys, planes.values)) / 2
    return 1 / (1 - codes + codes / rates.coded_attention)


def _seconds(rates: Rates) -> dict[str, float]:
    micro = {
        "step": rates.step_us,
        "layer": rates.layer_us,
        "mixture": rates.mixture_us,
        "sequence": rates.sequence_us,
        "prompt": rates.prompt_us,
        "prompt_layer": rates.prompt_layer_us,
        "reduce": rates.reduce_us,
        "node": rates.node_us,
    }
    return {name: value * 1e-6 for name, value in micro.items()}


@dataclass(frozen=True, slots=True)
class Runner:
    """A model in given formats, laid out over devices: seconds of its steps."""

    shape: Shape
    stored: Stored
    cache: Cache
    layout: Layout
    speed: Speed

    def __post_init__(self) -> None:
        """Raises IC206 for several devices of a target that states no link."""
        if self.speed.link == 0 and np.any(np.asarray(self.layout.devices) > 1):
            raise InferCompileError(
                Problem(
                    "IC206",
                    "the target states no link between devices",
                    fix="count: 1, or copy the target's file and add its interconnect",
                ),
                Exit.INFEASIBLE,
            )

    def decode(
        self,
        sequences: Floats,
        context: Floats,
        tokens: Floats = 1,
        prompt_tokens: Floats = 0.0,
        prompt: Floats = 1,
    ) -> Times:
        """One step in which each of ``sequences`` sequences of a copy computes ``tokens`` tokens after about
        ``context`` others, while ``prompt_tokens`` tokens of prompts of ``prompt`` tokens ride along."""
        sequences, prompt_tokens = self._staged(sequences, prompt_tokens)
        new, prompts = sequences * tokens, prompt_tokens / np.maximum(prompt, 1)
        totals, tensor, speed = self.shape.totals, self.layout.tensor, self.speed
        compute = self._operations(new, new) / speed.decode_matrix_rate
        seen = visible_keys(totals, context) * self._attended(context, speed.decode_packed_attention)
        compute = compute + new * seen / speed.decode_attention_rate
        compute = compute + self._prompt(prompt_tokens, prompts, prompt)
        read = self._read(context)
        return self._step(new + prompt_tokens) + Times(
            cache=sequences * read.seconds(speed.exact_bandwidth, speed.packed_bandwidth),
            compute=compute / tensor + sequences * read.seconds(speed.exact_issue, speed.packed_issue),
            fixed=sequences * speed.sequence + prompts * self._launch(),
            links=self._sent(new + prompt_tokens),
        )

    def prefill(self, tokens: Floats, budget: Floats, prompts: Floats = 1) -> Times:
        """``prompts`` prompts of ``tokens`` tokens, alone, in steps of ``budget`` tokens, to their first
        tokens.

        Stages of a pipeline work on one chunk after another.
        """
        stages = np.asarray(self.layout.pipeline)
        every = np.asarray(tokens * prompts, dtype=np.float64)
        chunks = np.ceil(every / np.minimum(budget, np.maximum(every, 1)))
        chunk = every / np.maximum(chunks, 1)
        filling = (chunks + stages - 1) / stages
        compute = self._prompt(every, prompts, tokens)
        read = self._read(tokens / 2).seconds(self.speed.exact_bandwidth, self.speed.packed_bandwidth)
        once = self._step(chunk).times(filling)
        work = Times(
            cache=np.maximum(chunks, prompts) * read,
            compute=compute / self.layout.tensor,
            fixed=prompts * self.speed.prompt,
            links=self._sent(every),
        )
        launched = Times(fixed=chunks * self.shape.layers * self.speed.prompt_layer)
        return once + work.times(filling / np.maximum(chunks, 1)) + launched

    def bound(
        self,
        sequences: Floats,
        context: Floats,
        tokens: Floats = 1,
        prompt_tokens: Floats = 0.0,
        prompt: Floats = 1,
    ) -> Floats:
        """Seconds that no engine can go below in such a step of ``decode``: bytes over the target's
        bandwidth, or operations over its rate."""
        moved = self.moved_bytes(sequences, context, tokens, prompt_tokens)
        sequences, prompt_tokens = self._staged(sequences, prompt_tokens)
        new, prompts = sequences * tokens, prompt_tokens / np.maximum(prompt, 1)
        operations = (
            self._operations(new + prompt_tokens, new + prompts)
            + new * visible_keys(self.shape.totals, context)
            + prompts * prompt_operations(self.shape.totals, prompt)
        )
        return np.maximum(
            moved / self.speed.peak_bandwidth, operations / self.layout.tensor / self.speed.peak_rate
        )

    def moved_bytes(
        self, sequences: Floats, context: Floats, tokens: Floats = 1, prompt_tokens: Floats = 0.0
    ) -> Floats:
        """Bytes of weights and cache that a device reads in such a step of ``decode``."""
        sequences, prompt_tokens = self._staged(sequences, prompt_tokens)
        read = self._read(context)
        moved: Floats = self._weight_bytes(sequences * tokens + prompt_tokens)
        return moved + sequences * (read.exact + read.packed)

    def _staged(self, sequences: Floats, prompt_tokens: Floats) -> tuple[Floats, Floats]:
        """What of a step each stage of a pipeline works on at a time: a share of the sequences, so that a
        sequence waits for all layers but for a share of the others."""
        stages = np.asarray(self.layout.pipeline)
        return np.maximum(sequences / stages, np.minimum(sequences, 1.0)), prompt_tokens / stages

    def _prompt(self, tokens: Floats, prompts: Floats, each: Floats) -> Floats:
        """Seconds that one device would compute for ``tokens`` tokens of ``prompts`` prompts, ``each`` so
        long."""
        totals, speed = self.shape.totals, self.speed
        routed = tokens * totals.expert_flops_per_token
        shared = self._operations(tokens, prompts) - routed
        seen = prompt_operations(totals, each) * self._attended(each / 2, speed.packed_attention)
        attention = prompts * seen / speed.attention_rate
        return shared / speed.matrix_rate + routed / speed.expert_rate + attention

    def _attended(self, context: Floats, faster: float) -> Floats:
        """The time of attention after about ``context`` tokens, as a share of what it were with all of them
        in bf16, where what is packed is multiplied so many times ``faster``."""
        packed = packed_share(self.shape, self.cache, _whole(context))
        return 1 - packed * (1 - 1 / faster)

    def _launch(self) -> float:
        """Fixed cost of a prompt that rides along."""
        return self.speed.prompt + self.shape.layers * self.speed.prompt_layer

    def _step(self, tokens: Floats) -> Times:
        """What a step costs whatever it carries, and the weights that ``tokens`` tokens of a copy reach."""
        mixtures = sum(group.layers for group in self.shape.totals.mixtures)
        return Times(
            weights=self._weight_bytes(tokens) / self.speed.weight_bandwidth,
            fixed=self.speed.step + self.shape.layers * self.speed.layer + mixtures * self.speed.mixture,
            links=self._messages(mixtures),
        )

    def _weight_bytes(self, tokens: Floats) -> Floats:
        """Bytes that a device reads of all layers for ``tokens`` tokens of each copy; a device of a pipeline
        reads its own layers, and the others theirs after it."""
        layout = self.layout
        dealt = np.asarray(layout.expert) > 1
        together = np.where(dealt, layout.data, 1) * np.maximum(tokens, 1)
        shards = layout.tensor * np.where(dealt, layout.data, 1)
        reached: Floats = np.asarray(self.stored.shared_bytes / layout.tensor)
        independent = together**self.speed.routing
        for group, one in zip(self.shape.totals.mixtures, self.stored.expert_bytes, strict=True):
            hit = expected_experts(group.experts, group.experts_per_token, independent)
            reached = reached + group.layers * hit * one / shards
        tables = self.cache.table_bytes / layout.tensor
        return reached + tables + tokens * BF16.bytes(1, self.shape.hidden)

    def _operations(self, tokens: Floats, outputs: Floats) -> Floats:
        totals = self.shape.totals
        return tokens * totals.flops_per_token + outputs * totals.flops_per_output

    def _read(self, context: Floats) -> Read:
        """What a token of one sequence reads of its cache."""
        return read_bytes(self.shape, self.cache, _whole(context), self.layout.tensor)

    def _messages(self, mixtures: int) -> Floats:
        """Seconds that the messages of a step take, their bytes aside."""
        layout, speed = self.layout, self.speed
        tensor, data = np.asarray(layout.tensor), np.asarray(layout.data)
        reduces = REDUCES_PER_LAYER * self.shape.layers * _latency(tensor, layout.per_node, speed)
        exchanged = (np.asarray(layout.expert) > 1) & (data > 1)
        dealt = EXCHANGES_PER_MIXTURE * mixtures * _latency(tensor * data, layout.per_node, speed)
        hops = (np.asarray(layout.pipeline) - 1) * np.where(
            np.asarray(layout.devices) > layout.per_node, speed.node, speed.reduce
        )
        seconds: Floats = reduces + np.where(exchanged, dealt, 0.0) + hops
        return seconds

    def _sent(self, tokens: Floats) -> Floats:
        """Seconds that the bytes of ``tokens`` tokens of a copy take: all-reduces in a ring, exchanges with
        the experts' devices, boundaries of a pipeline."""
        layout, speed = self.layout, self.speed
        if speed.link == 0:
            return np.zeros(())
        tensor, data = np.asarray(layout.tensor), np.asarray(layout.data)
        message = tokens * self.shape.hidden * SENT_ELEMENT_BYTES
        ring = REDUCES_PER_LAYER * self.shape.layers * 2 * (tensor - 1) / tensor * message
        # Rings between machines run side by side, one over the network of each device.
        rings = min(speed.link, layout.per_node * speed.network)
        seconds: Floats = ring / np.where(tensor > layout.per_node, rings, speed.link)
        group = tensor * data
        away = 1 - 1 / np.maximum(data, 1)
        for mixture in self.shape.totals.mixtures:
            sent = (
                EXCHANGES_PER_MIXTURE * mixture.layers * mixture.experts_per_token * away * message / tensor
            )
            exchanged = (np.asarray(layout.expert) > 1) & (data > 1)
            seconds = seconds + np.where(
                exchanged, sent / np.where(group > layout.per_node, speed.network, speed.link), 0.0
            )
        crossing = np.where(np.asarray(layout.devices) > layout.per_node, speed.network, speed.link)
        return seconds + (np.asarray(layout.pipeline) - 1) * message / crossing


def _latency(devices: Floats, per_node: int, speed: Speed) -> Floats:
    """Seconds of one message among ``devices`` devices, its bytes aside."""
    within = np.where(np.asarray(devices) > 1, speed.reduce, 0.0)
    seconds: Floats = within + np.where(np.asarray(devices) > per_node, speed.node, 0.0)
    return seconds


def _whole(context: Floats) -> NDArray[np.int64]:
    return np.maximum(1, np.rint(context)).astype(np.int64)


def visible_keys(totals: Totals, context: Floats) -> Floats:
    """Attention operations of one new token after ``context`` others, over all layers."""
    operations: Floats = context * float(totals.index_flops_per_token_context)
    for group in totals.attention:
        operations = operations + group.flops_per_token_context * np.minimum(context, _limit(group))
    return operations


def prompt_operations(totals: Totals, tokens: Floats) -> Floats:
    """Attention operations of a prompt of ``tokens`` tokens, over all layers: those of each token with the
    keys that it sees, in the form that prompts are computed in."""
    operations: Floats = totals.index_flops_per_token_context * seen_keys(tokens)
    for group in totals.attention:
        per_pair = group.prompt_flops_per_token_context or group.flops_per_token_context
        operations = operations + per_pair * seen_keys(tokens, _limit(group))
    return operations


def seen_keys(tokens: Floats, limit: float = np.inf) -> Floats:
    """Pairs of a token and a key that it sees, itself included, in ``tokens`` tokens from the first on: the
    sum of min(position, limit)."""
    rising = np.minimum(tokens, limit)
    pairs: Floats = rising * (rising + 1) / 2 + (tokens - rising) * rising
    return pairs


def _limit(group: Attention) -> float:
    """Keys that a token of ``group`` sees at most."""
    window = np.inf if group.window is None else group.window
    return float(window if group.selected is None else min(window, group.selected))
