"""Time: fixed cost + bytes / bandwidth + operations / rate, one term each, added.

Adding (rather than taking the largest) overlaps nothing, so a prediction never lies below the physical bound.
Work is counted for the whole model and divided evenly over the devices that share it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..catalog.coefficients import EngineCoefficients
from ..catalog.target import Target
from ..graph.cost import Totals
from ..runtime.formats.kv import CacheLayout, LevelName
from ..runtime.formats.weights import BF16, WeightFormat
from .memory import per_device, read_bytes
from .shape import Shape, Stored

REDUCES_PER_LAYER = 2
"""Tensor parallelism adds up partial sums after attention and after the MLP."""
REDUCED_ELEMENT_BYTES = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """What one device (of ``tensor``) does per second, efficiencies applied: bytes, operations; and seconds
    of fixed cost per step, layer, sequence and all-reduce. ``link`` is 0 with one device."""

    weight_bandwidth: float
    exact_bandwidth: float
    packed_bandwidth: float
    matrix_rate: float
    attention_rate: float
    step: float
    layer: float
    sequence: float
    reduce: float
    link: float
    tensor: int


def matrix_tflops(target: Target, weights: WeightFormat) -> float | None:
    """Dense rate for products with ``weights``, 1e12 per second; None where the target states none.

    Activations rounded to int8 run at the int8 rate where it is known, else at the bf16 rate.
    """
    if weights.activation == "int8" and target.rates.int8_tops is not None:
        return target.rates.int8_tops
    return target.rates.bf16_tflops


def link_gbs(target: Target) -> float | None:
    """1e9 bytes per second and direction between two devices: the interconnect, else over the host."""
    for link in (target.interconnect, target.host_link):
        if link is not None and link.gbs_per_direction is not None:
            return link.gbs_per_direction
    return None


def machine(
    target: Target, weights: WeightFormat, level: LevelName, coefficients: EngineCoefficients, tensor: int = 1
) -> Machine:
    """``target`` as the engine of ``coefficients`` uses it. Raises ValueError where the target does not state
    the rate of the matrices or, for several devices, of the link."""
    matrices, attention = matrix_tflops(target, weights), matrix_tflops(target, BF16)
    link = link_gbs(target) if tensor > 1 else 0.0
    if matrices is None or attention is None or link is None:
        raise ValueError(f"{target.id} states no {'link' if link is None else 'matrix'} rate")
    bandwidth = target.bandwidth_gbs * 1e9
    if not target.measured:
        bandwidth *= coefficients.unmeasured_bandwidth.value
    cache = {name: bandwidth * figure.value for name, figure in coefficients.cache_efficiency.items()}
    return Machine(
        weight_bandwidth=bandwidth * coefficients.weight_efficiency[weights.name].value,
        exact_bandwidth=cache["bf16"],
        packed_bandwidth=cache[level],
        matrix_rate=matrices * 1e12 * coefficients.matrix_efficiency[weights.name].value,
        attention_rate=attention * 1e12 * coefficients.attention_efficiency.value,
        step=coefficients.step_us.value * 1e-6,
        layer=coefficients.layer_us.value * 1e-6,
        sequence=coefficients.sequence_us.value * 1e-6,
        reduce=coefficients.reduce_us.value * 1e-6,
        link=link * 1e9,
        tensor=tensor,
    )


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds by what they are spent on."""

    weights: float = 0.0
    cache: float = 0.0
    compute: float = 0.0
    fixed: float = 0.0
    links: float = 0.0

    def __add__(self, other: Times) -> Times:
        return Times(
            self.weights + other.weights,
            self.cache + other.cache,
            self.compute + other.compute,
            self.fixed + other.fixed,
            self.links + other.links,
        )

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.compute + self.fixed + self.links


