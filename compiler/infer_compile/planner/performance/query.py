"""One question to the estimate: the options of the command, or a row of a table with columns named as they
are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...runtime.errors import Exit, InferCompileError, Problem

LOADS = ("static", "steady")
DEFAULTS: Mapping[str, str] = {
    "weights": "bf16",
    "kv": "bf16",
    "count": "1",
    "pipeline": "1",
    "data": "1",
    "expert": "1",
    "batch": "1",
    "input": "1024",
    "output": "256",
    "load": "steady",
}
"""What a missing or empty option means. ``engine``: vllm on a GPU, else llama.cpp. ``tensor``: all devices
that the other ways leave, of llama.cpp 1. ``nodes``: machines of eight devices."""
LEAST: Mapping[str, int] = {
    "count": 1,
    "nodes": 1,
    "tensor": 1,
    "pipeline": 1,
    "data": 1,
    "expert": 0,
    "batch": 1,
    "input": 0,
    "output": 0,
}
OPTIONS = ("model", "target", "engine", "build", "weights", "kv", "load", "rate", *LEAST)


@dataclass(frozen=True, slots=True)
class Query:
    """``tensor`` and ``nodes`` None: to be derived; ``engine`` empty: the device's usual one; ``build``
    empty: the newest that was measured."""

    model: str
    target: str
    engine: str
    build: str
    weights: str
    kv: str
    load: Literal["static", "steady"]
    rate: float | None
    count: int
    nodes: int | None
    tensor: int | None
    pipeline: int
    data: int
    expert: int
    batch: int
    input: int
    output: int


def query(fields: Mapping[str, str | None]) -> Query:
    """The question that ``fields`` ask, by option names; others are ignored.

    Raises IC040 for what is missing, IC041 for what is no number or out of range, IC042 for an unknown load,
    IC043 for a question without tokens, all at once.
    """
    problems: list[Problem] = []
    given = {name: (fields.get(name) or "").strip() or DEFAULTS.get(name, "") for name in OPTIONS}
    for name in ("model", "target"):
        if not given[name]:
            problems.append(Problem("IC040", f"{name} is missing", fix=f"name the {name}"))
    numbers = {name: _whole(name, given[name], problems) for name in LEAST}
    rate = _rate(given["rate"], problems)
    load = given["load"]
    if load not in LOADS:
        problems.append(Problem("IC042", f'there is no load "{load}"', fix="static or steady"))
    elif load == "static" and rate is not None:
        problems.append(Problem("IC042", "a static batch has no rate of requests", fix="load: steady"))
    if numbers["input"] == 0 and numbers["output"] == 0:
        problems.append(
            Problem("IC043", "neither input nor output tokens", fix="input or output of 1 or more")
        )
    if problems:
        raise InferCompileError(problems, Exit.USAGE)
    return Query(
        model=given["model"],
        target=given["target"],
        engine=given["engine"],
        build=given["build"],
        weights=given["weights"],
        kv=given["kv"],
        load="static" if load == "static" else "steady",
        rate=rate,
        count=numbers["count"] or 1,
        nodes=numbers["nodes"],
        tensor=numbers["tensor"],
        pipeline=numbers["pipeline"] or 1,
        data=numbers["data"] or 1,
        expert=numbers["expert"] or 1,
        batch=numbers["batch"] or 1,
        input=numbers["input"] or 0,
        output=numbers["output"] or 0,
    )


def _whole(name: str, text: str, problems: list[Problem]) -> int | None:
    """A whole number (``8.0`` too, as spreadsheets write them); None where there is none."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value.is_integer() or value < LEAST[name]:
        fix = f"a whole number of {LEAST[name]} or more"
        problems.append(Problem("IC041", f'{name} "{text}" is not possible', fix=fix))
        return None
    return int(value)


def _rate(text: str, problems: list[Problem]) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        problems.append(Problem("IC041", f'rate "{text}" is not possible', fix="requests per second above 0"))
        return None
    return value
