"""Instructions that threads of a warp do together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .mask import WARP
from .matrices import load_matrices, product, store_matrices
from .numbers import KINDS, Array
from .operands import Address, Pair, Read, Vector
from .statements import Statement
from .text import Unknown
from .warps import Execute, Warps
from .watch import Flags, refuse

_WORD, _PREDICATE, _COUNT = KINDS["b32"], KINDS["pred"], KINDS["u32"]
_EVERYBODY = np.array(0xFFFFFFFF, np.uint32)
SOURCES = ("up", "down", "bfly", "idx")
REDUCTIONS: dict[str, Callable[..., Array]] = {
    "add": np.add.reduce,
    "min": np.minimum.reduce,
    "max": np.maximum.reduce,
    "and": np.bitwise_and.reduce,
    "or": np.bitwise_or.reduce,
    "xor": np.bitwise_xor.reduce,
}


def _everybody(warps: Warps) -> Array:
    return _EVERYBODY


def multiply(statement: Statement) -> tuple[Execute, Read]:
    multiply = product(statement.line.opcode)
    vectors = [each for each in statement.operand(4) if isinstance(each, Vector)]
    fragments = (multiply.sums, multiply.first, multiply.second, multiply.sums)
    if [len(each.parts) for each in vectors] != [len(each.rows) for each in fragments]:
        raise Unknown(statement.line.text)
    writes = [part.writer(_WORD) for part in vectors[0].parts]
    reads = [[part.reader(_WORD) for part in vector.parts] for vector in vectors[1:]]

    def execute(warps: Warps) -> None:
        found = multiply.run(*([read(warps) for read in each] for each in reads))
        for write, words in zip(writes, found, strict=True):
            write(warps, words)

    return execute, _everybody


def matrices(statement: Statement) -> tuple[Execute, Read]:
    """``ldmatrix`` and ``stmatrix``."""
    match statement.parts:
        case ["sync", "aligned", "m8n8", ("x1" | "x2" | "x4") as many, *rest, "b16"] if rest[-1:] in (
            ["shared"],
            ["shared::cta"],
        ) and rest[:-1] in ([], ["trans"]):
            count, transposed = int(many[1:]), len(rest) == 2
        case _:
            raise Unknown(statement.line.text)
    stores = statement.head == "stmatrix"
    place, vector = statement.operand(2) if stores else reversed(statement.operand(2))
    if not isinstance(place, Address) or not isinstance(vector, Vector) or len(vector.parts) != count:
        raise Unknown(statement.line.text)
    addresses = place.bytes()
    if stores:
        reads = [part.reader(_WORD) for part in vector.parts]
        return (
            lambda warps: store_matrices(warps, addresses, [read(warps) for read in reads], transposed),
            _everybody,
        )
    writes = [part.writer(_WORD) for part in vector.parts]

    def execute(warps: Warps) -> None:
        for write, words in zip(writes, load_matrices(warps, addresses, count, transposed), strict=True):
            write(warps, words)

    return execute, _everybody


def shuffle(statement: Statement) -> tuple[Execute, Read]:
    if statement.parts[0] != "sync" or statement.parts[1] not in SOURCES or len(statement.parts) != 3:
        raise Unknown(statement.line.text)
    target, source, lane, limits, members = statement.operand(5)
    kind, first, second = statement.kind(), target, None
    if isinstance(target, Pair):
        first, second = target.first, target.second.writer(_PREDICATE)
    write, reads = first.writer(kind), [each.reader(_COUNT) for each in (source, lane, limits)]
    mode = statement.parts[1]

    def execute(warps: Warps) -> None:
        values, inside = shuffled(warps, mode, *(read(warps) for read in reads))
        write(warps, values.view(kind.number))
        if second is not None:
            second(warps, inside)

    return execute, members.reader(_COUNT)


def vote(statement: Statement) -> tuple[Execute, Read]:
    match statement.parts:
        case ["sync", ("any" | "all" | "uni") as mode, "pred"] | ["sync", "ballot" as mode, "b32"]:
            kind = statement.kind()
        case _:
            raise Unknown(statement.line.text)
    target, source, members = statement.operand(3)
    write, read, named = target.writer(kind), source.reader(_PREDICATE), members.reader(_COUNT)
    return lambda warps: write(warps, voted(warps, mode, read(warps), named(warps))), named


def reduce(statement: Statement) -> tuple[Execute, Read]:
    parts, kind = statement.parts, statement.kind()
    magnitude = parts[2:-1] == ["abs"] and kind.floats
    known = parts[0] == "sync" and parts[1] in REDUCTIONS and (magnitude or len(parts) == 3)
    if not known or kind.size != 4 or kind.packed:
        raise Unknown(statement.line.text)
    target, source, members = statement.operand(3)
    write, read, named = target.writer(kind), source.reader(kind), members.reader(_COUNT)

    def execute(warps: Warps) -> None:
        values = read(warps)
        values = np.abs(values) if magnitude else values
        write(warps, reduced(warps, parts[1], values, named(warps)))

    return execute, named


def wait(statement: Statement) -> tuple[Execute, Read]:
    if statement.parts != ["warp", "sync"]:
        raise Unknown(statement.line.text)
    (members,) = statement.operand(1)
    named = members.reader(_COUNT)

    def execute(warps: Warps) -> None:
        together = warps.mask.flags & (named(warps) == warps.mask.bits)
        whole = (together | ~warps.alive).reshape(-1, WARP).all(axis=1)
        warps.shared.settle_warps(whole, WARP)

    return execute, named


def shuffled(warps: Warps, mode: str, values: Array, lane: Array, limits: Array) -> tuple[Array, Array]:
    """What each thread gets, and whether it was of a lane within its segment: its own if not."""
    own = warps.lane
    wanted, clamp, segment = (each.astype(np.int64) & 31 for each in (lane, limits, limits >> np.uint32(8)))
    first, last = own & segment, own & segment | clamp & ~segment
    source = {
        "up": own - wanted,
        "down": own + wanted,
        "bfly": own ^ wanted,
        "idx": first | wanted & ~segment,
    }[mode]
    inside = source >= last if mode == "up" else source <= last
    place = np.where(inside, source, own) + warps.numbers - own
    active = warps.mask.lanes
    refuse(~warps.mask.flags[place[active]], "it reads a lane that does not take part")
    return np.broadcast_to(values, (warps.width,))[place], inside


def _members(warps: Warps, named: Array) -> Flags:
    """[warps, lanes]: those that take part."""
    active = warps.mask.lanes
    refuse(
        (named & ~warps.mask.bits | ~named & warps.mask.bits)[active] != 0,
        "the threads that are here are not those it names",
    )
    return warps.mask.flags.reshape(-1, WARP)


def voted(warps: Warps, mode: str, votes: Array, named: Array) -> Array:
    members = _members(warps, named)
    yes = np.broadcast_to(votes, (warps.width,)).reshape(-1, WARP) & members
    anybody, everybody = yes.any(axis=1), (yes == members).all(axis=1)
    if mode == "ballot":
        found = (yes @ (np.uint64(1) << np.arange(WARP, dtype=np.uint64))).astype(np.uint32)
    else:
        found = {"any": anybody, "all": everybody, "uni": everybody | ~anybody}[mode]
    return np.repeat(found, WARP)


def reduced(warps: Warps, name: str, values: Array, named: Array) -> Array:
    members = _members(warps, named)
    found = np.zeros(len(members), values.dtype)
    rows = np.broadcast_to(values, (warps.width,)).reshape(-1, WARP)
    for index in np.flatnonzero(members.any(axis=1)):
        found[index] = REDUCTIONS[name](rows[index, members[index]])
    return np.repeat(found, WARP)
