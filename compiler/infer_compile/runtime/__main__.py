"""The program inside a bundle: ``python -m runtime serve`` and ``python -m runtime generate``."""

from __future__ import annotations

import argparse
import queue
import sys
from collections.abc import Sequence
from pathlib import Path

from .bundle import open_bundle
from .chat import ChatTemplate, TemplateRefusal
from .errors import Exit, InferCompileError, Problem
from .journal import configure
from .loop import EngineLoop
from .sampling import Controls
from .sequence import Delta, Failure, Request, summary
from .server.keys import VARIABLE
from .server.metrics import PREFIX
from .server.run import Options, serve
from .server.service import Limits
from .step import Int32
from .tokenizer import Tokenizer

QUEUE = 128
"""Sequences that may wait for a place in the batch."""
DRAIN_SECONDS = 30


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="runtime", description="Runs a bundle of infer-compile.")
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--bundle", type=Path, default=Path(), help="the bundle's folder (default: here)")
    common.add_argument("--threads", type=_positive, help="threads of the engine (default: one per core)")
    serving = commands.add_parser("serve", parents=[common], help="OpenAI-compatible server")
    serving.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serving.add_argument("--port", type=_port, help="0 takes a free one (default: the spec's)")
    _serving(serving)
    once = commands.add_parser("generate", parents=[common], help="one answer, no server")
    once.add_argument("prompt", metavar="PROMPT")
    once.add_argument("--max-tokens", type=_positive, help="default: to the end of the context")
    once.add_argument("--temperature", type=_temperature, default=0.0, help="default: 0, the likeliest token")
    once.add_argument("--seed", type=_natural, default=0)
    once.add_argument(
        "--raw", action="store_true", help="continue PROMPT as it is, without the chat template"
    )
    once.add_argument("--stream", action="store_true", help="print the text as it comes")
    return parser.parse_args(arguments)


def _serving(parser: argparse.ArgumentParser) -> None:
    """The options of the server; docs/serving.md explains them."""

    def number(name: str, default: int, text: str) -> None:
        parser.add_argument(name, type=_positive, default=default, help=f"{text} (default: %(default)s)")

    parser.add_argument(
        "--queue", type=_natural, default=QUEUE, help="requests that may wait (default: %(default)s)"
    )
    parser.add_argument(
        "--drain-seconds",
        type=_natural,
        default=DRAIN_SECONDS,
        help="for answers under way, after a signal to stop (default: %(default)s)",
    )
    parser.add_argument("--api-key-file", type=Path, help=f"one key in a line; also ${VARIABLE}")
    parser.add_argument("--open-metrics", action="store_true", help="/metrics needs no key")
    parser.add_argument(
        "--metrics-names", choices=sorted(PREFIX), default="infer", help="prefix (default: %(default)s)"
    )
    parser.add_argument(
        "--shadow-fraction",
        type=_fraction,
        help="of the answers that are checked against an exact cache (default: the spec's)",
    )
    parser.add_argument("--log-format", choices=["text", "json"], default="text")
    limits = Limits()
    number("--max-body-bytes", limits.body_bytes, "of a request")
    number("--max-header-bytes", limits.header_bytes, "of a request")
    number("--max-choices", limits.choices, "prompts times n of a request")
    parser.add_argument("--max-prompt-tokens", type=_positive, help="default: as many as the context holds")


def _options(given: argparse.Namespace) -> Options:
    return Options(
        host=given.host,
        port=given.port,
        threads=given.threads,
        queue=given.queue,
        drain_seconds=given.drain_seconds,
        key_file=given.api_key_file,
        open_metrics=given.open_metrics,
        metrics_names=given.metrics_names,
        shadow_fraction=given.shadow_fraction,
        limits=Limits(
            given.max_body_bytes, given.max_header_bytes, given.max_prompt_tokens, given.max_choices
        ),
    )


def _natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise ValueError
    return value


def _positive(text: str) -> int:
    if _natural(text) == 0:
        raise ValueError
    return int(text)


def _port(text: str) -> int:
    if _natural(text) >= 2**16:
        raise ValueError
    return int(text)


def _temperature(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 2:
        raise ValueError
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError
    return value


# argparse names a type in its messages.
_natural.__name__ = "number"
_positive.__name__ = "positive number"
_port.__name__ = "port"
_temperature.__name__ = "temperature (0 to 2)"
_fraction.__name__ = "fraction (0 to 1)"


def _prompt(text: str, raw: bool, folder: Path, tokenizer: Tokenizer) -> Int32:
    if raw:
        return tokenizer.encode(text, special=True)
    template = ChatTemplate(folder, tokenizer)
    try:
        return tokenizer.encode(template.render([{"role": "user", "content": text}]), special=False)
    except TemplateRefusal as refusal:
        problem = Problem(
            "IC508", "the chat template does not take the prompt", because=str(refusal), fix="use --raw"
        )
        raise InferCompileError(problem) from refusal


def _generate(options: argparse.Namespace) -> None:
    bundle = open_bundle(options.bundle)
    tokenizer = Tokenizer(bundle.model_dir)
    prompt = _prompt(options.prompt, options.raw, bundle.model_dir, tokenizer)
    with bundle.opened(options.threads) as opened:
        loop = EngineLoop(opened.engine, tokenizer, 0, speculator=opened.speculator)
        limit = options.max_tokens or loop.answer_tokens(len(prompt))
        if not len(prompt) or len(prompt) + max(1, limit) > loop.longest:
            raise InferCompileError(_misfit(len(prompt), limit, loop.longest), Exit.USAGE)
        controls = Controls(temperature=options.temperature, seed=options.seed)
        _print(loop, Request(prompt, limit, controls, stop_ids=tokenizer.end_ids), options.stream)


def _misfit(prompt: int, limit: int, context: int) -> Problem:
    if not prompt:
        return Problem("IC509", "the prompt holds no tokens", fix="write a longer one")
    answer = max(1, limit)
    because = f"the prompt has {prompt} tokens, the answer may have {answer}, and the context holds {context}"
    return Problem(
        "IC509", "the prompt does not fit", because=because, fix="shorten it, or lower --max-tokens"
    )


def _print(loop: EngineLoop, request: Request, stream: bool) -> None:
    pieces: queue.SimpleQueue[Delta | Failure] = queue.SimpleQueue()
    loop.start()
    try:
        sequences = loop.submit([(request, pieces.put)])
        finished = False
        while not finished:
            piece = pieces.get()
            if isinstance(piece, Failure):
                raise InferCompileError(piece.problem)
            sys.stdout.write(piece.text)
            if stream:
                sys.stdout.flush()
            finished = piece.finish is not None
    finally:
        loop.close()
    print()
    print(summary(sequences), file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _arguments(arguments)
    configure(getattr(options, "log_format", "text"))
    try:
        if options.command == "serve":
            serve(options.bundle, _options(options))
        else:
            _generate(options)
    except InferCompileError as error:
        print(error, file=sys.stderr)
        return error.exit
    except KeyboardInterrupt:
        return 130
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
