"""Program to the table of a GPU's step: operations become launches, joined where one kernel does several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..runtime.formats.latent import LatentLayout
from ..runtime.formats.launches import (
    SETTINGS,
    Blocks,
    Buffer,
    Case,
    Cases,
    Count,
    Launch,
    Line,
    Matmul,
    StepTable,
    View,
)
from ..runtime.formats.program import (
    Activate,
    Attend,
    AttendLatent,
    Embed,
    ExpertLinear,
    Feed,
    Gate,
    HeadNorm,
    Linear,
    Norm,
    Operation,
    Place,
    Program,
    Quantize,
    Rotary,
    Route,
    Score,
    Select,
    Tensor,
)
from .attention_launches import AttentionLaunches
from .cuda_constants import Tiling, power
from .dataflow import Product, product_of, read_as_it_is, readers_of, rounded_before
from .expert_launches import ExpertLaunches
from .latent_launches import LatentLaunches
from .refused import refuse
from .tiles import FREQUENCIES, WeightParts, place_of, scales
from .tilings import BLOCK, CAPTURED, ROW_BLOCK, product_tilings, usual_tilings, warps_of

FED = "fed"
"""The buffer of what is given with each token."""
BF16 = 0
"""The group of an operand that is not rounded to bytes."""


def step_table(program: Program, tilings: tuple[Tiling, ...] | None = None) -> StepTable:
    """The step of ``program``, its attention cut by ``tilings``, if not as is usual: of single tokens first,
    of chunks of any length last.

    Raises InferCompileError IC315 for what the GPU kernels do not run.
    """
    refuse(program)
    return _Writer(program, tilings or usual_tilings(program)).table()


class _Writer:
    """Gathers the lines and the buffers that they name."""

    def __init__(self, program: Program, tilings: tuple[Tiling, ...]) -> None:
        self._program = program
        self._tilings = tilings
        self._tensors = {tensor.name: tensor for tensor in program.tensors}
        self._weights = WeightParts(program)
        self._buffers: dict[str, Buffer] = {
            "tokens": Buffer(dtype="int32", width=1, per="rows"),
            "positions": Buffer(dtype="int32", width=1, per="rows"),
            "chosen": Buffer(dtype="int32", width=1, per="outputs"),
            "settings": Buffer(dtype="f64", width=SETTINGS, per="outputs"),
            "sampled": Buffer(dtype="int32", width=1, per="outputs"),
        }
        kind = LatentLaunches if isinstance(program.cache, LatentLayout) else AttentionLaunches
        self._attention = kind(program, tilings, self._weights.rotations, self._buffers)
        self._experts = ExpertLaunches(program, self._need)
        self._choices: dict[str, int] = {}
        """Places of each row in a buffer that choices of experts share."""
        if program.features:
            self._buffers[FED] = Buffer(dtype="f32", width=program.features, per="rows")
        self._rows: Count = "rows"
        self._shared = {op.output for op in program.operations if isinstance(op, Linear) and op.first}
        """Buffers that several products write side by side."""

    def table(self) -> StepTable:
        program = self._program
        lines = [*self._angles(), *self._part(program.prologue)]
        for layer in program.layers:
            lines += self._part(layer)
        head = list(self._part(program.epilogue))
        fed = (FED,) if program.features else ()
        return StepTable(
            program=program.digest,
            captured=tuple(rows for rows in CAPTURED if rows <= program.limits.max_outputs),
            tiles=tuple(tiling.tokens for tiling in self._tilings),
            inputs=("tokens", "positions", "chosen", "settings", *self._attention.inputs, *fed),
            hidden=program.hidden,
            weights_bytes=self._weights.bytes,
            weights=self._weights.parts,
            buffers=self._buffers,
            lines=tuple(lines),
            head=tuple(head),
        )

    def _angles(self) -> Iterator[Line]:
        """Cosines and sines of every kind of rotation: by positions, and back over what was evicted."""
        for index, rotary in enumerate(self._weights.rotations):
            yield self._turns("positions", index, rotary.scale, "")
            if self._program.limits.overflow == "evict":
                # What is turned was scaled before.
                yield self._turns("gaps", index, 1.0, "back.")

    def _turns(self, positions: str, index: int, scale: float, prefix: str) -> Launch:
        half = self._weights.rotations[index].head_dim // 2
        names = {name: f"{prefix}{name}.{index}" for name in ("cosine", "sine")}
        for name in names.values():
            self._need(name, half, "rows")
        return Launch(
            kernel="angles.angles",
            grid=(Blocks(of="rows"),),
            tensors={"positions": positions, "frequencies": FREQUENCIES.format(index), **names},
            constants={"SCALE": scale, "HALF": half, "BLOCK": power(half)},
            warps=1,
        )

    def _part(self, operations: Sequence[Operation]) -> Iterator[Line]:
        """The lines of neighbouring operations."""
        place = 0
        while place < len(operations):
            before, operation, rest = operations[:place], operations[place], operations[place + 1 :]
            place += 1
            if isinstance(operation, Linear | Quantize) and not rounded_before(operation, before):
                width = self._program.buffers[operation.input]
                yield self._rounding("round.round", operation.input, operation.input, width, (operation,))
            match operation:
                case Embed():
                    yield self._gather("tokens", operation.table, operation.output)
                case Select():
                    self._rows = "outputs"
                    yield self._gather("chosen", operation.input, operation.output)
                case Norm():
                    yield self._norm(operation, rest)
                case Gate():
                    yield self._gate(operation, rest)
                case Attend() | AttendLatent():
                    yield from self._attend(operation, rest)
                case Feed():
                    features, width = self._program.features, self._program.buffers[operation.output]
                    yield self._place(FED, features, operation.first, operation.output, 0, width)
                case Place():
                    width = self._program.buffers[operation.input]
                    yield self._place(operation.input, width, 0, operation.output, operation.first, width)
                case Activate():
                    yield self._activate(operation)
                case Linear() if operation.output in self._shared:
                    own = operation.model_copy(update={"output": f"{operation.output}.part", "first": 0})
                    yield from self._linear(own)
                    width = self._tensors[operation.weight].rows
                    yield self._place(own.output, width, 0, operation.output, operation.first, width)
                case Linear():
                    yield from self._linear(operation)
                case Score():
                    yield self._experts.score(operation, operation.output)
                case Route():
                    yield from self._experts.route(operation)
                case ExpertLinear():
                    self._choices[operation.output] = 1 if operation.combine else operation.per_token
                    form = self._tensors[operation.weight].format
                    rounded = form.activation != "none"
                    source = operation.input if rounded else _unrounded(operation.input)
                    yield from self._experts.products(operation, source)
                case HeadNorm() | Rotary():
                    turned = _turned(operations[place - 1 :])
                    yield self._turn(turned)
                    place += len(turned) - 1
                case Quantize():
                    # Whoever wrote the numbers wrote them rounded.
                    pass

    def _gather(self, chosen: str, table: str, output: str) -> Launch:
        width = self._program.buffers[output]
        self._need(output, width, self._rows)
        return Launch(
            kernel="gather.gather",
            grid=(Blocks(of=self._rows), -(-width // BLOCK)),
            tensors={"chosen": chosen, "table": table, "output": output},
            constants={"WIDTH": width, "BLOCK": BLOCK},
        )

    def _place(self, source: str, stride: int, first: int, output: str, place: int, width: int) -> Launch:
        """``width`` columns of ``source`` from ``first`` on to those of ``output`` from ``place`` on."""
        whole = self._program.buffers[output]
        self._need(output, whole, self._rows)
        return Launch(
            kernel="place.place",
            grid=(Blocks(of=self._rows), -(-width // BLOCK)),
            tensors={"input": source, "output": output},
            constants={
                "STRIDE": stride,
                "FIRST": first,
                "OUTPUT_STRIDE": whole,
                "OUTPUT_FIRST": place,
                "WIDTH": width,
                "BLOCK": BLOCK,
            },
        )

    def _activate(self, operation: Activate) -> Launch:
        width = self._program.buffers[operation.input]
        return Launch(
            kernel="activate.activate",
            grid=(Blocks(of=self._rows), -(-width // BLOCK)),
            tensors={"input": operation.input, "output": operation.output},
            constants={"WIDTH": width, "BLOCK": BLOCK},
        )

    def _norm(self, operation: Norm, rest: Sequence[Operation]) -> Launch:
        width, readers = self._program.buffers[operation.input], readers_of(operation.output, rest)
        products = [reader for reader in readers if isinstance(reader, Product)]
        keep = operation.output == self._program.hidden or read_as_it_is(operation.output, rest)
        if keep:
            self._need(operation.output, width, self._rows)
        operand: dict[str, str | View | None] = {"operand": None, "scales": None}
        rounding: dict[str, int | bool] = {"GROUP": BF16, "E4M3": False}
        if products:
            operand, rounding = self._operand(operation.output, width, rest)
        block = power(width)
        return Launch(
            kernel="norm.norm",
            grid=(Blocks(of=self._rows),),
            tensors={
                "input": operation.input,
                "weight": operation.weight,
                "output": operation.output if keep else None,
                **operand,
            },
            constants={
                "EPSILON": operation.epsilon,
                "WIDTH": width,
                "BLOCK": block,
                **rounding,
                "KEEP": keep,
                "ROUND": bool(products),
            },
            warps=warps_of(block),
        )

    def _gate(self, operation: Gate, rest: Sequence[Operation]) -> Launch:
        each, portion = self._choices.get(operation.input, 1), operation.portion
        launch = self._rounding("gate.gate", operation.input, operation.output, operation.width, rest, each)
        own = {"tensors": {"portion": portion} | launch.tensors}
        own["constants"] = launch.constants | {"PORTION": portion is not None}
        return launch.model_copy(update=own)

    def _attend(self, operation: Attend | AttendLatent, rest: Sequence[Operation]) -> Iterator[Line]:
        output, width = operation.output, self._program.buffers[operation.output]
        operand, rounding = self._operand(output, width, rest)
        group = int(rounding["GROUP"])
        if rounding["E4M3"] or not self._attention.rounds(operation, group):
            self._need(output, width, "rows")
            yield from self._attention.lines(operation, output, BF16)
            yield self._rounding("round.round", output, output, width, rest)
        else:
            yield from self._attention.lines(operation, str(operand["operand"]), group)

    def _rounding(
        self, kernel: str, source: str, output: str, width: int, rest: Sequence[Operation], each: int = 1
    ) -> Launch:
        """``each`` rows of ``width`` numbers for every row of the step."""
        operand, rounding = self._operand(output, width, rest, each)
        # The scale of a whole row is known when all of the row is: one program goes over it.
        whole = bool(rounding["E4M3"])
        block = min(power(width), ROW_BLOCK) if whole else BLOCK
        return Launch(
            kernel=kernel,
            grid=(Blocks(of=self._rows, each=each), 1 if whole else -(-width // block)),
            tensors={"input": source, **operand},
            constants={"WIDTH": width, "BLOCK": block, **rounding},
            warps=max(4, warps_of(block)),
        )

    def _operand(
        self, output: str, width: int, rest: Sequence[Operation], each: int = 1
    ) -> tuple[dict[str, str | View | None], dict[str, int | bool]]:
        """What the next product reads of ``output``: its tensors, and how it is rounded."""
        reader = product_of(output, rest)
        if not isinstance(reader, Quantize):
            self._need(_unrounded(output), each * width, self._rows, "bf16")
            return {"operand": _unrounded(output), "scales": None}, {"GROUP": BF16, "E4M3": False}
        name, e4m3 = reader.output, reader.to == "fp8"
        # One kind of row is shorter than another, and both begin at the same places.
        self._need(name, each * width, "rows", "e4m3" if e4m3 else "int8")
        self._need(scales(name), each * width // reader.group, "rows")
        rounding = {"GROUP": reader.group, "E4M3": e4m3}
        return {"operand": View(name=name, dtype="int8") if e4m3 else name, "scales": scales(name)}, rounding

    def _linear(self, operation: Linear) -> Iterator[Line]:
        tensor = self._tensors[operation.weight]
        self._need(operation.output, tensor.rows, self._rows)
        if tensor.format.type == "float" and tensor.format.scaled:
            yield from self._scaled(operation, tensor)
        elif not tensor.format.scaled:
            yield Matmul(
                of=self._rows,
                input=_unrounded(operation.input),
                weight=operation.weight,
                bias=operation.bias,
                output=operation.output,
                add=operation.add,
            )
        else:
            cases = [
                Case(most=most, launches=(self._product(operation, tensor, constants),))
                for most, constants in product_tilings(tensor.rows, tensor.cols, tensor.format)
            ]
            yield Cases(of=self._rows, cases=tuple(cases))

    def _scaled(self, operation: Linear, tensor: Tensor) -> Iterator[Line]:
        """The library's product of e4m3 numbers, then the scales of their rows."""
        self._need("products", tensor.rows, self._rows)
        yield Matmul(
            of=self._rows,
            input=operation.input,
            weight=tensor.name,
            bias=None,
            output="products",
            add=False,
        )
        yield Launch(
            kernel="scale.scale",
            grid=(Blocks(of=self._rows), -(-tensor.rows // BLOCK)),
            tensors={
                "products": "products",
                "scales": scales(operation.input),
                "weight_scales": scales(tensor.name),
                "bias": operation.bias,
                "output": operation.output,
            },
            constants={
                "ROWS": tensor.rows,
                "BIAS": operation.bias is not None,
                "ADD": operation.add,
                "BLOCK": BLOCK,
            },
        )

    def _product(self, operation: Linear, tensor: Tensor, constants: dict[str, int]) -> Launch:
        rounded = tensor.format.activation == "int8"
        return Launch(
            kernel="linear.linear",
            grid=(
                -(-tensor.rows // constants["BLOCK_N"]),
                Blocks(of=self._rows, size=constants["BLOCK_M"]),
            ),
            tensors={
                "input": operation.input if rounded else _unrounded(operation.input),
                "scales": scales(operation.input) if rounded else None,
                "weight": tensor.name,
                "weight_scales": scales(tensor.name),
                "bias": operation.bias,
                "output": operation.output,
            },
            counts={"rows": self._rows},
            constants={
                "ROWS": tensor.rows,
                "COLS": tensor.cols,
                "BITS": tensor.format.bits,
                "GROUP": tensor.format.group,
                "ROUNDED": rounded,
                "BIAS": operation.bias is not None,
                "ADD": operation.add,
                "BLOCK_M": constants["BLOCK_M"],
                "BLOCK_N": constants["BLOCK_N"],
            },
            warps=constants["warps"],
            stages=constants["stages"],
        )

    def _turn(self, operations: Sequence[HeadNorm | Rotary]) -> Launch:
        norms = [op for op in operations if isinstance(op, HeadNorm)]
        rotary = next((op for op in operations if isinstance(op, Rotary)), None)
        head_dim, buffer = operations[0].head_dim, operations[0].buffer
        first = min(op.first_head for op in operations)
        last = max(op.first_head + op.heads for op in operations)
        angles = None
        if rotary is not None:
            angles = place_of(rotary, self._weights.rotations)
        return Launch(
            kernel="turn.turn",
            grid=(Blocks(of=self._rows), last - first),
            tensors={
                "buffer": buffer,
                "cosine": None if angles is None else f"cosine.{angles}",
                "sine": None if angles is None else f"sine.{angles}",
                "query_weight": norms[0].weight if norms else None,
                "key_weight": norms[-1].weight if norms else None,
            },
            constants={
                "EPSILON": norms[0].epsilon if norms else 0.0,
                "STRIDE": self._program.buffers[buffer],
                "FIRST": first,
                "QUERIES": first + norms[0].heads if norms else last,
                "HEAD_DIM": head_dim,
                "BLOCK": power(head_dim // 2),
                "NORMED": bool(norms),
                "ROTATED": rotary is not None,
            },
            warps=1,
        )

    def _need(self, name: str, width: int, per: Count | None, dtype: str = "f32") -> None:
        """A buffer of at least that width."""
        known = self._buffers.get(name)
        width = max(width, known.width) if known else width
        self._buffers[name] = Buffer.model_validate({"dtype": dtype, "width": width, "per": per})


def _unrounded(buffer: str) -> str:
    """The name of what a product of bf16 numbers reads of ``buffer``."""
    return f"{buffer}.bf16"


def _turned(operations: Sequence[Operation]) -> list[HeadNorm | Rotary]:
    """How many of the first operations one launch does: norms of queries and of the keys behind them, then
    the rotation of both; or just the first."""
    run: list[HeadNorm | Rotary] = []
    for operation in operations:
        if not isinstance(operation, HeadNorm | Rotary) or (run and operation.buffer != run[0].buffer):
            break
        run.append(operation)
    match run:
        case [HeadNorm() as queries, HeadNorm() as keys, Rotary() as both, *_] if (
            queries.first_head == both.first_head
            and keys.first_head == queries.first_head + queries.heads
            and both.heads == queries.heads + keys.heads
            and queries.epsilon == keys.epsilon
        ):
            return [queries, keys, both]
    return run[:1]
