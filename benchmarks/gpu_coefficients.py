"""What the planner knows of the native engine on a GPU: from what gpu_attention.py and gpu_decode.py wrote.

    python benchmarks/gpu_coefficients.py attention.json decode.json [--target h200-sxm]

Prints the entry of catalog/coefficients.yaml. Each term is one measurement, by the part of a step that it is
about, and none is fitted: shares are of the bandwidth and the rates of the target's datasheet.

- ``weight_efficiency``: the products of one row, which read their weights.
- ``cache_efficiency``: attention of 32 sequences of 32K tokens, less what its products take.
- ``decode_attention_efficiency``: what groups of 8 take longer than groups of 4, at the same cache.
- ``decode_matrix_efficiency``: what the products of 32 rows take longer than those of one.
- ``matrix_efficiency``, ``attention_efficiency``: those of a chunk of a prompt.
- ``layer_us``: the rest of a step, for each layer; ``step_us`` and ``sequence_us``: what a step takes longer
  than its graph, for one sequence and for each further.

What was not measured stays as the prior has it, and the command names it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from infer_compile.catalog.coefficients import Calibration, Coefficients
from infer_compile.catalog.data import read
from infer_compile.catalog.target import Target, load_target
from infer_compile.graph.storage import native_scheme
from infer_compile.planner.performance.latency import matrix_tflops
from infer_compile.runtime.formats.weights import weight_format

LARGE = {"batch": 32, "context": 32768}
GROUP = 128
ABOVE = 10.0
"""Stands where more work took no longer: it hides behind what is read."""
LEAST = 0.001
"""What three digits can tell."""
Row = Mapping[str, Any]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("attention", type=Path)
    words.add_argument("decode", type=Path)
    words.add_argument("--target", default="h200-sxm")
    given = words.parse_args()
    attention, decode = (json.loads(path.read_text()) for path in (given.attention, given.decode))
    print(entry(attention, decode, load_target(given.target, Path())))


def entry(attention: Row, decode: Row, target: Target) -> str:
    """The entry as YAML, and as a remark what of it was not measured."""
    known = Coefficients.model_validate(read("coefficients.yaml"))
    prior = next(each for each in known.calibrations if each.engine == "prior")
    found = rates(attention, decode, target)
    left = sorted(set(type(prior.rates).model_fields) - found.keys())
    calibration = Calibration.model_validate(
        {
            "engine": "native",
            "device_class": known.device_class(target).name,
            "devices": [target.id],
            "formats": sorted(set(found.get("weight_efficiency", ())) - {"other"}),
            "rates": prior.rates.model_dump() | found,
            "waiting": prior.waiting.model_dump(),
            "spread": prior.spread.model_dump(),
            "basis": "measurement",
            "source": f"benchmarks/gpu_coefficients.py from gpu_attention.py and gpu_decode.py on "
            f"{decode['device']}, {decode['date']}",
        }
    )
    fields = calibration.model_dump(mode="json", exclude_defaults=True)
    text = yaml.safe_dump([fields], sort_keys=False, width=110, default_flow_style=None)
    return f"{text}# Not measured, as the prior has it: {', '.join(left)}"


def rates(attention: Row, decode: Row, target: Target) -> dict[str, Any]:
    """The fields of ``Rates`` that the figures tell."""
    found: dict[str, Any] = _cache(attention["rows"], target)
    rows = [row for row in decode["rows"] if "graph" in row]
    alone = {row["setup"]["weights"]: row for row in rows if row["setup"]["batch"] == 1}
    bandwidth = target.bandwidth_gbs * 1e9
    if alone:
        found["weight_efficiency"] = _others(
            {name: _share(row["weight_bytes"] / row["products"] / bandwidth) for name, row in alone.items()}
        )
        found["step_us"] = _micro(min(row["step"] - row["graph"] for row in alone.values()))
        found["layer_us"] = _micro(min(row["rest"] / row["layers"] for row in alone.values()))
    wider: dict[str, float] = {}
    for row in rows:
        name, batch = row["setup"]["weights"], row["setup"]["batch"]
        if batch > 1 and name in alone:
            longer = row["products"] - alone[name]["products"]
            extra = row["product_flops"] - alone[name]["product_flops"]
            wider[name] = _ratio(extra / _rate(name, target), longer)
            beside = (row["step"] - row["graph"]) * 1e6 - found["step_us"]
            found["sequence_us"] = _micro(beside / (batch - 1) / 1e6)
    if wider:
        found["decode_matrix_efficiency"] = _others(wider)
    chunks = {name: row["chunk"] for name, row in alone.items() if "chunk" in row}
    if chunks:
        found["matrix_efficiency"] = _others(
            {
                name: _ratio(chunk["product_flops"] / _rate(name, target), chunk["products"])
                for name, chunk in chunks.items()
            }
        )
        found["attention_efficiency"] = max(
            _share(chunk["attention_flops"] / chunk["attention"] / _rate("bf16", target))
            for chunk in chunks.values()
        )
    return found


def _cache(rows: Sequence[Row], target: Target) -> dict[str, Any]:
    """What attention tells of reading the cache, and of its products."""
    bandwidth = target.bandwidth_gbs * 1e9
    large = [row for row in rows if "seconds" in row and all(row[key] == size for key, size in LARGE.items())]
    by = {(row["subject"], row["group"]): row for row in large}
    found: dict[str, Any] = {}
    rate = 0.0
    if ("bf16", 4) in by and ("bf16", 8) in by:
        fewer, more = by["bf16", 4], by["bf16", 8]
        # Bytes in bf16, 2 a number; a query head multiplies and adds each of them.
        extra = (8 - 4) * 2 * fewer["bytes"] / 2
        took = more["seconds"] - fewer["seconds"]
        found["decode_attention_efficiency"] = _ratio(extra / _rate("bf16", target), took)
        rate = found["decode_attention_efficiency"] * _rate("bf16", target)
    shares: dict[str, float] = {}
    for (name, group), row in by.items():
        products = group * 2 * _numbers(row) / rate if rate else 0.0
        if group == 4:
            shares[name] = _share(row["bytes"] / max(row["seconds"] - products, 1e-9) / bandwidth)
    ours = {name: shares[name] for name in shares if "-" not in name and name != "sdpa"}
    if ours:
        # Of measured time: what is issued for each number is in it, and what multiplies faster.
        found |= {"cache_efficiency": _others(ours), "cache_slots": {}, "integer_levels": ()}
    return found


def _numbers(row: Row) -> float:
    """Keys and values of eight heads of 128."""
    return float(2 * row["batch"] * row["context"] * 8 * 128)


def _rate(weights: str, target: Target) -> float:
    """Operations a second of products with such weights."""
    form = weight_format("bf16") if weights == "bf16" else weight_format(weights, GROUP)
    return (matrix_tflops(target, native_scheme(form)) or 0.0) * 1e12


def _others(found: dict[str, float]) -> dict[str, float]:
    """The worst stands for what was not measured."""
    return {"other": min(found.values()), **found}


def _share(value: float) -> float:
    return round(min(1.0, max(LEAST, value)), 3)


def _ratio(ideal: float, took: float) -> float:
    return round(min(ABOVE, max(LEAST, ideal / took)), 3) if took > 0 else ABOVE


def _micro(seconds: float) -> float:
    return round(max(0.0, 1e6 * seconds), 2)


if __name__ == "__main__":
    main()
