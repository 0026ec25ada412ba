"""Time to the first token of prompts with a beginning in common, when it is new and when it is known:
``python benchmarks/prefix_cache.py BUNDLE [--prefix N] [--requests N] [--threads N]``.

BUNDLE was built for a processor. Prompts are text of the house: ``--prefix`` tokens that all have in common,
and 32 of their own. One request runs at a time, an answer has 8 tokens. Cold requests bring a salt of their
own, so that nothing is shared; of the warm ones the first has shown the prefix and the second where prompts
part. Printed are medians, and that every answer is the same either way.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_compile.catalog.resources import folder
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.loop import EngineLoop
from infer_compile.runtime.sampling import Controls
from infer_compile.runtime.sequence import Request, Sequence
from infer_compile.runtime.tokenizer import Tokenizer

OWN, ANSWER = 32, 8


def answered(loop: EngineLoop, prompt: NDArray[np.int32], salt: str) -> Sequence:
    (sequence,) = loop.submit([(Request(prompt, ANSWER, Controls(temperature=0), salt=salt), lambda _: None)])
    while not loop.scheduler.idle:
        loop.advance()
    return sequence


def first_token(sequence: Sequence) -> float:
    """Milliseconds."""
    return 1e3 * (sequence.times.first - sequence.times.arrived)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prefix", type=int, default=2000)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    tokenizer = Tokenizer(asked.bundle / "model")
    text = (folder("specs") / "texts" / "evaluation.txt").read_text(encoding="utf-8")
    ids = tokenizer.encode(text, special=False)[: asked.prefix + OWN * asked.requests]
    prefix, own = ids[: asked.prefix], ids[asked.prefix :].reshape(asked.requests, OWN)
    prompts = [np.concatenate([prefix, one]) for one in own]
    engine = CpuEngine(asked.bundle / "engine", asked.threads)
    loop = EngineLoop(engine, tokenizer, 0)
    cold = [answered(loop, prompt, f"cold {index}") for index, prompt in enumerate(prompts)]
    warm = [answered(loop, prompt, "") for prompt in prompts]
    same = all(np.array_equal(one.tokens, other.tokens) for one, other in zip(cold, warm, strict=True))
    level, cores = engine.program.cache.level, len(os.sched_getaffinity(0))
    print(f"{asked.prefix} + {OWN} tokens, cache {level}, {engine.threads} threads on {cores} cores")
    print(f"found {[sequence.cached_tokens for sequence in warm]}")
    slow, fast = (statistics.median(map(first_token, some)) for some in (cold, warm[2:]))
    print(f"first token after {slow:.1f} ms cold, {fast:.1f} ms warm: {slow / fast:.1f} times")
    print("same answers" if same else "OTHER ANSWERS")
    engine.close()


if __name__ == "__main__":
    main()
