"""The quickstart: compile specs/quickstart.yaml for this machine, ask its server one question.

    python -m pip install -e . && python specs/quickstart.py

A second run reuses what is built. Needs no GPU, no model hub, no PyTorch, and no C++ compiler beforehand.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

SPEC = Path(__file__).with_suffix(".yaml")
QUESTION = "What is a cache?"
MAX_TOKENS = 96
START_SECONDS = 60
COMMAND = Path(sys.executable).with_name("infer-compile")


def say(text: str) -> None:
    print(text, flush=True)


def require_compiler() -> None:
    """g++ or clang++ of the system, or the one in the ziglang wheel, installed here if need be."""
    found = next(filter(None, map(shutil.which, ("g++", "clang++"))), None)
    if found:
        say(f"C++ compiler: {found}")
    elif importlib.util.find_spec("ziglang"):
        say("C++ compiler: zig, from the ziglang wheel")
    else:
        say(
            "No g++ or clang++ here: installing the ziglang wheel, a C++ compiler of about 100 MB to download"
        )
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "ziglang>=0.13"], check=True)


def build() -> Path:
    """The bundle of the spec, built or up to date; --force lets a changed spec replace an older bundle."""
    done = subprocess.run(
        [COMMAND, "build", shown(SPEC), "--force"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    return Path(done.stdout.strip())


@contextmanager
def serving(bundle: Path) -> Iterator[str]:
    """The bundle's server on a free port, as the address it listens on; stopped at the end."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        server = subprocess.Popen([COMMAND, "serve", str(bundle), "--port", "0"], stderr=log)
        try:
            yield address(server, log)
        finally:
            server.terminate()
            server.wait()


def address(server: subprocess.Popen[bytes], log: IO[str]) -> str:
    """Wait for the line that names the address, or fail with what the server said instead."""
    end = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < end:
        log.seek(0)
        found = re.search(r"listening on (http://\S+)\n", log.read())
        if found:
            return found[1]
        time.sleep(0.05)
    log.seek(0)
    sys.exit(f"the server did not start:\n{log.read()}")


def ask(url: str, model: str) -> Iterator[dict[str, Any]]:
    """The chunks of one streaming chat completion."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        sys.exit(f"the server answered {response.status}: {response.read().decode()}")
    for line in response:
        data = line.decode().removeprefix("data: ").strip()
        if data and data != "[DONE]":
            yield json.loads(data)
    connection.close()


def answer(url: str, model: str) -> tuple[int, float]:
    """Print the answer as it comes; its tokens, and the tokens per second from the first to the last."""
    tokens, began, first, last = 0, time.perf_counter(), 0.0, 0.0
    for chunk in ask(url, model):
        for choice in chunk["choices"]:
            if choice["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
                print(choice["delta"]["content"], end="", flush=True)
        if chunk.get("usage"):
            tokens = chunk["usage"]["completion_tokens"]
    print()
    say(f"\nfirst token after {1000 * (first - began):.0f} ms")
    return tokens, (tokens - 1) / (last - first) if last > first else 0.0


def metric(url: str, name: str) -> float:
    """One number of the server's /metrics."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    if not found:
        sys.exit(f"/metrics has no {name}")
    return float(found[1])


def main() -> None:
    began = time.perf_counter()
    require_compiler()
    bundle = build()
    say(f"bundle: {bundle} ({time.perf_counter() - began:.1f} s)\n")
    name = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))["name"]
    with serving(bundle) as url:
        say(f"> {QUESTION}")
        tokens, rate = answer(url, name)
        packed = metric(url, "infer_cache_bytes_per_token")
        exact = metric(url, "infer_cache_exact_bytes_per_token")
    say(f"{tokens} tokens, {rate:.0f} tokens per second")
    say(
        f"a cached token takes {packed:.0f} bytes, measured in the running cache; "
        f"in bf16 it takes {exact:.0f}: {exact / packed:.2f} times as much"
    )
    say(f"\nto keep the server running:\n  {shown(COMMAND)} serve {shown(bundle)}")


def shown(path: Path) -> str:
    """The path as one would type it from here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    main()
