"""The launches of a mixture of experts: the choices of a step, dealt to tiles on the device, and products by
tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from ..runtime.formats.launches import Blocks, Case, Cases, Launch, Line, View
from ..runtime.formats.program import LEAST_SUM, ExpertLinear, Program, Route, Score, Tensor
from .cuda_constants import Constants, power
from .tiles import scales
from .tilings import BLOCK, expert_tilings

ROUTER = {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 64}
INNER_BLOCK, INNER_BYTES = 64, 128
"""Inputs of a product of bf16 numbers at once, and of bytes."""

Need = Callable[..., None]
"""Asks for a buffer: name, width, what it is counted in, type of numbers."""


def route_constants(operation: Route, experts: int) -> Constants:
    """What the choice among ``experts`` is compiled with."""
    routing = operation.routing
    size = experts // routing.groups
    return {
        "CHOICES": operation.per_token,
        "SIGMOID": routing.likelihood == "sigmoid",
        "BIASED": operation.bias is not None,
        "NORMALIZED": routing.normalized,
        "LEAST_SUM": LEAST_SUM,
        "SCALE": routing.scale,
        "GROUPS": routing.groups,
        "SIZE": size,
        "KEPT": routing.kept_groups,
        "BEST": routing.group_best,
        "GROUP_LANES": power(routing.groups),
        "SIZE_LANES": power(size),
        "PLACES": power(operation.per_token),
    }


class ExpertLaunches:
    """Writes the lines of routers and experts of ``program``, and asks for their buffers by ``need``."""

    def __init__(self, program: Program, need: Need) -> None:
        self._program = program
        self._tensors = {tensor.name: tensor for tensor in program.tensors}
        self._need = need

    def score(self, operation: Score | Route, output: str) -> Launch:
        tensor = self._tensors[operation.weight]
        self._need(output, tensor.rows, "rows")
        return Launch(
            kernel="route.score",
            grid=(Blocks(of="rows", size=ROUTER["BLOCK_M"]), -(-tensor.rows // ROUTER["BLOCK_N"])),
            tensors={"input": operation.input, "weight": operation.weight, "output": output},
            counts={"rows": "rows"},
            constants={"EXPERTS": tensor.rows, "COLS": tensor.cols, **ROUTER},
        )

    def route(self, operation: Route) -> Iterator[Line]:
        name, choices = operation.output, operation.per_token
        scores = f"{name}.scores"
        yield self.score(operation, scores)
        self._need(f"{name}.chosen", choices, "rows", "int32")
        self._need(f"{name}.shares", choices, "rows")
        yield Launch(
            kernel="route.choose",
            grid=(Blocks(of="rows"),),
            tensors={
                "scores": scores,
                "bias": operation.bias,
                "chosen": f"{name}.chosen",
                "shares": f"{name}.shares",
            },
            constants=route_constants(operation, self._tensors[operation.weight].rows),
            warps=1,
        )

    def products(self, operation: ExpertLinear, input: str) -> Iterator[Line]:
        """``input`` is the operand that the operation reads. The first product of a router's choices deals
        them to tiles."""
        tensor, choices = self._tensors[operation.weight], operation.per_token
        experts = tensor.rows // operation.rows
        output = f"{operation.routes}.products" if operation.combine else operation.output
        self._need(output, choices * operation.rows, "rows")
        cases = []
        for most, tiling in expert_tilings(experts, choices):
            launches = [self._product(operation, tensor, input, output, tiling)]
            if not operation.combine:
                launches = [*self._dealt(operation, experts, tiling["TILE"]), *launches]
            cases.append(Case(most=most, launches=tuple(launches)))
        yield Cases(of="rows", cases=tuple(cases))
        if operation.combine:
            yield self._combined(operation, output)

    def _dealt(self, operation: ExpertLinear, experts: int, tile: int) -> Iterator[Launch]:
        name, choices = operation.routes, operation.per_token
        tiles = Blocks(of="rows", size=tile, each=choices, more=experts).programs(
            self._program.limits.max_batch_tokens
        )
        self._need(f"{name}.counts", experts, None, "int32")
        self._need(f"{name}.choices", tiles * tile, None, "int32")
        self._need(f"{name}.owners", tiles, None, "int32")
        chosen = {"chosen": f"{name}.chosen", "counts": f"{name}.counts"}
        yield Launch(
            kernel="experts.count",
            grid=(experts,),
            tensors=chosen,
            counts={"rows": "rows"},
            constants={"CHOICES": choices, "BLOCK": BLOCK},
        )
        yield Launch(
            kernel="experts.deal",
            grid=(experts,),
            tensors={**chosen, "choices": f"{name}.choices", "owners": f"{name}.owners"},
            counts={"rows": "rows"},
            constants={
                "CHOICES": choices,
                "EXPERTS": experts,
                "WIDE": power(experts),
                "TILE": tile,
                "BLOCK": BLOCK,
            },
        )

    def _product(
        self, operation: ExpertLinear, tensor: Tensor, input: str, output: str, tiling: dict[str, int]
    ) -> Launch:
        name, choices, form = operation.routes, operation.per_token, tensor.format
        experts = tensor.rows // operation.rows
        tensors: dict[str, str | View | None] = {
            "input": input,
            "weight": tensor.name,
            "choices": f"{name}.choices",
            "owners": f"{name}.owners",
            "output": output,
        }
        constants = {
            "ROWS": operation.rows,
            "COLS": tensor.cols,
            "SHARED": 1 if operation.combine else choices,
            "TILE": tiling["TILE"],
            "BLOCK_N": tiling["BLOCK_N"],
        }
        rounded = form.activation == "int8"
        e4m3 = form.scaled and form.type == "float"
        if e4m3:
            tensors |= {
                "input": View(name=input, dtype="int8"),
                "weight": View(name=tensor.name, dtype="int8"),
                "scales": scales(operation.input),
                "weight_scales": scales(tensor.name),
            }
            constants |= {"BLOCK_K": INNER_BYTES}
        elif form.scaled:
            tensors |= {
                "scales": scales(operation.input) if rounded else None,
                "weight_scales": scales(tensor.name),
            }
            constants |= {"BITS": form.bits, "GROUP": form.group, "ROUNDED": rounded, "CHOICES": choices}
        else:
            constants |= {"BLOCK_K": INNER_BLOCK}
        kernel = "multiply_e4m3" if e4m3 else "multiply_codes" if form.scaled else "multiply"
        return Launch(
            kernel=f"experts.{kernel}",
            grid=(
                -(-operation.rows // tiling["BLOCK_N"]),
                Blocks(of="rows", size=tiling["TILE"], each=choices, more=experts),
            ),
            tensors=tensors,
            counts={"rows": "rows"} if form.scaled and not e4m3 else {},
            constants=constants,
            warps=tiling["warps"],
            stages=tiling["stages"],
        )

    def _combined(self, operation: ExpertLinear, products: str) -> Launch:
        return Launch(
            kernel="experts.combine",
            grid=(Blocks(of="rows"), -(-operation.rows // BLOCK)),
            tensors={
                "products": products,
                "shares": f"{operation.routes}.shares",
                "output": operation.output,
            },
            constants={"CHOICES": operation.per_token, "WIDTH": operation.rows, "BLOCK": BLOCK},
        )
