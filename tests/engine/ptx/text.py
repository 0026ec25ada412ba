"""The text of PTX taken apart: variables, kernels, their parameters, registers, labels and instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_LINES = re.compile(r"^\s*\.(?:loc|file|version|target|address_size)\b[^\n]*", re.MULTILINE)
_SECTION = re.compile(r"\.section\s+\S+\s*\{[^}]*\}")
_ENTRY = re.compile(r"(?:\.\w+\s+)*?\.entry\s+([\w$]+)\s*(?:\(([^)]*)\))?([^{;]*)")
_VARIABLE = re.compile(
    r"(?:\.(?:extern|visible|weak|common)\s+)*\.(global|const|shared|local|param)\s+"
    r"(?:\.attribute\([^)]*\)\s+)?(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"(?:\.ptr\s+)?(?:\.(?:global|shared|const|local)\s+)?(?:\.align\s+\d+\s+)?"
    r"([\w$%]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?",
    re.DOTALL,
)
_PART = re.compile(r"\s*(?:(?P<open>\{)|(?P<close>\})|(?P<label>[\w$%]+):(?!:)|(?P<line>[^;]+);)")


class Unknown(ValueError):
    """PTX that is not understood here, with its text."""


@dataclass(frozen=True, slots=True)
class Variable:
    """``count`` numbers of type ``kind`` in memory of ``space``; 0 is whatever a launch asks for."""

    space: str
    name: str
    kind: str
    count: int
    align: int
    values: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """One instruction: ``@guard opcode operands``."""

    text: str
    guard: str
    opcode: str
    operands: tuple[str, ...]


@dataclass(slots=True)
class Kernel:
    """Registers have types and names of their own, whatever scope they stem from."""

    name: str
    parameters: list[Variable]
    threads: int | None = None
    """Most that a block may have."""
    registers: dict[str, str] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Text:
    variables: list[Variable]
    kernels: list[Kernel]


def parse(text: str) -> Text:
    """Raises Unknown for what is neither a variable nor a kernel."""
    text = _LINES.sub("", _SECTION.sub("", _COMMENT.sub("", text)))
    variables, kernels, place = [], [], 0
    while rest := text[place:].strip():
        place = len(text) - len(text[place:].lstrip())
        if entry := _ENTRY.match(text, place):
            begin = text.index("{", entry.end())
            place = _closing(text, begin) + 1
            parameters = [_variable(each) for each in (entry[2] or "").split(",") if each.strip()]
            kernel = Kernel(entry[1], parameters, _threads(entry[3]))
            kernels.append(_body(kernel, text[begin + 1 : place - 1]))
        else:
            end = text.find(";", place)
            if end < 0:
                raise Unknown(rest[:200])
            variables.append(_variable(text[place:end]))
            place = end + 1
    return Text(variables, kernels)


def _threads(directives: str) -> int | None:
    found = re.search(r"\.(?:maxntid|reqntid)\s+(\d+(?:\s*,\s*\d+)*)", directives)
    return prod(int(each) for each in found[1].split(",")) if found else None


def _closing(text: str, begin: int) -> int:
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if found[0] == "{" else -1
        if not depth:
            return found.start()
    raise Unknown(text[begin : begin + 200])


def _variable(text: str) -> Variable:
    found = _VARIABLE.fullmatch(text.strip())
    if found is None:
        raise Unknown(text.strip()[:200])
    space, align, kind, name, count, values = found.groups()
    numbers = tuple(
        _number(each.strip()) for each in (values or "").strip("{} \n").split(",") if each.strip()
    )
    size = int(re.sub(r"\D", "", kind)) // 8
    return Variable(space, name, kind, 1 if count is None else int(count or 0), int(align or size), numbers)


def _body(kernel: Kernel, text: str) -> Kernel:
    scopes: list[dict[str, str]] = [{}]
    place, count = 0, 0
    while text[place:].strip():
        found = _PART.match(text, place)
        if found is None:
            raise Unknown(text[place : place + 200])
        place = found.end()
        if found["open"]:
            scopes.append({})
        elif found["close"]:
            scopes.pop()
        elif found["label"]:
            kernel.labels[found["label"]] = len(kernel.lines)
        elif (line := " ".join(found["line"].split())).startswith(".reg "):
            for name, kind in _registers(line):
                # Blocks of inline assembly use each other's names.
                own = name if len(scopes) == 1 else f"{name}.{(count := count + 1)}"
                scopes[-1][name] = own
                kernel.registers[own] = kind
        elif line.startswith("."):
            if not line.startswith(".pragma"):
                kernel.variables.append(_variable(line))
        else:
            kernel.lines.append(_line(line, scopes))
    return kernel


def _registers(line: str) -> Iterator[tuple[str, str]]:
    _, kind, rest = line.split(maxsplit=2)
    for name in rest.replace(" ", "").split(","):
        many = re.fullmatch(r"(.+)<(\d+)>", name)
        names = [f"{many[1]}{index}" for index in range(int(many[2]))] if many else [name]
        yield from ((each, kind.lstrip(".")) for each in names)


def _line(text: str, scopes: list[dict[str, str]]) -> Line:
    def resolved(found: re.Match[str]) -> str:
        for scope in reversed(scopes):
            if found[0] in scope:
                return scope[found[0]]
        return found[0]

    guard, rest = "", text
    if text.startswith("@"):
        guard, rest = text[1:].split(maxsplit=1)
    opcode, _, rest = rest.partition(" ")
    rest = re.sub(r"(?<![\w$%.])[A-Za-z_$%][\w$]*", resolved, rest)
    guard = re.sub(r"[A-Za-z_$%][\w$]*", resolved, guard)
    return Line(text, guard, opcode, tuple(split(rest)))


def split(text: str) -> Iterator[str]:
    """Operands between commas that no bracket holds."""
    depth, begin = 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            yield text[begin:index].strip()
            begin = index + 1
    if text[begin:].strip():
        yield text[begin:].strip()


def _number(text: str) -> int:
    """Of an initial value: bits of a float, or an integer."""
    return int(text[2:], 16) if text[:2].lower() == "0f" else int(text, 0)
