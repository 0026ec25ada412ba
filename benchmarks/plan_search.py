"""How long the planner's search takes: candidates evaluated, and seconds, best of several rounds.

python benchmarks/plan_search.py SPEC... [--rounds N]

``search`` is the evaluation of every candidate as arrays, ``choice`` picking the best of them, ``plan`` all
from the resolved spec to the finished plan: alternatives, near misses, reasons, and what would change the
decision.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from infer_compile.build.resolve import Resolved, draftings_of, plan_of, resolve
from infer_compile.planner.choose import choose
from infer_compile.planner.deployment import Deployment, deployment
from infer_compile.planner.survey import Survey, survey

T = TypeVar("T")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("specs", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'spec':36} {'candidates':>10} {'feasible':>9} {'search s':>9} {'choice s':>9} {'plan s':>7}")
    for path in options.specs:
        resolved = resolve(path)
        asked = asked_by(resolved)
        search, found = best(options.rounds, lambda asked=asked: survey(asked))
        choice, _ = best(options.rounds, lambda found=found: choose(fresh(found)))
        whole, _ = best(options.rounds, lambda resolved=resolved: plan_of(resolved))
        row = f"{path.stem:36} {len(found):10,} {len(found.feasible):9,}"
        print(f"{row} {search:9.3f} {choice:9.3f} {whole:7.3f}")


def asked_by(resolved: Resolved) -> Deployment:
    """What the spec asks of its first target."""
    spec, facts = resolved.spec, resolved.facts
    where, drafts = resolved.loaded.where, draftings_of(resolved)
    return deployment(spec, resolved.graph, resolved.target, spec.targets[0], facts, where, drafts)


def fresh(found: Survey) -> Survey:
    """The same without the columns that were computed already."""
    return Survey(found.asked, found.solved)


def best(rounds: int, run: Callable[[], T]) -> tuple[float, T]:
    """Seconds of the fastest round, and what it gave."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


if __name__ == "__main__":
    main()
