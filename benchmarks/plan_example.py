"""The example of docs/planner.md, as the planner says it today: ``python benchmarks/plan_example.py``."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from infer_compile.build.resolve import plan_of, resolve
from infer_compile.planner.explain.render import table

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "planner.md"
SPEC = ROOT / "specs" / "llama-3.1-8b-rtx-4090.yaml"
WIDTH = 110
LAST = "near misses"
"""The section that the example ends before."""


def example() -> str:
    """What ``plan`` prints, up to the near misses."""
    console = Console(width=WIDTH, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table(plan_of(resolve(SPEC))))
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(lines[: lines.index(LAST)]).rstrip()


def page(text: str) -> str:
    """``text`` of the page with the example as it is."""
    start, fence, _ = text.partition("```text\n")
    return f"{start}{fence}{example()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
