"""``infer-compile probe``: this machine as a target."""

from __future__ import annotations

from pathlib import Path

import click

from ..catalog.target import load_target, target_names
from ..probe.files import write_aside
from ..probe.gpu import gpus, match, nvml
from ..probe.gpu import target as gpu_target
from ..probe.machine import cache_file, remember, to_yaml
from ..probe.machine import probe as measure
from ..runtime.errors import InferCompileError, Problem


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the target file here.")
@click.option("--gpu", is_flag=True, help="Describe the first NVIDIA GPU instead of the processor.")
def probe(output: Path | None, gpu: bool) -> None:
    """Measure this machine and print it as a target file.

    Memory bandwidth and matrix rate are measured anew and remembered: they are what `target: this-machine`
    means from now on. Takes a few seconds; for figures worth having, nothing else should run meanwhile.
    """
    found = gpus(nvml())
    names = {each: match(each, target_names()) for each in found}
    if gpu and not found:
        raise InferCompileError(
            Problem(
                "IC233",
                "no NVIDIA GPU was found",
                because="nvidia-ml-py is not installed" if nvml() is None else "the driver shows none",
                fix="pip install nvidia-ml-py"
                if nvml() is None
                else "name the device: infer-compile targets lists them",
            )
        )
    if gpu:
        name = names[found[0]]
        text = to_yaml(gpu_target(found[0], load_target(name, Path()) if name else None))
    else:
        text = to_yaml(remember(measure()))
        click.echo(f"remembered in {cache_file()}", err=True)
        for each in found:
            known = f"target: {names[each]}" if names[each] else "infer-compile probe --gpu describes it"
            click.echo(f"there is a {each.name}: {known}", err=True)
    if output is None:
        click.echo(text, nl=False)
    else:
        write_aside(output, text)
        click.echo(output)
