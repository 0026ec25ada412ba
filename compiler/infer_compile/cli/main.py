"""The command line: a table of commands, each imported when it is called, and how errors reach the user."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import click

from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.unserved import nearest
from .console import report

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "plan": "Decide and explain; change nothing.",
        "build": "Compile a spec into a bundle.",
        "serve": "Run the OpenAI-compatible server of a bundle.",
        "generate": "One answer from a bundle, no server.",
        "eval": "Quality of a bundle against the unquantized model.",
        "bench": "Speed of a bundle against its plan's prediction.",
        "verify": "Hold every file of a bundle against its manifest.",
        "lock": "Write down what a spec stands for, beside it.",
        "check": "Hold specs against their locks.",
        "diff": "What two specs, plans or bundles do differently.",
        "probe": "Measure this machine into a target file.",
        "estimate": "Times of one deployment, or of a table of them.",
        "models": "The models whose geometry is known.",
        "targets": "The devices that can be planned for.",
        "schema": "JSON Schema of the spec, for editors.",
        "doctor": "What is missing on this machine, and what mends it.",
    }
)
"""Name to help: the command is the function ``NAME`` of the module ``cli/NAME.py``."""


class Commands(click.Group):
    """Imports a command when it is asked for, so that start-up stays fast, and prints coded errors."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f".{cmd_name}", __package__)
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = nearest(name, tuple(COMMANDS))
            raise click.UsageError(f'there is no command "{name}"' + _meant(close), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in standalone mode print what goes wrong and leave with its exit status."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, **extra)
        try:
            status = super().main(args, prog_name, complete_var, False, **extra)
        except InferCompileError as error:
            report(error)
            status = error.exit
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            status = Exit.USAGE
        except click.ClickException as error:
            report(_usage(error))
            status = Exit.USAGE
        except click.Abort:
            click.echo("interrupted", err=True)
            status = Exit.FAILED
        sys.exit(int(status) if isinstance(status, int) else Exit.DONE)


def _usage(error: click.ClickException) -> InferCompileError:
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "infer-compile"
    problem = Problem("IC030", error.format_message().rstrip("."), fix=f"{command} --help")
    return InferCompileError(problem, Exit.USAGE)


def _meant(name: str | None) -> str:
    return f", did you mean {name}?" if name else ""


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="infer-compile", prog_name="infer-compile", message="%(prog)s %(version)s")
def main() -> None:
    """Compile a declared deployment of a language model into a bundle that serves it.

    Results go to standard output, progress to standard error. Exit status: 0 done, 1 failed, 2 the spec or
    the command line is wrong, 3 no feasible plan, 4 a gate was missed, 5 a bundle or lock does
    not match (diff: 0 same, 5 different).
    """
