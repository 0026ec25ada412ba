"""Serves a bundle until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from ..bundle import Bundle, open_bundle
from ..chat import ChatTemplate
from ..errors import InferCompileError, Problem
from ..grammar import Grammars
from ..journal import Line
from ..loop import EngineLoop
from ..ready import ready
from ..shadow import Shadow
from ..stopwatch import Stopwatch
from ..tokenizer import Tokenizer
from . import keys
from .api import create_app
from .metrics import Metrics, Names
from .service import Limits, Service
from .traces import open_traces

log = logging.getLogger(__name__)

LAST_SECONDS = 1
"""For the last words to clients whose answers are cut off."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a bundle is served."""

    host: str
    port: int | None
    """None takes the bundle's."""
    threads: int | None
    queue: int
    drain_seconds: int
    key_file: Path | None
    open_metrics: bool
    metrics_names: Names
    shadow_fraction: float | None
    """Of the answers that are checked against an exact cache; None takes the bundle's."""
    limits: Limits


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
def service(bundle: Bundle, options: Options, watch: Stopwatch) -> Iterator[Service]:
    """The bundle's engine, warm, measured and running; closed at the end."""
    tokenizer = Tokenizer(bundle.model_dir)
    has_template = ChatTemplate.exists(bundle.model_dir, tokenizer)
    template = ChatTemplate(bundle.model_dir, tokenizer) if has_template else None
    watch.lap("tokenizer")
    manifest = bundle.manifest
    grammars = Grammars(bundle.model_dir, bundle.program.vocabulary, tokenizer.end_ids)
    watch.lap("grammars")
    with ready(bundle, options.threads, watch) as (opened, measured):
        cache = {"bytes_per_token": measured.token_bytes, "exact_bytes_per_token": measured.exact_token_bytes}
        log.info(Line("cache", {"kv": measured.level} | cache))
        metrics = Metrics(manifest.name, options.metrics_names)
        fraction = options.shadow_fraction
        fraction = manifest.serving.shadow_fraction if fraction is None else fraction
        shadow = Shadow(opened.engine, fraction, metrics) if fraction else None
        loop = EngineLoop(opened.engine, tokenizer, options.queue, metrics, opened.speculator, shadow)
        metrics.watch(loop, measured)
        version = {
            "version": bundle.fingerprint,
            "name": manifest.name,
            "plan": manifest.plan,
            "program": manifest.program,
            "engine": manifest.engine.model_dump(),
        }
        traces = open_traces(manifest.name, bundle.fingerprint, manifest.serving.traces)
        loop.start()
        try:
            parts = (loop, tokenizer, template, grammars, metrics, measured, options.limits, traces)
            yield Service(manifest.name, bundle.fingerprint, version, *parts)
        finally:
            loop.close()
            if traces is not None:
                traces.close()


def serve(folder: Path, options: Options) -> None:
    """Serves until SIGTERM or SIGINT, and says on stderr where, once ready. What is under way then has
    ``drain_seconds`` to end; a second signal ends it at once."""
    watch = Stopwatch()
    allowed = keys.load(options.key_file)
    bundle = open_bundle(folder)
    watch.lap("bundle")
    bound = bind(options.host, bundle.manifest.serving.port if options.port is None else options.port)
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        stopped.append(number)

    # Until the event loop takes the signals over, one that comes is kept in mind.
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        with service(bundle, options, watch) as running:
            log.info(watch.line("start"))
            app = create_app(running, allowed, open_metrics=options.open_metrics)
            if not stopped:
                asyncio.run(_serve(app, running, bound, options))
    finally:
        bound.close()
        for number, handler in before.items():
            signal.signal(number, handler)


SIGNALS = (signal.SIGTERM, signal.SIGINT)


async def _serve(app: ASGIApp, running: Service, bound: socket.socket, options: Options) -> None:
    config = uvicorn.Config(
        app,
        http="h11",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        lifespan="off",
        server_header=False,
        h11_max_incomplete_event_size=options.limits.header_bytes,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = uvicorn.Server(config)
    # Its own handlers stop listening at the first signal; ours answer 503 until all is finished.
    server.capture_signals = nullcontext

    def stop() -> None:
        server.should_exit = server.force_exit = running.drain.begun
        running.drain.begin()

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    draining = asyncio.create_task(_drain(server, running, options.drain_seconds))
    while not server.started and not task.done():
        await asyncio.sleep(0.01)
    if server.started:
        log.info("listening on %s", url(bound))
    await task
    draining.cancel()


async def _drain(server: uvicorn.Server, running: Service, seconds: float) -> None:
    """Ends ``server`` when it was told to stop and what was under way is finished, or out of time."""
    await running.drain.begun_at_last()
    log.info(Line("stopping", {"requests": running.drain.requests, "seconds": seconds}))
    with suppress(TimeoutError):
        await asyncio.wait_for(running.drain.finished(), seconds)
    if running.drain.requests:
        log.warning(Line("cut off", {"requests": running.drain.requests}))
        await asyncio.to_thread(running.engine.close)
        with suppress(TimeoutError):
            await asyncio.wait_for(running.drain.finished(), LAST_SECONDS)
    server.should_exit = True
