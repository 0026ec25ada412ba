"""``infer-compile targets``: the devices of the catalog."""

from __future__ import annotations

from pathlib import Path

import click

from ..catalog.target import Target, load_target, target_names
from .console import print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def targets(name: str | None, as_json: bool) -> None:
    """The devices that can be planned for, or all that is known of NAME (a device, or a target file)."""
    if name is not None:
        target = load_target(name, Path())
        if as_json:
            print_json({"target": target.model_dump(mode="json")})
        else:
            _detail(target)
        return
    found = [load_target(each, Path()) for each in target_names()]
    if as_json:
        print_json({"targets": [target.model_dump(mode="json") for target in found]})
        return
    headings = ("name", "kind", "memory GB", "GB/s", "bf16", "fp8", "int8", "fp4", "grade")
    print_table(
        headings,
        (
            (
                target.id,
                target.kind,
                target.memory_gb,
                target.bandwidth_gbs,
                target.rates.bf16_tflops,
                target.rates.fp8_tflops,
                target.rates.int8_tops,
                target.rates.fp4_tflops,
                target.confidence,
            )
            for target in found
        ),
        right=headings[2:8],
    )
    click.echo(
        "\nRates are dense, in 1e12 operations per second. Grades: A a datasheet or a measurement, B mixed, "
        "C recalled.\n`infer-compile targets NAME` shows the source of each figure; `infer-compile probe` "
        "measures this machine.",
        err=True,
    )


_UNITS = {
    "memory_gb": "1e9 bytes",
    "bandwidth_gbs": "1e9 bytes/s",
    "rates.bf16_tflops": "1e12 operations/s",
    "rates.fp8_tflops": "1e12 operations/s",
    "rates.int8_tops": "1e12 operations/s",
    "rates.fp4_tflops": "1e12 operations/s",
    "interconnect.gbs_per_direction": "1e9 bytes/s per direction",
    "host_link.gbs_per_direction": "1e9 bytes/s per direction",
    "network.gbs_per_direction": "1e9 bytes/s per direction",
    "tdp_w": "W",
    "price.purchase_usd": "USD",
    "price.rent_usd_per_hour": "USD/h, lowest and highest seen",
}


def _detail(target: Target) -> None:
    fields = target.model_dump(mode="json", exclude={"sources", "note", "measured"})
    flat = {
        f"{key}.{inner}" if isinstance(value, dict) else key: each
        for key, value in fields.items()
        for inner, each in (value.items() if isinstance(value, dict) else [("", value)])
    }
    plain = {"id", "name", "vendor", "kind", "compute_capability", "confidence"}
    print_table(
        ("figure", "value", "unit", "source"),
        (
            (
                key,
                " to ".join(map(str, value)) if isinstance(value, list) else value,
                _UNITS.get(key, ""),
                "" if key in plain else target.source(key),
            )
            for key, value in flat.items()
            if value is not None
        ),
    )
    if target.note:
        click.echo(f"\n{target.note}")
