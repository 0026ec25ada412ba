"""Why this engine runs the model, and why the devices share it so."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...catalog.engines import Engine
from .. import support
from ..choose import nearest
from ..deployment import Deployment
from ..frontier import choice
from ..options import offers
from ..performance.latency import between_devices, between_machines
from ..plan import Parallelism, Reason
from .contest import Contest, Mask, broken, figure
from .words import listed, milliseconds, split, times

THE_SPEC = "the spec"


def not_buildable(asked: Deployment, engine: Engine) -> str:
    """Why this version cannot build a bundle of ``engine`` for the target; empty if it can."""
    if engine.builds_for(asked.target.kind, asked.devices):
        return ""
    if asked.target.kind in engine.builds:
        return f"bundles of the {engine.name} engine are built for one device, and these are {asked.devices}"
    if engine.builds:
        return f"bundles of the {engine.name} engine are built for {' and '.join(engine.builds)} targets"
    return f"this version plans for {engine.name}, and does not write its bundles"


def engine(contest: Contest) -> Reason:
    """The engine against the others, and what those lack."""
    asked, chosen = contest.asked, contest.chosen
    name = chosen.engine.name
    clauses = ["pinned"] if asked.spec.pin.engine else list(_engines(contest))
    if not_buildable(asked, chosen.engine):
        clauses.append("planned only")
    source = version(chosen.engine, "architectures")
    return Reason(
        key="engine",
        value=name,
        why="; ".join(clauses),
        source=THE_SPEC if asked.spec.pin.engine else source,
    )


def unverified(contest: Contest) -> Iterator[Reason]:
    """That the engine's kernels were not run on such a device, where they were not."""
    kind = contest.asked.target.kind
    if contest.chosen.engine.on(kind).verified:
        return
    yield Reason(
        key="engine.kernels",
        value="unverified",
        why="they were not run on a GPU since they were last changed: what is tested is that they agree with "
        "the reference, interpreted on a processor, and that they compile for the device",
        source="catalog/cuda_kernels.yaml, docs/cuda.md",
    )


def version(engine: Engine, field: str) -> str:
    """Where it was read what ``engine`` has."""
    return f"{' '.join(filter(None, (engine.name, engine.version)))}: {engine.source(field)}"


def _engines(contest: Contest) -> Iterator[str]:
    asked, chosen, survey = contest.asked, contest.chosen, contest.survey
    blocks = {each.block.engine.name: each.block.engine for each in survey.solved}
    others = [one for one in blocks.values() if one.name != chosen.engine.name]
    best = {one.name: contest.best(_of(contest, one)) for one in others}
    possible = {name: index for name, index in best.items() if index is not None}
    ranked = sorted(possible, key=lambda name: -contest.gain(possible[name]))
    given = [f"{name} {times(contest.gain(possible[name]))}" for name in ranked]
    mine = f"{figure(asked, chosen)}"
    if not ranked:
        yield f"the only engine with a plan that keeps every limit: {mine}"
    elif contest.gain(possible[ranked[0]]) <= 1:
        yield f"the best of {len(ranked) + 1} engines: {mine}; {listed(given)}"
    elif chosen.engine.builds_for(asked.target.kind, asked.devices):
        yield f"this version builds its bundles: {mine}; only planned for: {listed(given)}"
    else:
        margin = asked.facts.choices.margins.engine_gain.value - 1
        yield (
            f"{mine}; {listed(given)}: within {margin:.0%} engines are equal as far as their calibration "
            "tells, and the first of the catalog is taken"
        )
    for one in others:
        if one.name not in possible:
            near = nearest(survey, np.flatnonzero(_of(contest, one)))
            yield f"{one.name} {broken(survey.candidate(near))}"
    refusals = offers(asked)[1]
    elsewhere = [one.engine for one in refusals if not _runs(asked, one.engine)]
    if elsewhere:
        yield f"not for {support.named(asked.target)}: {listed(elsewhere)}"
    for refusal in refusals:
        if refusal.engine not in elsewhere:
            named = refusal.engine in refusal.reason
            yield refusal.reason if named else f"{refusal.engine}: {refusal.reason}"


