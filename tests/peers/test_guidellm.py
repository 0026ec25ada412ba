"""guidellm's load against a server."""

from __future__ import annotations

import json
from pathlib import Path

from quickstart_server import MODEL, called, serving, tool

REQUESTS, PROMPT, ANSWER = 24, 48, 16


def test_guidellm_gets_what_it_asks_for(tmp_path: Path) -> None:
    program = tool("guidellm", "guidellm")
    report = tmp_path / "report.json"
    with serving(tmp_path) as url:
        called(
            *(program, "run", "--backend", f"kind=openai_http,target={url}"),
            *("--profile", "kind=concurrent,streams=8"),
            *("--constraint", f"kind=max_requests,count={REQUESTS}"),
            *("--tokenizer", f"kind=huggingface_auto,model={MODEL}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}"),
            *("--output", f"kind=json,path={report}", "--disable-console"),
            folder=tmp_path,
        )
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    assert (requests["errored"], requests["incomplete"]) == ([], [])
    assert len(requests["successful"]) == REQUESTS
