"""``vllm bench serve`` as the load of a server."""

from __future__ import annotations

import json
from pathlib import Path

from quickstart_server import MODEL, called, serving, tool

REQUESTS, PROMPT, ANSWER = 24, 48, 16


def test_vllm_bench_serve_gets_what_it_asks_for(tmp_path: Path) -> None:
    program = tool("vllm", "vllm")
    with serving(tmp_path) as url:
        called(
            *(program, "bench", "serve", "--backend", "openai", "--base-url", url, "--model", "quickstart"),
            *("--tokenizer", MODEL, "--dataset-name", "random", "--random-input-len", PROMPT),
            *("--random-output-len", ANSWER, "--num-prompts", REQUESTS, "--max-concurrency", 8),
            *("--ignore-eos", "--save-result", "--result-filename", "report.json", "--seed", 1),
            folder=tmp_path,
        )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["completed"], report["failed"]) == (REQUESTS, 0)
    assert report["total_output_tokens"] == REQUESTS * ANSWER
