"""A YAML file as plain values, with the line of every key: what error messages point at."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..runtime.errors import Exit, InferCompileError, Problem

_DEEPEST = 32
_SCALARS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))


@dataclass(frozen=True, slots=True)
class Document:
    """``value`` holds dict, list, str, int, float, bool and None alone; ``lines`` maps dotted keys
    (``workload.input_tokens``, ``target.0``) to lines counted from 1; ``path`` is as the user wrote it."""

    path: str
    value: dict[str, Any]
    lines: Mapping[str, int]
    problems: tuple[Problem, ...] = ()

    def where(self, key: str) -> str:
        """``file:line`` of ``key``, or of the nearest key around it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        return f"{self.path}:{self.lines.get(key, 1)}"


def read(path: Path) -> Document:
    """Read the mapping in ``path``. Duplicate keys are collected in ``problems``; what cannot be read at all
    raises IC001 (the file), IC002 (the YAML) or IC006 (not a mapping)."""
    shown = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _error("IC001", shown, "there is no such file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise _error("IC002", f"{shown}:{line}", "is not UTF-8 text", fix="save the file in UTF-8") from error
    except OSError as error:
        raise _error("IC001", shown, "cannot be read", because=error.strerror or str(error)) from error
    return parse(text, shown)


def parse(text: str, path: str) -> Document:
    """The same for ``text``; ``path`` is for messages."""
    loader = yaml.SafeLoader("")
    reader = _Reader(path, loader)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = {} if node is None else reader.value(node, "", ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark else path
        raise _error("IC002", place, "is not valid YAML", because=_cause(error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        because = f"it holds the character U+{ord(text[error.position]):04X}"
        raise _error("IC002", f"{path}:{line}", "is not valid YAML", because=because) from error
    except RecursionError:
        raise _error("IC002", path, "is nested too deeply") from None
    finally:
        loader.dispose()
    if node is None:
        raise _error("IC002", path, "is empty")
    if not isinstance(value, dict):
        raise _error("IC006", f"{path}:1", "must be a mapping of keys to values")
    return Document(path, value, reader.lines, tuple(reader.problems))


@dataclass(slots=True)
class _Reader:
    path: str
    loader: yaml.SafeLoader
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def value(self, node: yaml.Node, key: str, parents: tuple[yaml.Node, ...]) -> Any:
        """The plain value of ``node``, which stands under ``key``."""
        if node in parents:
            raise _error("IC002", f"{self.path}:{_line(node)}", "an alias contains itself")
        if len(parents) > _DEEPEST:
            raise _error("IC002", f"{self.path}:{_line(node)}", "is nested too deeply")
        if key:
            self.lines.setdefault(key, _line(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, (*parents, node))
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, f"{key}.{index}", (*parents, node)) for index, item in enumerate(node.value)
            ]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: str, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = _line(name_node)
            if not isinstance(name_node, yaml.ScalarNode):
                place = f"{self.path}:{line}"
                self.problems.append(Problem("IC006", "a key must be plain text", place))
                continue
            self._scalar(name_node)  # its checks hold for keys too
            name = str(name_node.value)
            dotted = f"{key}.{name}" if key else name
            if name in values:
                first = self.lines[dotted]
                self.problems.append(
                    Problem(
                        "IC003",
                        f'"{dotted}" is given twice',
                        f"{self.path}:{line}",
                        because=f"it stands on line {first} already",
                        fix="keep one of the two",
                    )
                )
                continue
            self.lines[dotted] = line
            values[name] = self.value(value_node, dotted, parents)
        return values

    def _scalar(self, node: yaml.Node) -> Hashable:
        text = str(node.value)
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise _error("IC002", f"{self.path}:{_line(node)}", "holds half of a surrogate pair")
        if node.tag not in _SCALARS:
            # Dates, binary and private tags have no meaning here: the text stands for itself.
            return text
        try:
            value: Hashable = self.loader.construct_object(node)
        except (ValueError, KeyError):  # such as an integer of five thousand digits, or `!!bool x`
            return text
        return text if isinstance(value, int) and value.bit_length() > 64 else value


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _cause(error: yaml.MarkedYAMLError) -> str:
    """The parser's words in one line."""
    parts = [error.context, error.problem]
    return ", ".join(part for part in parts if part).replace("\n", " ")


def _error(code: str, where: str, message: str, because: str = "", fix: str = "") -> InferCompileError:
    return InferCompileError(Problem(code, message, where, because, fix), Exit.USAGE)
