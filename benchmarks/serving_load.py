"""A server under a crowd: ``python benchmarks/serving_load.py BUNDLE_OR_URL [--minutes 10] [--json OUT]``.

64 clients stream answers side by side for some minutes. One request in five is left in mid-stream, half of
those by a connection that is reset, and one in twenty is malformed. What is asked is drawn from a set of
requests (greedy and seeded, completions and chats, schemas, several choices, prompts that begin alike), whose
answers were taken before, one request at a time; each stream must be that answer, and each that was left its
beginning. A bundle is served by this program, which then knows the memory that the server's process holds,
reads its log for defects, and stops it at the end; at a URL somebody else serves.

Exit status 1 where something was not as it should be. The clients take processor time of the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from crowd import Crowd, asks
from infer_compile.catalog.resources import folder

COMMAND = (sys.executable, "-c", "from infer_compile.cli.main import main; main()")
SHOWN = 20
"""Faults that are printed."""
MEMORY_SECONDS = 60
GROWTH = 1.03
"""Of memory in the second half of a run: a server that grows on and on has a leak."""


@dataclass
class Server:
    """``infer-compile serve`` as a process."""

    process: subprocess.Popen[bytes]
    log: Path
    url: str = ""

    def memory(self) -> int:
        """Bytes of the process that lie in memory, as Linux counts them."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> list[str]:
        """What was wrong with its end, or in its log."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        faults = [] if status == 0 else [f"the server ended with status {status}"]
        text = self.log.read_text(errors="replace")
        return faults + [line for line in text.splitlines() if re.search(r"Traceback|IC50\d", line)]


@contextmanager
def served(bundle: Path, options: list[str]) -> Iterator[Server]:
    with ExitStack() as closing:
        work = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        log = closing.enter_context((work / "log").open("wb"))
        command = [*COMMAND, "serve", str(bundle), "--port", "0", *options]
        server = Server(closing.enter_context(subprocess.Popen(command, stderr=log)), work / "log")
        closing.callback(server.process.kill)
        while (found := re.search(r"listening on (\S+)", server.log.read_text())) is None:
            if server.process.poll() is not None:
                raise SystemExit(server.log.read_text())
            time.sleep(0.1)
        server.url = found[1]
        yield server


async def run(url: str, server: Server | None, asked: argparse.Namespace) -> dict[str, Any]:
    """The report of one run."""
    text = (folder("specs") / "texts" / "evaluation.txt").read_text(encoding="utf-8")
    where = urlsplit(url)
    wanted = asks(text, asked.letters, asked.tokens, random.Random(asked.seed))
    crowd = Crowd(where.hostname or "", where.port or 80, wanted)
    await crowd.learn()
    memory: list[int] = []

    async def watch() -> None:
        while server is not None:
            memory.append(server.memory())
            await asyncio.sleep(MEMORY_SECONDS)

    names = ["generation_tokens_total", "prompt_tokens_total", "num_preemptions_total"]
    names += ["prefix_cache_queries_total", "prefix_cache_hits_total"]
    before = {name: await crowd.metric(name) for name in names}
    watching = asyncio.create_task(watch())
    began = time.monotonic()
    await crowd.load(asked.clients, asked.seed, seconds=60 * asked.minutes)
    seconds = time.monotonic() - began
    watching.cancel()
    counted = {name: await crowd.metric(name) - before[name] for name in names}
    await crowd.settle()
    if server is not None:
        memory.append(server.memory())
    await crowd.learn()
    found = crowd.findings
    return {
        "schema": 1,
        "clients": asked.clients,
        "seconds": seconds,
        "cores": len(os.sched_getaffinity(0)),
        "requests": dict(found.counts),
        "statuses": {str(status): count for status, count in sorted(found.statuses.items())},
        "faults": found.faults,
        "first_token_ms": percentiles(found.first),
        "between_tokens_ms": percentiles(found.between),
        "server": counted,
        "memory_mb": [round(each / 1e6, 1) for each in memory],
    }


def grown(memory: list[float]) -> list[str]:
    """Whether it still grows in the second half of its samples, of which there must be some."""
    middle = memory[len(memory) // 2]
    if len(memory) < 6 or memory[-1] <= GROWTH * middle:
        return []
    return [f"the server's memory went on growing, from {middle} to {memory[-1]} MB"]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Milliseconds."""
    marks = (50, 90, 99, 100)
    values = np.percentile(seconds, marks) * 1e3 if seconds else [float("nan")] * len(marks)
    return {f"p{mark}": round(float(value), 1) for mark, value in zip(marks, values, strict=True)}


def show(report: dict[str, Any]) -> None:
    server, memory = report["server"], report["memory_mb"]
    rate = server["generation_tokens_total"] / report["seconds"]
    shared = server["prefix_cache_hits_total"] / max(1, server["prefix_cache_queries_total"])
    rows = {
        "clients": f"{report['clients']} for {report['seconds']:.0f} s on {report['cores']} cores",
        "requests": ", ".join(f"{count} {what}" for what, count in report["requests"].items()),
        "statuses": ", ".join(f"{status}: {count}" for status, count in report["statuses"].items()),
        "first token": _times(report["first_token_ms"]),
        "between tokens": _times(report["between_tokens_ms"]),
        "generated": f"{server['generation_tokens_total']:.0f} tokens, {rate:.0f} a second",
        "of prompts cached": f"{shared:.0%}",
        "preemptions": f"{server['num_preemptions_total']:.0f}",
        "memory": f"MB, each minute and at the end: {' '.join(map(str, memory))}" if memory else "not known",
        "faults": str(len(report["faults"])),
    }
    for name, value in rows.items():
        print(f"{name:18} {value}")
    for fault in report["faults"][:SHOWN]:
        print(f"  {fault}")


def _times(found: dict[str, float]) -> str:
    return "ms, " + ", ".join(f"{mark} {value:g}" for mark, value in found.items())


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("server", help="a bundle, or the URL of a server")
    words.add_argument("--clients", type=int, default=64)
    words.add_argument("--minutes", type=float, default=10)
    words.add_argument("--letters", type=int, default=1200, help="of the longest prompt")
    words.add_argument("--tokens", type=int, default=96, help="of the longest answer")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--queue", help="of the bundle's server")
    words.add_argument("--threads", help="of the bundle's server")
    words.add_argument("--json", type=Path)
    asked = words.parse_args()
    if asked.server.startswith("http"):
        report = asyncio.run(run(asked.server, None, asked))
    else:
        options = [f"--{name}={value}" for name in ("queue", "threads") if (value := getattr(asked, name))]
        with served(Path(asked.server), options) as server:
            report = asyncio.run(run(server.url, server, asked))
            report["faults"] += server.stop() + grown(report["memory_mb"])
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    sys.exit(bool(report["faults"]))


if __name__ == "__main__":
    main()
