"""Weight formats and cache levels as a planner counts them: bits, and the arithmetic of their products."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

from .figure import Frozen

Arithmetic = Literal["bf16", "fp8", "int8", "fp4"]
"""What a matrix product's inputs are rounded to; a device that has no such rate multiplies in bf16."""


class Bits(Frozen):
    """Bits per weight, scales included, by the part of the model. Vectors are always 16. ``row`` are bits
    beside each output of a layer's matrix. ``unfolding``: of the matrix that latent attention applies itself,
    where it is not stored as other matrices are."""

    table: float = 16
    matrix: float
    expert: float
    head: float = 16
    row: float = 0
    unfolding: float | None = None


class WeightScheme(Frozen):
    """A weight format as one engine stores it.

    ``experts_only``: in a model with experts the other matrices keep 16 bits. ``own_head``: a tied head is
    stored beside the table, in its own bits; otherwise both are one tensor.
    """

    name: str
    bits: Bits
    products: Arithmetic = "bf16"
    group: int = 0
    """Inputs that share a scale, of the formats that our own engine runs."""
    experts_only: bool = False
    own_head: bool = False
    calibrated: bool = False
    """Made with calibration text."""
    architectures: tuple[str, ...] = ()
    """Classes of models whose published checkpoints mix formats so, under the name of the commonest."""
    engine: str = ""
    """The one engine whose files store the format so; the entry without an engine speaks for the others."""
    source: str


class CacheScheme(Frozen):
    """A cache level as engines store it: bits per cached number of keys and of values, and bytes beside them
    per vector of a head, on the average of keys and values.

    What our own engine stores is in ``runtime.formats.kv``; entries of its levels say the same.
    """

    name: str
    key_bits: float
    value_bits: float
    scale_bytes: float = 0
    calibrated: bool = False
    """Fitted to the model at build, on calibration text."""
    engine: str = ""
    """The one engine that stores the level so; the entry without an engine speaks for the others."""
    source: str

    @property
    def narrowest(self) -> float:
        """Bits of the keys or of the values, whichever have fewer."""
        return min(self.key_bits, self.value_bits)

    @property
    def number_bits(self) -> float:
        """Bits per cached number, scales aside."""
        return (self.key_bits + self.value_bits) / 2

    def bits(self, width: int) -> float:
        """Bits per cached number, of vectors of ``width`` numbers, scales included."""
        return self.number_bits + 8 * self.scale_bytes / width


class Formats(Frozen):
    """``weights`` are those of engines other than ours, whose formats are in ``runtime.formats``."""

    schema_version: Literal[1]
    weights: tuple[WeightScheme, ...]
    kv: tuple[CacheScheme, ...]

    @cached_property
    def _weights(self) -> dict[tuple[str, str, str], WeightScheme]:
        return {
            (scheme.name, architecture, scheme.engine): scheme
            for scheme in self.weights
            for architecture in scheme.architectures or ("",)
        }

    @cached_property
    def _kv(self) -> dict[tuple[str, str], CacheScheme]:
        return {(scheme.name, scheme.engine): scheme for scheme in self.kv}

    def of_weights(self, name: str, architecture: str = "", engine: str = "") -> WeightScheme:
        """The format as an engine's files, or models of a class, store it; raises KeyError for a name without
        an entry."""
        found = self._weights
        own = found.get((name, "", engine)) if engine else None
        return own or found.get((name, architecture, "")) or found[name, "", ""]

    def of_kv(self, name: str, engine: str = "") -> CacheScheme:
        """The level as ``engine`` stores it; raises KeyError for a name without an entry."""
        return self._kv.get((name, engine)) or self._kv[name, ""]


def checkpoint_format(config: Mapping[str, object]) -> str:
    """The weight format of a checkpoint that is quantized already, from its config.json; empty where it is
    not, or where the format is none of ours.

    Names are those of ``quantization_config`` in transformers: the method, or for compressed-tensors and
    ModelOpt what they store.
    """
    text = config.get("text_config")
    settings = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, Mapping) else None
    )
    if not isinstance(settings, Mapping):
        return ""
    method = str(settings.get("quant_method", ""))
    if method in ("compressed-tensors", "modelopt"):
        return _stored(settings)
    bits = settings.get("bits", 4)
    named = {"fp8": "fp8", "mxfp4": "mxfp4", "awq": "int4-awq", "gptq": "int4-gptq"}
    return named.get(method, "") if method in ("fp8", "mxfp4") or bits == 4 else ""


def _stored(settings: Mapping[str, object]) -> str:
    """What the first group of matrices of compressed-tensors or ModelOpt is stored as."""
    algorithm = str(settings.get("quant_algo", "")).lower()
    if algorithm in ("fp8", "nvfp4"):
        return algorithm
    groups = settings.get("config_groups")
    first: object = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = first.get("weights") if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        return ""
    kind = f"{weights.get('type')}{weights.get('num_bits')}"
    if kind == "float4":
        kind += f"-{weights.get('group_size')}"
    return {
        "float8": "fp8",
        "int8": "int8",
        "int4": "int4-rtn",
        "float4-16": "nvfp4",
        "float4-32": "mxfp4",
    }.get(kind, "")
