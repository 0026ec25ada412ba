"""From the start of a process to its first token, its weights in a file: gpu_decode.py runs it.

python benchmarks/gpu_start.py --began SECONDS --engine FOLDER --json FILE [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PROMPT = 512


def main(words: Sequence[str] | None = None) -> None:
    told = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    told.add_argument("--began", type=float, required=True, help="time.time() when the process was started")
    told.add_argument("--engine", type=Path, required=True)
    told.add_argument("--device", default="cuda")
    told.add_argument("--json", type=Path, required=True)
    given = told.parse_args(words)
    entered = time.time()
    # What these take is part of what is measured.
    from infer_compile.runtime.engines.cuda import CudaEngine, Parts
    from infer_compile.runtime.engines.kernels import Kernels
    from infer_compile.runtime.stopwatch import Stopwatch

    spent = {"python": entered - given.began, "imports": time.time() - entered}

    def timed(name: str, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        done = work()
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - begin
        return done

    class Watched(CudaEngine):
        """The engine, its start taken apart."""

        def _opened(self, watch: Stopwatch) -> Kernels:
            return timed("device and kernels", lambda: super(Watched, self)._opened(watch))

        def _stored(self) -> Parts:
            read = super()._stored()
            return lambda name, part: timed("weights", lambda: read(name, part))

        def _allocated(self) -> dict[str, Any]:
            return timed("buffers", super()._allocated)

    engine = timed("engine", lambda: Watched(given.engine, given.device))
    spent["engine"] -= spent["device and kernels"] + spent["weights"] + spent["buffers"]
    import numpy as np

    from gpu_cache import Places

    program = engine.program
    places = Places(program.cache, program.limits, 1, program.limits.max_context)
    count = min(PROMPT, program.limits.max_batch_tokens, program.limits.max_context)
    prompt = places.steps(0, count, accepted=count)
    for step in prompt:
        step.tokens[:] = np.arange(count) % program.vocabulary
    timed("first token", lambda: engine.step(prompt))
    total = time.time() - given.began
    given.json.write_text(json.dumps({"total": total, "spent": spent}) + "\n")


if __name__ == "__main__":
    main()
