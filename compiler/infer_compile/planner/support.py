"""What an engine can serve of a model on a device, and in words why not."""

from __future__ import annotations

from ..catalog.engines import Devices, Engine, Needs, Part
from ..catalog.target import Target
from ..graph.graph import Graph
from ..graph.latent import Index, LatentAttend
from ..graph.storage import misfits
from ..runtime.formats.kv import HEAD_DIMS
from ..runtime.formats.weights import WeightFormat

_PARTS: dict[Part, str] = {"weights": "weight format", "kv": "kv level", "speculation": "speculation"}


def capability(target: Target) -> tuple[int, ...] | str:
    """The generation of a device: (major, minor) of NVIDIA's compute capability, another vendor's name of it
    (``gfx942``, ``Metal``), or nothing where there is none."""
    text = target.compute_capability or ""
    parts = text.split(".")
    return tuple(map(int, parts)) if len(parts) == 2 and all(map(str.isdigit, parts)) else text


def fits(target: Target, devices: Devices) -> bool:
    """Whether ``target`` is one of ``devices``."""
    found = capability(target)
    if devices.vendor and target.vendor != devices.vendor:
        return False
    if devices.kinds and target.kind not in devices.kinds:
        return False
    if devices.families and found not in devices.families:
        return False
    if devices.least and not (isinstance(found, tuple) and found >= _version(devices.least)):
        return False
    return not devices.most or (isinstance(found, tuple) and found <= _version(devices.most))


def refusal(engine: Engine, graph: Graph, target: Target, nodes: int = 1) -> str:
    """Why ``engine`` does not run ``graph`` on ``nodes`` machines with ``target``; empty where it does."""
    if not any(fits(target, devices) for devices in engine.devices):
        return f"{engine.title} runs on {describe(engine.devices)}, not on {named(target)}"
    if nodes > 1 and not engine.nodes:
        return f"{engine.name} runs on one machine"
    if engine.architectures.own and not graph.native:
        return f"our own engine does not run {graph.name}: {graph.native_reason}"
    if not engine.architectures.own and graph.architecture not in engine.architectures.served:
        return f"{engine.title} does not run {graph.architecture}"
    limited = engine.architectures.limited.get(graph.architecture)
    return _unmet(engine, graph, target, graph.architecture, limited) if limited else ""


def weights(engine: Engine, graph: Graph, target: Target) -> tuple[str, ...]:
    """The weight formats that ``engine`` serves of ``graph`` on ``target``."""
    return _served(engine, graph, target, "weights")


def levels(engine: Engine, graph: Graph, target: Target) -> tuple[str, ...]:
    """The cache levels; a model without a cache has the exact one alone."""
    return _served(engine, graph, target, "kv")


def methods(engine: Engine, graph: Graph, target: Target) -> tuple[str, ...]:
    """The methods of speculation; ``none``, which every engine serves, comes first."""
    return ("none", *_served(engine, graph, target, "speculation"))


def why_not(engine: Engine, graph: Graph, target: Target, part: Part, name: str) -> str:
    """Why ``engine`` does not serve ``name`` as ``part`` of a plan here; empty where it does."""
    if (part, name) == ("speculation", "none"):
        return ""
    table = engine.needs(part)
    if name not in table:
        return f"{engine.title} has no {_PARTS[part]} {name}"
    if part == "kv" and name != "bf16" and not graph.attention:
        return f"{graph.name} keeps no keys and values"
    if part == "kv" and name != "bf16" and engine.architectures.own and not _known_heads(graph):
        known = ", ".join(map(str, HEAD_DIMS))
        return f"heads of {graph.name} have {graph.head_dim} elements; kernels of the cache take {known}"
    return _unmet(engine, graph, target, name, table[name]) or _misfit(graph, name, table[name])


def describe(devices: tuple[Devices, ...]) -> str:
    """``devices`` in words."""
    return "; ".join(map(_describe, devices))


def named(target: Target) -> str:
    """A device by its name and generation."""
    found = target.compute_capability
    return f"{target.name} ({found})" if found else target.name


def _known_heads(graph: Graph) -> bool:
    return graph.latent is not None or graph.head_dim in HEAD_DIMS


def _served(engine: Engine, graph: Graph, target: Target, part: Part) -> tuple[str, ...]:
    return tuple(name for name in engine.needs(part) if not why_not(engine, graph, target, part, name))


def _unmet(engine: Engine, graph: Graph, target: Target, name: str, needs: Needs) -> str:
    if needs.architectures and graph.architecture not in needs.architectures:
        return f"{engine.name} has {name} for {', '.join(needs.architectures)}, not for {graph.architecture}"
    devices, kind = _devices(graph, needs)
    if devices is None or any(fits(target, one) for one in devices):
        return ""
    if not devices:
        return f"{engine.name} has no {name} for {kind}"
    return f"{engine.name} has {name}{kind and f' of {kind}'} on {describe(devices)}, not on {named(target)}"


def _devices(graph: Graph, needs: Needs) -> tuple[tuple[Devices, ...] | None, str]:
    """What ``needs`` asks of the device for such a model (None: nothing), and the model's kind of attention
    where that decides."""
    latent = any(isinstance(one, LatentAttend) for one in graph.attention)
    sparse = latent and any(isinstance(one, Index) for one in graph.operations)
    if sparse and needs.sparse is not None:
        return needs.sparse, "sparse latent attention"
    if latent and needs.latent is not None:
        return needs.latent, "latent attention"
    return needs.devices or None, ""


def _misfit(graph: Graph, name: str, needs: Needs) -> str:
    """The first matrix that does not divide into the groups of a format."""
    if needs.group == 1:
        return ""
    found = misfits(graph, WeightFormat(name=name, bits=4, group=needs.group))
    if not found:
        return ""
    first = found[0]
    return f"{first.name} of {graph.name} has {first.cols} inputs; {name} needs a multiple of {needs.group}"


def _describe(devices: Devices) -> str:
    kinds = {"cpu": "processors", "gpu": "GPUs", "unified": "chips with unified memory"}
    nouns = " and ".join(kinds[kind] for kind in devices.kinds) or "devices"
    text = f"{devices.vendor} {nouns}".strip()
    if devices.families:
        text += f" of {', '.join(devices.families)}"
    if devices.least and devices.most:
        return f"{text} of compute capability {devices.least} to {devices.most}"
    if devices.least:
        return f"{text} from compute capability {devices.least}"
    return f"{text} up to compute capability {devices.most}" if devices.most else text


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))
