"""Serves a bundle until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn

from ..bundle import Bundle, open_bundle
from ..chat import ChatTemplate
from ..errors import InferCompileError, Problem
from ..loop import EngineLoop
from ..measure import measure
from ..tokenizer import Tokenizer
from .api import Service, create_app
from .metrics import Metrics

log = logging.getLogger(__name__)

DRAIN_SECONDS = 10
"""How long answers under way may go on after a signal to stop."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that has its address but does not listen yet: nobody connects before the server is ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        because = error.strerror or str(error)
        fix = "choose another --port (0 takes a free one), or another --host"
        raise InferCompileError(
            Problem("IC502", "the server cannot listen", f"{host}:{port}", because, fix)
        ) from error
    return bound


def url(bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"


@contextmanager
def service(bundle: Bundle, threads: int | None, queue: int) -> Iterator[Service]:
    """The bundle's engine, measured and running; closed at the end."""
    tokenizer = Tokenizer(bundle.model_dir)
    has_template = ChatTemplate.exists(bundle.model_dir, tokenizer)
    template = ChatTemplate(bundle.model_dir, tokenizer) if has_template else None
    manifest = bundle.manifest
    engine = bundle.engine(threads)
    try:
        measured = measure(engine)
        log.info(
            "a cached token takes %d bytes (%s), %d in an exact page, measured",
            measured.token_bytes,
            measured.level,
            measured.exact_token_bytes,
        )
        metrics = Metrics(manifest.name)
        loop = EngineLoop(engine, tokenizer, queue, metrics)
        metrics.watch(loop, measured)
        version = {
            "version": bundle.fingerprint,
            "name": manifest.name,
            "plan": manifest.plan,
            "program": manifest.program,
            "engine": manifest.engine.model_dump(),
        }
        loop.start()
        try:
            yield Service(
                manifest.name, bundle.fingerprint, version, loop, tokenizer, template, metrics, measured
            )
        finally:
            loop.close()
    finally:
        engine.close()


def serve(folder: Path, host: str, port: int | None, threads: int | None, queue: int) -> None:
    """Serves until SIGTERM or SIGINT; ``port`` None takes the bundle's. Once ready, says on stderr where."""
    bundle = open_bundle(folder)
    bound = bind(host, bundle.manifest.serving.port if port is None else port)
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped.append(number)

    # uvicorn takes both signals while it serves, and sends them again to these handlers when it is done.
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with service(bundle, threads, queue) as running:
            if not stopped:
                asyncio.run(_serve(running, bound))
    finally:
        bound.close()
        for number, handler in before.items():
            signal.signal(number, handler)


async def _serve(running: Service, bound: socket.socket) -> None:
    config = uvicorn.Config(
        create_app(running),
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    server = uvicorn.Server(config)
    address = url(bound)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        print(f"listening on {address}", file=sys.stderr, flush=True)
    await task
