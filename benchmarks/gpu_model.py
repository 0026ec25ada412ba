"""A Llama of random weights on a GPU engine, its pools full, and its step as a whole and by its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from gpu_cache import COPIED, Places, limits_of, spread
from gpu_engine import folder_of, opened, prepare
from gpu_subjects import attends, launches_of, read_bytes
from gpu_timer import Timer
from infer_compile.codegen.launches import step_table
from infer_compile.graph.build import build
from infer_compile.lower.assemble import assemble
from infer_compile.runtime.engines.cuda import CudaEngine
from infer_compile.runtime.formats.kv import LEVELS
from infer_compile.runtime.formats.launches import Line, Matmul, StepTable
from infer_compile.runtime.formats.program import Attend, Linear, Operation, Program
from infer_compile.runtime.formats.weights import weight_format
from infer_compile.runtime.step import SequenceStep
from synthetic_cache import layout_of

Part = Literal["products", "attention", "rest"]
PARTS: tuple[Part, ...] = ("products", "attention", "rest")
GROUP = 128


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a model; its cache's pages, how many of them differ, and tokens decoded by the clock, in which one
    page of each sequence is sealed."""

    sizes: Mapping[str, int]
    page_tokens: int = 32
    copied: int = COPIED
    answer: int = 32


SHAPES: Mapping[str, Shape] = MappingProxyType(
    {
        # meta-llama/Llama-3.1-8B, its config.json.
        "8b": Shape(
            {
                "vocab_size": 128256,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
            }
        ),
        "tiny": Shape(
            {
                "vocab_size": 64,
                "hidden_size": 128,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 64,
            },
            page_tokens=16,
            copied=2,
            answer=2,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Setup:
    """One engine, and what it decodes: ``batch`` sequences behind ``depth`` tokens each."""

    weights: str
    level: str
    batch: int
    depth: int

    @classmethod
    def read(cls, text: str) -> Setup:
        """As ``int4-rtn/tq3/32/16384``."""
        weights, level, batch, depth = text.split("/")
        return cls(weights, level, int(batch), int(depth))

    def __str__(self) -> str:
        return f"{self.weights}/{self.level}/{self.batch}/{self.depth}"


def config_of(shape: str) -> dict[str, object]:
    return dict(SHAPES[shape].sizes) | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }


def context_of(shape: str, setup: Setup, chunk: int) -> int:
    """Tokens of the longest sequence that is measured."""
    return max(setup.depth + SHAPES[shape].answer, chunk)


def program_of(shape: str, setup: Setup, chunk: int) -> Program:
    own, sizes = SHAPES[shape], SHAPES[shape].sizes
    layout = layout_of(
        LEVELS[setup.level],
        sizes["num_hidden_layers"],
        sizes["num_key_value_heads"],
        sizes["head_dim"],
        own.page_tokens,
    )
    form = weight_format("bf16") if setup.weights == "bf16" else weight_format(setup.weights, GROUP)
    limits = limits_of(layout, setup.batch, context_of(shape, setup, chunk), chunk, own.copied)
    return assemble(build(config_of(shape), "synthetic"), form, layout, limits)


def place_of(work: Path, shape: str, setup: Setup) -> Path:
    """Of the kernels: those of one shape, weights and cache are the same whatever the batch."""
    return folder_of(work, f"decode-{shape}-{setup.weights}-{setup.level}")


def prepared(work: Path, shape: str, setup: Setup, capability: int) -> None:
    """Compile the kernels; no GPU is needed."""
    program = program_of(shape, setup, 1)
    prepare(place_of(work, shape, setup), program, step_table(program), capability)


class Model:
    """The engine of ``setup`` on ``device``, its pools filled up to ``setup.depth`` and a bit more."""

    def __init__(self, work: Path, shape: str, setup: Setup, device: str, ahead: bool, chunk: int) -> None:
        self.setup, self.chunk, self.answer = setup, chunk, SHAPES[shape].answer
        self.program = program_of(shape, setup, chunk)
        self.table: StepTable = step_table(self.program)
        place = place_of(work, shape, setup)
        self.engine: CudaEngine = opened(place, self.program, self.table, device, ahead)
        context = context_of(shape, setup, chunk)
        self.places = Places(
            self.program.cache, self.program.limits, setup.batch, context, SHAPES[shape].copied
        )
        self.engine.step([self.places.first()])
        spread(self.engine, self.places, self.places.steps(setup.depth))

    def decoded(self, timer: Timer) -> float:
        """Seconds of a step by the clock of the processor, with all that is around it."""
        batches = [
            self.places.steps(self.setup.depth + place, accepted=1) for place in range(self.answer - 1)
        ]
        # Once as launches, once captured, once as a graph.
        for _ in range(3):
            self.engine.step(batches[0])
        return timer.stepped([partial(self.engine.step, own) for own in batches])

    def times(self, timer: Timer) -> dict[str, float]:
        """Seconds on the device: of the step as a graph, launch by launch, and of its parts as graphs."""
        steps = self.places.steps(self.setup.depth)
        whole = self.engine.prepared(steps)
        found = {"graph": timer.replayed(whole), "launches": timer.launched(whole)}
        return found | self._parts(timer, steps)

    def chunk_times(self, timer: Timer) -> dict[str, float]:
        """Of a chunk of a prompt, with nothing before it."""
        count = self.chunk
        step = self.places.steps(0, count, accepted=count)[0]
        found = {"launches": timer.launched(self.engine.prepared([step]))}
        return found | self._parts(timer, [step])

    def _parts(self, timer: Timer, steps: Sequence[SequenceStep]) -> dict[str, float]:
        lines = (*self.table.lines, *self.table.head)
        return {
            part: timer.replayed(self.engine.prepared(steps, [line for line in lines if kind(line) == part]))
            for part in PARTS
        }

    @property
    def weight_bytes(self) -> int:
        """Of weights that a step reads: all matrices but the embedding, of which it reads a row."""
        matrices = {op.weight for op in self._operations() if isinstance(op, Linear)}
        return sum(tensor.bytes for tensor in self.program.tensors if tensor.name in matrices)

    @property
    def cache_bytes(self) -> int:
        return self.setup.batch * read_bytes(self.program.cache, self.setup.depth + 1)

    def product_flops(self, tokens: int) -> float:
        """Of the matrices of the layers, for ``tokens`` tokens, and of the head for one."""
        layers = {op.weight for part in self.program.layers for op in part if isinstance(op, Linear)}
        head = {op.weight for op in self.program.epilogue if isinstance(op, Linear)}
        sizes = {tensor.name: tensor.rows * tensor.cols for tensor in self.program.tensors}
        return 2.0 * (tokens * sum(sizes[name] for name in layers) + sum(sizes[name] for name in head))

    def attention_flops(self, tokens: int) -> float:
        """Of the queries of ``tokens`` tokens with nothing before them, each over those up to itself."""
        heads = sum(op.heads * op.head_dim for op in self._operations() if isinstance(op, Attend))
        return 4.0 * heads * tokens * (tokens + 1) / 2

    def _operations(self) -> list[Operation]:
        return [op for part in self.program.layers for op in part] + list(self.program.epilogue)


def kind(line: Line) -> Part:
    """Which part of a step a line belongs to: products read weights, attention reads and writes the cache."""
    if isinstance(line, Matmul):
        return "products"
    launch = next(launches_of(line))
    if launch.kernel.startswith(("linear.", "experts.")):
        return "products"
    return "attention" if attends(launch) else "rest"
