"""``infer-compile estimate``: the time model for one point, or for a table of them."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from ..catalog.facts import Facts, load_facts
from ..catalog.source import resolve
from ..catalog.target import Target, load_target
from ..graph.build import build as build_graph
from ..graph.graph import Graph
from ..planner.performance.estimate import COLUMNS, Answer, Subject, subject
from ..planner.performance.estimate import estimate as answers
from ..planner.performance.query import DEFAULTS, LOADS, Query, query
from ..probe.files import write_aside
from ..runtime.errors import Exit, InferCompileError, Problem
from .console import print_json, print_table

ERROR = "error"
Row = Mapping[str, str | None]
_OPTIONS = {
    "model": "A name of the catalog, hf://organisation/name, or a folder.",
    "target": "A device of the catalog, or a target file.",
    "count": "Devices.",
    "nodes": "Machines; without it each has up to eight devices.",
    "engine": "By default vllm on a GPU, else llama.cpp.",
    "build": "Version of the engine; by default the newest that was measured.",
    "weights": "Weight format.",
    "kv": "Cache level.",
    "tensor": "Devices that share each layer; by default all that are left, of llama.cpp 1.",
    "pipeline": "Groups of devices that share the layers.",
    "data": "Copies of the model, or of its attention.",
    "expert": "Parts that whole experts are dealt in.",
    "batch": "Requests in flight, over all copies.",
    "rate": "Requests per second, instead of a batch.",
    "input": "Tokens of a prompt; 0: pure decoding.",
    "output": "Tokens of an answer; 0: the prompt alone.",
}


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in reversed(_OPTIONS.items()):
        shown = f"{text} [{DEFAULTS[name]}]" if name in DEFAULTS else text
        command = click.option(f"--{name}", name, metavar=name[0].upper(), help=shown)(command)
    return command


@click.command()
@_options
@click.option(
    "--load", type=click.Choice(LOADS), help="static: all start together; steady: replaced as they end."
)
@click.option(
    "--csv", "table", type=click.Path(path_type=Path), help="Answer every row of this table instead."
)
@click.option("-o", "written", type=click.Path(path_type=Path), help="Write the table to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate(table: Path | None, written: Path | None, as_json: bool, **options: str | None) -> None:
    """What an engine does with a model on a device under a load, by arithmetic calibrated on measurements.

    A table has columns named as the options; it keeps its columns and gets those of the answer, and ``error``
    where a row cannot be answered. Without ``-o`` it goes to standard output.
    """
    catalog = _Catalog(load_facts())
    if table is not None:
        given = [name for name, value in options.items() if value is not None]
        if given or as_json:
            raise click.UsageError(
                f"--csv takes no {' '.join('--' + name for name in (*given, *['json'] * as_json))}"
            )
        text = _table(table, catalog)
        if written is None:
            click.echo(text, nl=False)
        else:
            write_aside(written, text)
        return
    if written is not None:
        raise click.UsageError("-o is for --csv")
    asked = query(options)
    found = answers(catalog.subject(asked), [asked])[0]
    if as_json:
        print_json(found)
    else:
        _page(found, catalog.subject(asked))


class _Catalog:
    """Models and devices, each read once."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._graphs: dict[str, Graph] = {}
        self._targets: dict[str, Target] = {}
        self._subjects: dict[tuple[str, ...], Subject] = {}

    def subject(self, asked: Query) -> Subject:
        """Raises what the names of ``asked`` give where they are not known."""
        key = (asked.model, asked.target, asked.engine, asked.build, asked.weights, asked.kv)
        if key not in self._subjects:
            if asked.model not in self._graphs:
                found = resolve(asked.model, None, Path())
                self._graphs[asked.model] = build_graph(found.config, asked.model)
            if asked.target not in self._targets:
                self._targets[asked.target] = load_target(asked.target, Path())
            self._subjects[key] = subject(
                self._graphs[asked.model], self._targets[asked.target], asked, self._facts
            )
        return self._subjects[key]


def _page(found: Answer, about: Subject) -> None:
    rows = []
    for name in COLUMNS:
        if not name.endswith(("_low", "_high")):
            rows.append(
                (name, _shown(found[name]), *(_shown(found.get(name + end)) for end in ("_low", "_high")))
            )
    print_table(("", "estimate", "low", "high"), rows, right=("estimate", "low", "high"))
    reached = about.speed.reach
    click.echo(f"\nmeasured on: {reached}; {about.speed.source}", err=True)


def _shown(value: float | str | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def _table(path: Path, catalog: _Catalog) -> str:
    """The table at ``path`` with its answers, as text."""
    names, rows = _read(path)
    found: list[Answer] = [{} for _ in rows]
    errors = [""] * len(rows)
    groups: dict[tuple[object, ...], list[tuple[int, Query]]] = {}
    for index, row in enumerate(rows):
        try:
            asked = query(row)
        except InferCompileError as error:
            errors[index] = _reason(error)
            continue
        # What one evaluation has in common: see ``planner.estimate.predict``.
        machines = (asked.nodes, asked.count if asked.nodes else None)
        subject_key = (asked.model, asked.target, asked.engine, asked.build, asked.weights, asked.kv)
        groups.setdefault((*subject_key, asked.load, asked.rate is None, *machines), []).append(
            (index, asked)
        )
    for members in groups.values():
        for index, answer in _answered(catalog, members):
            if isinstance(answer, InferCompileError):
                errors[index] = _reason(answer)
            else:
                found[index] = answer
    added = (*COLUMNS, ERROR)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*(name for name in names if name not in added), *added])
    for row, answer, reason in zip(rows, found, errors, strict=True):
        kept = [row.get(name) or "" for name in names if name not in added]
        writer.writerow([*kept, *(_cell(answer.get(name)) for name in COLUMNS), reason])
    return out.getvalue()


def _answered(
    catalog: _Catalog, members: Sequence[tuple[int, Query]]
) -> list[tuple[int, Answer | InferCompileError]]:
    """All at once; where one of them cannot be answered, each alone."""
    points = [asked for _, asked in members]
    try:
        about = catalog.subject(points[0])
        found = answers(about, points)
    except InferCompileError as error:
        if len(members) == 1:
            return [(members[0][0], error)]
        return [each for member in members for each in _answered(catalog, [member])]
    return [(index, answer) for (index, _), answer in zip(members, found, strict=True)]


def _read(path: Path) -> tuple[list[str], list[Row]]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8-sig")
        reader = csv.DictReader(io.StringIO(text), restkey=None)
        names = list(reader.fieldnames or ())
        rows: list[Row] = [{name: row[name] for name in names} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = Problem(
            "IC047", "the table cannot be read", str(path), str(error), "name a CSV file in UTF-8"
        )
        raise InferCompileError(problem, Exit.USAGE) from None
    missing = [name for name in ("model", "target") if name not in names]
    if missing:
        because = f"its first line names {', '.join(names) or 'nothing'}"
        problem = Problem(
            "IC047", f"the table lacks {' and '.join(missing)}", str(path), because, "add the column"
        )
        raise InferCompileError(problem, Exit.USAGE)
    return names, rows


def _reason(error: InferCompileError) -> str:
    return "; ".join(f"{problem.code} {problem.message}" for problem in error.problems)


def _cell(value: float | str | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value
