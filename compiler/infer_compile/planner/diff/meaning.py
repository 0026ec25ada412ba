"""What the figures of a plan mean to a reader: group, noun, unit, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

Group = Literal["decisions", "memory", "speed", "quality", "cost", "limits", "bundle", "inputs", "other"]
GROUPS: tuple[Group, ...] = (
    "decisions",
    "memory",
    "speed",
    "quality",
    "cost",
    "limits",
    "bundle",
    "inputs",
    "other",
)
"""In the order of a page."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What ``pattern``, a dotted key with ``*``, stands for.

    ``noun`` tells why a reader cares; ``up`` and ``down`` say that the figure rose or fell. ``neither`` was
    chosen, not predicted. A ``part`` makes up another figure or bounds it: the whole is judged, once.
    """

    pattern: str
    group: Group
    noun: str = ""
    unit: str = ""
    better: Literal["lower", "higher", "neither", "part"] = "neither"
    up: str = ""
    down: str = ""


def _time(key: str, noun: str, unit: str = "ms") -> Meaning:
    return Meaning(f"predicted.{key}", "speed", noun, unit, "lower", "slower", "faster")


def _rate(key: str, noun: str) -> Meaning:
    return Meaning(f"predicted.{key}", "speed", noun, "", "higher", "faster", "slower")


def _part(pattern: str, group: Group, unit: str = "") -> Meaning:
    return Meaning(pattern, group, "", unit, "part")


_MEANINGS: tuple[Meaning, ...] = (
    Meaning("target.id", "decisions", "the device"),
    Meaning("engine", "decisions", "what runs the model"),
    Meaning("buildable", "decisions", "whether this version can build the bundle"),
    Meaning("weights.format", "decisions", "how the weights are stored"),
    Meaning("weights.group", "decisions", "weights that share a scale"),
    _part("weights.bits_per_weight", "memory"),
    _part("weights.bytes", "memory", "bytes"),
    _part("weights.gib", "memory", "GiB"),
    Meaning("weights.*", "decisions"),
    Meaning("kv.level", "decisions", "how the cache is stored"),
    Meaning("kv.layers", "decisions", "cache level of each layer"),
    _part("kv.bits_per_element", "memory"),
    _part("kv.bytes_per_token", "memory", "bytes"),
    _part("kv.pages", "memory"),
    _part("kv.exact_pages", "memory"),
    _part("kv.spare_pages", "memory"),
    _part("kv.packed_pages", "memory"),
    _part("kv.table_bytes", "memory", "bytes"),
    Meaning("kv.*", "decisions"),
    Meaning("speculation.acceptance", "speed", "drafted tokens that are kept", "", "higher", "more", "fewer"),
    Meaning(
        "speculation.tokens_per_step", "speed", "what a step yields", "tokens", "higher", "more", "fewer"
    ),
    Meaning("speculation.pays_up_to", "limits", "sequences in flight beyond which drafting costs speed"),
    Meaning("speculation.*", "decisions", "drafting of tokens"),
    Meaning("parallelism.*", "decisions", "devices that share the model"),
    Meaning(
        "predicted.memory_gib.total", "memory", "what each device must hold", "GiB", "lower", "more", "less"
    ),
    _part("predicted.memory_gib.*", "memory", "GiB"),
    _part("predicted.*_low", "speed"),
    _part("predicted.*_high", "speed"),
    _time("ttft_ms", "what a user waits for the first word"),
    _time("itl_ms", "what a user waits for each further word"),
    _time("e2e_s", "what a user waits for the whole answer", "s"),
    _rate("tokens_per_second", "what all users get together"),
    _rate("tokens_per_second_per_user", "what one user gets"),
    _rate("prefill_tokens_per_second", "how fast a prompt is read, alone"),
    Meaning("predicted.bottleneck", "speed", "what a step waits for: more of it makes faster"),
    _part("predicted.step_ms.*", "speed", "ms"),
    Meaning(
        "predicted.quality_loss_percent.expected",
        "quality",
        "perplexity above the unquantized model's",
        "%",
        "lower",
        "more loss",
        "less loss",
    ),
    _part("predicted.quality_loss_percent.*", "quality", "%"),
    Meaning("predicted.cost.*usd_per_*", "cost", "", "USD", "lower", "dearer", "cheaper"),
    Meaning("predicted.cost.watts", "cost", "what the devices draw at most", "W", "lower", "more", "less"),
    Meaning("predicted.cost.kwh_per_million_tokens", "cost", "energy", "kWh", "lower", "more", "less"),
    Meaning(
        "predicted.cost.break_even_tokens_per_month",
        "cost",
        "from which it costs less than the API",
        "tokens",
        "lower",
        "later",
        "sooner",
    ),
    _part("predicted.cost.break_even_utilization", "cost"),
    Meaning(
        "predicted.cost.bandwidth_gbs_per_usd_hour",
        "cost",
        "memory bandwidth for the money",
        "GB/s",
        "higher",
        "more",
        "less",
    ),
    Meaning("predicted.cost.*", "cost"),
    Meaning(
        "limits.max_context", "limits", "prompt and answer together", "tokens", "higher", "longer", "shorter"
    ),
    Meaning(
        "limits.checked_tokens", "limits", "of an answer that is checked against an exact cache", "tokens"
    ),
    Meaning("limits.overflow", "limits", "what becomes of a sequence that reaches the context"),
    Meaning("limits.max_sequences", "limits", "served at once; others queue", "", "higher", "more", "fewer"),
    Meaning("limits.max_batch_tokens", "limits", "what one step computes", "tokens"),
    Meaning("limits.*", "limits"),
    Meaning("bundle.program", "bundle"),
    Meaning("bundle.toolchain.*", "bundle", "what made the bundle"),
    Meaning("bundle.*", "bundle"),
    Meaning("name", "inputs"),
    Meaning("tool", "inputs", "version of infer-compile"),
    Meaning("engine_version", "inputs", "that the facts about the engine are of"),
    *(Meaning(f"{part}.*", "inputs") for part in ("spec", "model", "draft", "targets", "target", "facts")),
    Meaning("predicted.workload.*", "inputs", "the load that the prediction is for"),
    Meaning("inputs.*", "inputs"),
)
_UNKNOWN = Meaning("*", "other")


def meaning_of(key: str) -> Meaning:
    """The first row whose pattern ``key`` matches; a key without one is shown, not judged."""
    return next((each for each in _MEANINGS if fnmatchcase(key, each.pattern)), _UNKNOWN)


def rank_of(key: str) -> tuple[int, bool, int]:
    """Where ``key`` comes on a page: its group, then what is judged, then the order of the table."""
    meaning = meaning_of(key)
    row = _MEANINGS.index(meaning) if meaning in _MEANINGS else len(_MEANINGS)
    return GROUPS.index(meaning.group), meaning.better in ("neither", "part"), row