def _runs(asked: Deployment, name: str) -> bool:
    """Whether the engine of that name runs on the device, whatever the model."""
    return any(support.fits(asked.target, devices) for devices in asked.facts.engines.of(name).devices)


def _of(contest: Contest, engine: Engine) -> Mask:
    return contest.blocks(lambda block: block.engine.name == engine.name)


def parallelism(contest: Contest) -> Reason:
    """The layout against the next best and the plain ones."""
    asked, chosen = contest.asked, contest.chosen
    mine = choice(asked, chosen).parallelism
    if asked.devices == 1:
        return Reason(key="parallelism", value="one device", why="the target is one device", source=THE_SPEC)
    pinned = asked.spec.pin.parallelism is not None
    clauses = [
        *(["pinned"] if pinned else []),
        *_layouts(contest, mine),
        *_links(contest),
        *_heads(contest, mine),
    ]
    return Reason(
        key="parallelism",
        value=split(mine),
        why="; ".join(clauses),
        source=THE_SPEC if pinned else asked.target.source("interconnect") or "arithmetic",
    )


def _layouts(contest: Contest, mine: Parallelism) -> Iterator[str]:
    asked, survey = contest.asked, contest.survey
    among = contest.formats & ~contest.layout
    if not np.any(among):
        yield "the only split that the heads, layers and experts of the model allow"
        return
    told = {mine}
    next_best = contest.best(among)
    if next_best is None:
        near = contest.nearest(among)
        yield "the only split that keeps every limit"
        if near is not None:
            one = survey.candidate(near)
            yield f"the nearest, {split(choice(asked, one).parallelism)}, {broken(one)}"
        return
    other = choice(asked, survey.candidate(next_best)).parallelism
    told.add(other)
    gain = contest.gain(next_best)
    yield f"{figure(asked, contest.chosen)}; the next best, {split(other)}, gives {times(gain)}"
    for plain in (Parallelism(tensor=asked.devices), Parallelism(data=asked.devices)):
        here = among & _is(contest, plain)
        if plain in told or not np.any(here):
            continue
        best = contest.best(here)
        if best is not None:
            yield f"{split(plain)} {times(contest.gain(best))}"
        else:
            yield f"{split(plain)} {broken(survey.candidate(nearest(survey, np.flatnonzero(here))))}"


def _is(contest: Contest, sizes: Parallelism) -> Mask:
    return contest.each(
        lambda solved: np.all(
            [np.asarray(getattr(solved.block.layout, way)) == size for way, size in sizes], axis=0
        )
    )


def _links(contest: Contest) -> Iterator[str]:
    """What goes over links in a step."""
    chosen = contest.chosen
    step, links = float(chosen.forecast.step.total), float(chosen.forecast.step.links)
    if not links:
        yield "nothing goes over links in a step"
        return
    target, asked = contest.asked.target, contest.asked
    used = (between_devices(target), between_machines(target) if asked.nodes > 1 else None)
    wires = " and ".join(f"{link.name} at {link.gbs_per_direction:g} GB/s" for link in used if link)
    part = f"{milliseconds(links * 1e3)} of the {milliseconds(step * 1e3)} of a step"
    yield f"{part} go over {wires} per direction"


def _heads(contest: Contest, mine: Parallelism) -> Iterator[str]:
    heads = {heads.kv_heads for heads in contest.asked.shape.heads}
    if not heads or mine.tensor == 1:
        return
    least = min(heads)
    if least < mine.tensor:
        noun = "the latent cache is" if least == 1 else f"the {least} key heads are"
        copies = mine.tensor // least
        yield f"{noun} kept {copies} times by the {mine.tensor} devices of a layer"
