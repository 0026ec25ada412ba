"""The support table of docs/engines.md, from catalog/engines.yaml: ``python benchmarks/engine_table.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from infer_compile.catalog.engines import Engine, Engines, Needs, Part, load_engines
from infer_compile.planner.support import describe

PAGE = Path(__file__).resolve().parents[1] / "docs" / "engines.md"
HEAD = """\
# Engines

What each engine can serve, on what, and where that was read. The planner offers nothing else: what is pinned
and not in these tables is refused by name. "ours" is the native engine of this repository.

Made from `compiler/infer_compile/catalog/engines.yaml` by `python benchmarks/engine_table.py`; a test holds
the two together. Where a device has no arithmetic of a format, its weights are widened to bf16 in products.
"""
PARTS: Mapping[Part, str] = {
    "weights": "Weight formats",
    "kv": "Cache levels",
    "speculation": "Speculation",
}


def page(engines: Engines) -> str:
    """The whole page."""
    blocks = [HEAD, _table(("engine", *_names(engines)), _overview(engines))]
    for part, title in PARTS.items():
        names = engines.served(part)
        rows = [
            (name, *(_mark(engine.needs(part).get(name)) for engine in engines.engines)) for name in names
        ]
        blocks += [f"## {title}\n", _table(("", *_names(engines)), rows)]
    blocks += ["## Models\n", "● runs it; (●) is assumed to run it, under another name of the class.\n"]
    blocks.append(_table(("class", *_names(engines)), _models(engines)))
    blocks += ["## Sources\n", *map(_sources, engines.engines)]
    return "\n".join(blocks)


def _names(engines: Engines) -> tuple[str, ...]:
    return tuple("ours" if engine.architectures.own else engine.title for engine in engines.engines)


def _overview(engines: Engines) -> Iterator[tuple[str, ...]]:
    every = engines.engines
    yield ("devices", *(describe(engine.devices) for engine in every))
    yield ("several machines", *("yes" if engine.nodes else "no" for engine in every))
    yield ("splits by", *(", ".join(engine.parallelism) for engine in every))
    yield ("tokens of a page", *(f"{engine.page_tokens.value:g}" for engine in every))
    yield ("gives back what a window leaves", *("yes" if engine.windows_freed else "no" for engine in every))
    beyond = [", ".join(engine.evicts) or "-" for engine in every]
    yield ("goes on beyond the context, where asked", *beyond)
    unverified = [[one.kind for one in engine.kinds if not one.verified] for engine in every]
    yield ("planned for where pinned", *(", ".join(kinds) or "-" for kinds in unverified))
    yield ("bundles built for", *(", ".join(engine.builds) or "-" for engine in every))


def _mark(needs: Needs | None) -> str:
    """Where a name is served: nothing, everywhere that the engine runs, or what is asked for."""
    if needs is None:
        return "-"
    parts = [describe(needs.devices)] if needs.devices else []
    if needs.latent is not None:
        parts.append(f"latent attention: {describe(needs.latent) or 'not'}")
    if needs.sparse is not None:
        parts.append(f"sparse latent attention: {describe(needs.sparse) or 'not'}")
    if needs.architectures:
        parts.append(f"of {', '.join(needs.architectures)}")
    if needs.group > 1:
        parts.append(f"inputs in multiples of {needs.group}")
    return "; ".join(parts) or "●"


def _models(engines: Engines) -> Iterator[tuple[str, ...]]:
    classes = sorted({name for engine in engines.engines for name in engine.architectures.served})
    for name in classes:
        yield (name, *(_runs(engine, name) for engine in engines.engines))


def _runs(engine: Engine, name: str) -> str:
    runs = engine.architectures
    limited = runs.limited.get(name)
    if name not in runs.served and not runs.own:
        return "-"
    mark = "graph/build.py" if runs.own else "(●)" if name in runs.assumed else "●"
    return f"{mark} {describe(limited.devices)}" if limited else mark


def _sources(engine: Engine) -> str:
    lines = [f"**{engine.title}**: {engine.source('default')}.", ""]
    lines += [f"- {key}: {text}" for key, text in engine.sources.items() if key != "default"]
    lines.append(f"- models: {engine.architectures.source}")
    for part in PARTS:
        lines += [f"- {name}: {needs.source}" for name, needs in engine.needs(part).items()]
    return "\n".join(lines) + "\n"


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    head = tuple(head)
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(load_engines()), encoding="utf-8")
