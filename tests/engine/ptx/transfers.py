"""Instructions that move numbers between registers and memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .memory import LOCAL_WINDOW, SHARED_WINDOW, Memory
from .numbers import KINDS, Array, Kind
from .operands import Address, Number, Operand, Read, Vector
from .statements import Statement
from .text import Unknown
from .warps import Copy, Execute, Warps
from .watch import Flags, Offence, Places

_SPACES = ("global", "shared", "shared::cta", "local", "const", "param")
_ORDERS = ("volatile", "relaxed", "acquire", "release", "weak", "gpu", "sys", "cta", "nc", "noftz")
_CACHES = ("ca", "cg", "cs", "cv", "lu", "wb", "wt")
_WINDOW_BITS = 61


def _space(statement: Statement, others: str = "") -> str:
    """Where to; hints about order and caches have no effect here."""
    parts = [part for part in statement.parts[:-1] if part not in others.split()]
    spaces = [part.partition("::")[0] for part in parts if part in _SPACES]
    rest = [part for part in parts if part not in (*_SPACES, *_ORDERS, *_CACHES)]
    if len(spaces) > 1 or any(not part.startswith(("L1::", "L2::")) for part in rest):
        raise Unknown(statement.line.text)
    return spaces[0] if spaces else "generic"


def _address(statement: Statement, operand: Operand) -> Read:
    if not isinstance(operand, Address):
        raise Unknown(statement.line.text)
    return operand.bytes()


def _vector(statement: Statement, operand: Operand) -> tuple[Operand, ...]:
    parts = operand.parts if isinstance(operand, Vector) else (operand,)
    wanted = [int(part[1:]) for part in statement.parts if part in ("v2", "v4", "v8")]
    if len(parts) != (wanted or [1])[0]:
        raise Unknown(statement.line.text)
    return parts


def _memory(warps: Warps, space: str) -> Memory:
    if space == "shared":
        return warps.shared
    return warps.local if space == "local" else warps.memory


def _flags(warps: Warps, lanes: Places) -> Flags:
    found = np.zeros(warps.width, bool)
    found[lanes] = True
    return found


Access = Callable[[Memory, Places, Places], None]


def _each_space(warps: Warps, space: str, addresses: Places, access: Access) -> None:
    """``access`` with a memory, the addresses in it, and which of all that do something these are."""
    if space != "generic":
        access(_memory(warps, space), addresses, np.arange(len(addresses)))
        return
    windows = addresses >> _WINDOW_BITS
    for window, name in ((0, "global"), (1, "shared"), (2, "local")):
        chosen = np.flatnonzero(windows == window)
        if len(chosen):
            with warps.only(_flags(warps, warps.mask.lanes[chosen])):
                access(_memory(warps, name), addresses[chosen] - (window << _WINDOW_BITS), chosen)


def load(statement: Statement) -> Execute:
    space, kind = _space(statement, "v2 v4 v8"), statement.kind()
    target, source = statement.operands[:2]
    if len(statement.operands) > 2 and "L2::cache_hint" not in statement.parts:
        raise Unknown(statement.line.text)
    targets, address = _vector(statement, target), _address(statement, source)
    writes = [each.writer(kind) for each in targets]
    if space == "param":
        return _load_parameter(kind, address, writes)

    def execute(warps: Warps) -> None:
        found = np.zeros((len(warps.mask.lanes), len(writes)), kind.words)

        def access(memory: Memory, addresses: Places, chosen: Places) -> None:
            found[chosen] = memory.load(addresses, kind.size, len(writes), warps.who())

        _each_space(warps, space, address(warps)[warps.mask.lanes], access)
        columns = warps.spread(found)
        for index, write in enumerate(writes):
            write(warps, np.ascontiguousarray(columns[:, index]).view(kind.number))

    return execute


def _load_parameter(kind: Kind, address: Read, writes: list[Callable[[Warps, Array], None]]) -> Execute:
    def execute(warps: Warps) -> None:
        # Compilers choose among parameters by their addresses.
        places, inverse = np.unique(np.where(warps.mask.flags, address(warps), 0), return_inverse=True)
        found = [np.frombuffer(warps.parameters, kind.words, len(writes), place) for place in places.tolist()]
        columns = np.stack(found)[inverse]
        for index, write in enumerate(writes):
            write(warps, np.ascontiguousarray(columns[:, index]).view(kind.number))

    return execute


def store(statement: Statement) -> Execute:
    space, kind = _space(statement, "v2 v4 v8"), statement.kind()
    target, source = statement.operand(2)
    sources, address = _vector(statement, source), _address(statement, target)
    reads = [each.reader(KINDS[f"b{8 * kind.size}"]) for each in sources]

    def execute(warps: Warps) -> None:
        lanes = warps.mask.lanes
        values = np.empty((warps.width, len(reads)), kind.words)
        for index, read in enumerate(reads):
            values[:, index] = read(warps)
        values = values[lanes]

        def access(memory: Memory, addresses: Places, chosen: Places) -> None:
            memory.store(addresses, values[chosen], warps.who())

        _each_space(warps, space, address(warps)[lanes], access)

    return execute


def _swapped(old: Array, compared: Array, new: Array) -> Array:
    return np.where(old == compared, new, old)


_ATOMS: dict[str, Callable[..., Array]] = {
    "add": lambda old, new: old + new,
    "exch": lambda old, new: new,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda old, new: np.where(old >= new, 0, old + 1),
    "dec": lambda old, new: np.where((old == 0) | (old > new), new, old - 1),
    "cas": _swapped,
}


def atom(statement: Statement) -> Execute:
    """``atom`` and ``red``: one thread after the other."""
    (name,) = [part for part in statement.parts if part in _ATOMS] or [""]
    space, kind = _space(statement, " ".join((*_ATOMS, "acq_rel"))), statement.kind()
    keeps = statement.head == "atom"
    place, *operands = statement.operands[keeps:]
    if not name or len(operands) != (2 if name == "cas" else 1):
        raise Unknown(statement.line.text)
    address, formula = _address(statement, place), _ATOMS[name]
    reads = [each.reader(kind) for each in operands]
    write = statement.operands[0].writer(kind) if keeps else None
    per_word = kind.size // kind.number.itemsize

    def execute(warps: Warps) -> None:
        lanes = warps.mask.lanes
        values = [np.broadcast_to(read(warps), (warps.width * per_word,)) for read in reads]
        values = [each.reshape(-1, per_word)[lanes] for each in values]
        before = np.zeros((len(lanes), 1), kind.words)

        def access(memory: Memory, addresses: Places, chosen: Places) -> None:
            places = memory.places(addresses, kind.size, warps.who())
            words = memory.words(kind.size)
            for place, index in zip((places // kind.size).tolist(), chosen.tolist(), strict=True):
                before[index] = words[place]
                old = words[place : place + 1].view(kind.number)
                new = formula(old, *(each[index] for each in values))
                words[place : place + 1] = np.asarray(new, kind.number).view(kind.words)

        _each_space(warps, space, address(warps)[lanes], access)
        if write is not None:
            write(warps, warps.spread(before).reshape(-1).view(kind.number))

    return execute


def convert_address(statement: Statement) -> Execute:
    """``cvta``: addresses of global memory are generic ones; those of shared and local memory are not."""
    *words, kind_name = statement.parts
    kind = KINDS[kind_name]
    windows = {"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0, "const": 0, "param": 0}
    if not words or words[-1] not in windows or words[:-1] not in ([], ["to"]):
        raise Unknown(statement.line.text)
    window = np.array(windows[words[-1]] & (1 << 8 * kind.size) - 1, kind.number)
    target, source = statement.operand(2)
    write, read, back = target.writer(kind), source.reader(kind), len(words) == 2
    return lambda warps: write(warps, read(warps) - window if back else read(warps) + window)


def copy(statement: Statement) -> Execute:
    """``cp.async``: what is copied is not there before a wait for its group."""
    match statement.parts:
        case ["async", "commit_group"]:
            return _commit
        case ["async", "wait_all"]:
            return lambda warps: _wait(warps, 0, warps.groups + 1)
        case ["async", "wait_group"]:
            (count,) = statement.operand(1)
            if isinstance(count, Number):
                most = count.integer
                return lambda warps: _wait(warps, most, warps.groups)
        case ["async", "ca" | "cg", "shared" | "shared::cta", "global", *hints] if all(
            hint.startswith("L2::") for hint in hints
        ):
            return _copy(statement)
    raise Unknown(statement.line.text)


def _copy(statement: Statement) -> Execute:
    target, source, length, *rest = statement.operands
    if not isinstance(length, Number) or length.integer not in (4, 8, 16) or len(rest) > 1:
        raise Unknown(statement.line.text)
    size, into, origin = length.integer, _address(statement, target), _address(statement, source)
    real = rest[0].reader(KINDS["u32"]) if rest else None

    def execute(warps: Warps) -> None:
        lanes = warps.mask.lanes
        addresses, sources = into(warps)[lanes], origin(warps)[lanes]
        values = np.zeros((len(lanes), size), np.uint8)
        wanted = np.full(len(lanes), size)
        if real is not None:
            wanted = np.broadcast_to(real(warps), (warps.width,))[lanes]
        whole = np.flatnonzero(wanted > 0)
        if np.any((wanted != 0) & (wanted != size)):
            raise Offence(int(np.flatnonzero((wanted != 0) & (wanted != size))[0]), "a part of a copy")
        with warps.only(_flags(warps, lanes[whole])):
            words = warps.memory.load(sources[whole], 4, size // 4, warps.who())
        values[whole] = np.ascontiguousarray(words).view(np.uint8)
        warps.shared.begin_copy(addresses, size, warps.who())
        warps.copies.append(Copy(lanes, warps.groups[lanes], addresses, values))

    return execute


def _commit(warps: Warps) -> None:
    warps.groups = np.where(warps.mask.flags, warps.groups + 1, warps.groups)


def _wait(warps: Warps, most: int, groups: Places) -> None:
    """Until of each thread's groups ``most`` are on their way."""
    left = []
    for each in warps.copies:
        done = warps.mask.flags[each.lanes] & (each.groups < groups[each.lanes] - most)
        if done.any():
            with warps.only(_flags(warps, each.lanes[done])):
                warps.shared.end_copy(each.addresses[done], each.values[done], warps.who())
        if not done.all():
            rest = ~done
            left.append(Copy(each.lanes[rest], each.groups[rest], each.addresses[rest], each.values[rest]))
    warps.copies = left


def trap(statement: Statement) -> Execute:
    def execute(warps: Warps) -> None:
        raise Offence(0, "the kernel gives up")

    return execute