@dataclass(frozen=True, slots=True)
class Runner:
    """A model in given formats on a machine: seconds of its steps."""

    shape: Shape
    stored: Stored
    layout: CacheLayout
    machine: Machine

    def decode(self, sequences: float, context: int) -> Times:
        """One step in which ``sequences`` sequences of ``context`` tokens each gain one token."""
        reads = self._reads(context)
        return (
            self._step()
            + self._tokens(sequences, sequences)
            + self._attention(sequences * attention_operations(self.shape.totals, context - 1, 1))
            + Times(cache=sequences * reads, fixed=sequences * self.machine.sequence)
        )

    def chunk(self, start: int, tokens: int, outputs: int = 0) -> Times:
        """One step with ``tokens`` new tokens of a single prompt after ``start`` cached ones.

        The cache is taken to be read once, as its last token sees it.
        """
        return (
            self._step()
            + self._tokens(tokens, outputs)
            + self._attention(attention_operations(self.shape.totals, start, tokens))
            + Times(cache=self._reads(start + tokens), fixed=self.machine.sequence)
        )

    def prefill(self, tokens: int, chunk: int) -> Times:
        """A prompt of ``tokens`` tokens, alone, in chunks, to its first token."""
        times = Times()
        for start in range(0, tokens, chunk):
            count = min(chunk, tokens - start)
            times += self.chunk(start, count, outputs=int(start + count == tokens))
        return times

    def interleaved(self, tokens: float, prompt: int) -> Times:
        """What ``tokens`` more tokens of prompts of ``prompt`` tokens add to a step."""
        pairs = attention_operations(self.shape.totals, 0, prompt) / prompt
        return self._tokens(tokens, 0) + self._attention(tokens * pairs)

    def _step(self) -> Times:
        """What every step costs, whatever it carries."""
        machine = self.machine
        streamed = self.stored.streamed_bytes / machine.tensor
        reduces = REDUCES_PER_LAYER * self.shape.layers * machine.reduce if machine.tensor > 1 else 0.0
        return Times(
            weights=streamed / machine.weight_bandwidth,
            fixed=machine.step + self.shape.layers * machine.layer,
            links=reduces,
        )

    def _tokens(self, tokens: float, outputs: float) -> Times:
        """Products, embedding rows and reductions of ``tokens`` tokens, ``outputs`` of them with logits."""
        machine = self.machine
        operations = tokens * self.shape.totals.flops_per_token + outputs * self.shape.totals.flops_per_output
        rows = tokens * BF16.bytes(1, self.shape.hidden)
        return Times(
            weights=rows / machine.weight_bandwidth,
            compute=operations / machine.tensor / machine.matrix_rate,
            links=self._reduce(tokens),
        )

    def _reduce(self, tokens: float) -> float:
        """Seconds that the bytes of the all-reduces of ``tokens`` tokens take, in a ring."""
        tensor = self.machine.tensor
        if tensor == 1:
            return 0.0
        message = tokens * self.shape.hidden * REDUCED_ELEMENT_BYTES
        return REDUCES_PER_LAYER * self.shape.layers * 2 * (tensor - 1) / tensor * message / self.machine.link

    def _attention(self, operations: float) -> Times:
        return Times(compute=operations / self.machine.tensor / self.machine.attention_rate)

    def _reads(self, context: int) -> float:
        """Seconds to read the cache of one sequence."""
        layout = per_device(self.layout, self.machine.tensor)
        seconds = 0.0
        for group in self.shape.totals.attention:
            exact, packed = read_bytes(layout, context, group.window, group.layers)
            seconds += exact / self.machine.exact_bandwidth + packed / self.machine.packed_bandwidth
        return seconds


def attention_operations(totals: Totals, start: int, tokens: int) -> float:
    """Attention operations of ``tokens`` new tokens after ``start`` cached ones, over all layers."""
    return float(
        sum(
            group.flops_per_token_context * seen_keys(start, tokens, group.window)
            for group in totals.attention
        )
    )


def seen_keys(start: int, tokens: int, window: int | None = None) -> int:
    """Pairs of a new token and a key that it sees: the sum of min(position + 1, window)."""
    end = start + tokens
    if window is None or end <= window:
        return (end * (end + 1) - start * (start + 1)) // 2
    below = max(0, window - start)
    return seen_keys(start, below) + (tokens - below) * window
