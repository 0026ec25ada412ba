"""``infer-compile build``: a spec into a bundle."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..build.driver import build as compile_bundle
from ..build.progress import Reporter
from ..planner.explain.note import headline
from ..planner.plan import Plan


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--plan", "plan", type=click.Path(path_type=Path), help="Build this plan, if it is still the spec's."
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="The bundle's folder (default: bundles/NAME)."
)
@click.option(
    "--force", is_flag=True, help="Replace another bundle of this name; it stays until the new one stands."
)
def build(spec: Path, plan: Path | None, output: Path | None, force: bool) -> None:
    """Compile SPEC into a bundle and print its folder.

    A build that was stopped goes on where it was; a bundle that is up to date is kept.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    reporter = Reporter(console)
    built = compile_bundle(
        spec,
        plan=plan,
        output=output,
        force=force,
        reporter=reporter,
        show=lambda decided: reporter.say(brief(decided, spec)),
    )
    state = "is up to date" if built.kept else "is built"
    for line in quality(built.plan):
        reporter.say(line)
    reporter.say(f"{built.folder} {state} ({built.manifest.digest[:12]})")
    click.echo(built.folder)


def brief(plan: Plan, spec: Path) -> str:
    """Every decision in a line; the reasons are one command away."""
    lines = [headline(plan)]
    lines += [f"  {reason.key:<24} {reason.value}" for reason in plan.reasons]
    memory = plan.predicted.memory_gib
    lines.append(f"  {'memory':<24} {memory.total:g} of {memory.capacity:g} GiB")
    return "\n".join([*lines, f"  why: infer-compile plan {spec}"])


def quality(plan: Plan) -> list[str]:
    """What was expected beside what was measured, and what was done about it; nothing where none was."""
    found, expected = plan.measured, plan.predicted.quality_loss_percent
    if found is None:
        return []
    lines = [
        f"quality: loss {found.quality_loss_percent:g} % (standard error {found.standard_error_percent:.2g}) "
        f"on {found.tokens} tokens, budget {found.budget_percent:g} %, expected {expected.low:g} to "
        f"{expected.high:g} %; divergence {found.kl_mean:g}"
    ]
    if found.stand_in:
        lines.append("  measured with the same program compiled for this processor, not on the device")
    for change in found.raised:
        layers = ", ".join(map(str, change.layers))
        lines.append(
            f"  raised from {change.before} to {change.after}: the cache of layers {layers}; as planned the "
            f"loss was {found.planned_loss_percent:g} %"
        )
    return lines
