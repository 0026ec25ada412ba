"""Figures of devices that tables and advertisements get wrong: none of these mistakes is in the catalog."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from infer_compile.catalog.target import Target, load_target, target_names

GIB = 2**30
MIB = 2**20


@cache
def target(name: str) -> Target:
    return load_target(name, Path())


def nvidia() -> list[Target]:
    """Those with a compute capability, which says what their matrix units can do."""
    found = [target(name) for name in target_names()]
    return [one for one in found if one.vendor == "NVIDIA" and one.compute_capability]


def capability(one: Target) -> tuple[int, int]:
    major, _, minor = (one.compute_capability or "").partition(".")
    return int(major), int(minor)


# What a buyer of hardware asks for: the issue's list of device families.
FAMILIES = {
    "GeForce": ("rtx-2080-ti", "rtx-3090", "rtx-4090", "rtx-5090"),
    "workstation": ("rtx-a6000", "rtx-6000-ada", "rtx-pro-6000-blackwell-workstation"),
    "Volta and Turing": ("v100-sxm2-32gb", "t4"),
    "Ampere": ("a10", "a30", "a40", "a100-sxm-80gb", "a100-pcie-80gb"),
    "Ada": ("l4", "l40", "l40s"),
    "Hopper": ("h100-sxm", "h100-pcie", "h100-nvl", "h200-sxm", "h200-nvl", "gh200-96gb", "h20-96gb"),
    "Blackwell": ("b200-sxm", "b300-sxm", "gb200", "gb300"),
    "Jetson": ("jetson-orin-nano-8gb-super", "jetson-orin-nx-16gb", "jetson-agx-orin-64gb"),
    "Jetson Thor, DGX Spark": ("jetson-agx-thor-t5000", "dgx-spark"),
    "AMD": ("mi300x", "mi325x", "mi355x"),
    "Apple M1": ("m1-8-core", "m1-pro-16-core", "m1-max-32-core", "m1-ultra-64-core"),
    "Apple M2": ("m2-10-core", "m2-pro-19-core", "m2-max-38-core", "m2-ultra-76-core"),
    "Apple M3": ("m3-10-core", "m3-pro-18-core", "m3-max-40-core", "m3-ultra-80-core"),
    "Apple M4": ("m4-10-core", "m4-pro-20-core", "m4-max-40-core"),
    "processors": ("raspberry-pi-5", "epyc-7003-8ch-ddr4-3200", "epyc-9005-12ch-ddr5-6000"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_issue_asks_for_is_there_and_can_be_planned(family: str) -> None:
    for name in FAMILIES[family]:
        one = target(name)
        assert one.rates.bf16_tflops and one.tdp_w, name
        for figure in ("memory_gb", "bandwidth_gbs", "rates.bf16_tflops", "tdp_w"):
            assert one.source(figure), (name, figure)


def test_arithmetic_is_that_of_the_compute_capability() -> None:
    """Ampere has no FP8, Ada and Hopper have no FP4, Blackwell has both; every Turing and later has INT8."""
    assert len(nvidia()) >= 55
    for one in nvidia():
        version = capability(one)
        assert (one.rates.fp8_tflops is not None) == (version >= (8, 9)), one.id
        assert (one.rates.fp4_tflops is not None) == (version >= (10, 0)), one.id
        assert one.rates.int8_tops is not None, one.id


# Dense rates beside the figures advertised for the same parts: with sparsity, or with 16-bit accumulation.
SPARSE = {
    ("l40s", "fp8_tflops"): (733, 1466),
    ("h100-sxm", "fp8_tflops"): (1978, 3958),
    ("h100-sxm", "bf16_tflops"): (989, 1979),
    ("h100-nvl", "bf16_tflops"): (835.5, 1671),
    ("b200-sxm", "fp4_tflops"): (9000, 18000),
    ("rtx-5090", "bf16_tflops"): (209.6, 838.4),
    ("rtx-5090", "fp4_tflops"): (1676, 3352),
    ("rtx-4090", "fp8_tflops"): (330.3, 1321),
    ("rtx-5070", "fp4_tflops"): (494, 988),
    ("dgx-spark", "fp4_tflops"): (500, 1000),
    ("jetson-agx-thor-t5000", "fp4_tflops"): (1035, 2070),
    ("jetson-agx-orin-64gb", "int8_tops"): (85, 275),
    ("jetson-orin-nx-16gb", "int8_tops"): (30, 100),
    ("mi355x", "fp8_tflops"): (5033, 10066),
}


@pytest.mark.parametrize(("name", "rate"), SPARSE)
def test_rates_are_dense(name: str, rate: str) -> None:
    dense, advertised = SPARSE[name, rate]
    found = getattr(target(name).rates, rate)
    assert found == pytest.approx(dense, rel=0.001)
    assert found < 0.51 * advertised


def test_rates_are_those_with_32_bit_accumulation() -> None:
    """In GeForce it halves FP16 and FP8 but neither INT8 nor FP4; in the other lines it costs nothing."""
    cards = [one for one in nvidia() if one.id.startswith("rtx-") and capability(one) >= (8, 6)]
    geforce = [one for one in cards if one.id[4].isdigit() and not one.id.endswith("-ada")]
    others = [one for one in cards if one not in geforce]
    assert len(geforce) >= 15
    assert len(others) >= 7
    for one, int8 in [(one, 4) for one in geforce] + [(one, 2) for one in others if "pro-6000" not in one.id]:
        bf16 = one.rates.bf16_tflops or 0
        assert (one.rates.int8_tops or 0) / bf16 == pytest.approx(int8, rel=0.005), one.id
        assert (one.rates.fp8_tflops or 2 * bf16) / bf16 == pytest.approx(2, rel=0.005), one.id
        assert (one.rates.fp4_tflops or 8 * bf16) / bf16 == pytest.approx(8, rel=0.005), one.id


def test_dgx_spark_is_not_a_5070() -> None:
    """As many multiprocessors, but its accumulation in 32 bits is whole; the petaflop is sparse FP4."""
    spark, card = target("dgx-spark").rates, target("rtx-5070").rates
    assert spark.bf16_tflops and spark.fp4_tflops and card.bf16_tflops and card.fp4_tflops
    assert spark.fp4_tflops / card.fp4_tflops == pytest.approx(1, abs=0.02)
    assert spark.bf16_tflops > 1.9 * card.bf16_tflops
    assert spark.fp4_tflops == 500


def test_int8_of_blackwell_ultra_is_never_worth_choosing() -> None:
    for name, int8 in {"b300-sxm": 153.5, "gb300": 165}.items():
        rates = target(name).rates
        assert rates.int8_tops == int8
        assert rates.bf16_tflops and rates.int8_tops < 0.1 * rates.bf16_tflops
    others = [one for one in nvidia() if one.id not in ("b300-sxm", "gb300") and capability(one) >= (7, 5)]
    assert all((one.rates.int8_tops or 0) >= (one.rates.bf16_tflops or 0) for one in others)


def test_what_falls_back_to_bf16_has_no_rate() -> None:
    assert target("arc-pro-b60-24gb").rates.fp8_tflops is None


def test_b200_has_what_it_delivers() -> None:
    one = target("b200-sxm")
    assert one.memory_gb * 1e9 < 180 * GIB
    assert one.memory_gb * 1e9 == pytest.approx(180 * GIB, rel=0.01)
    assert one.bandwidth_gbs == 7700


def test_capacities_are_what_the_driver_reports() -> None:
    for name, mebibytes in {
        "l40s": 46068,
        "rtx-4090": 24564,
        "h100-sxm": 81559,
        "gb200": 189471,
        "b300-sxm": 275040,
        "dgx-spark": 122502,
    }.items():
        assert target(name).memory_gb * 1e9 == pytest.approx(mebibytes * MIB, rel=1e-3), name
        assert str(mebibytes) in target(name).source("memory_gb"), name


def test_mi300x_is_neither_a_quarter_nor_double() -> None:
    """Tables print 330 for its bf16 matrix rate, and 383 of the shaders; sparse it is 2615."""
    rates = target("mi300x").rates
    assert (rates.bf16_tflops, rates.fp8_tflops) == (1307, 2615)
    assert target("mi325x").rates == rates


def test_links_are_per_direction() -> None:
    """Makers print both directions together: 900 GB/s of NVLink 4 are 450 each way."""
    for name, each_way in {
        "v100-sxm2-32gb": 150,
        "a100-sxm-80gb": 300,
        "h100-sxm": 450,
        "h200-sxm": 450,
        "b200-sxm": 900,
        "gb300": 900,
        "mi300x": 448,
        "mi355x": 537.6,
        "tpu-v6e": 400,
    }.items():
        link = target(name).interconnect
        assert link and link.gbs_per_direction == each_way, name
    for name in target_names():
        host = target(name).host_link
        lanes = {"PCIe3 x16": 16, "PCIe4 x16": 32, "PCIe5 x16": 64, "PCIe4 x8": 16, "PCIe5 x8": 32}
        assert host is None or host.gbs_per_direction == lanes.get(host.name, host.gbs_per_direction), name


def test_the_network_of_a_node_is_each_devices_share() -> None:
    for name, gbs in {
        "a100-sxm-80gb": 25,
        "h100-sxm": 50,
        "h200-sxm": 50,
        "b200-sxm": 50,
        "b300-sxm": 100,
        "gb200": 50,
        "mi300x": 50,
        "gaudi-3": 75,
    }.items():
        network = target(name).network
        assert network and network.gbs_per_direction == gbs, name
    for name in target_names():
        one = target(name)
        if one.network:
            assert one.source("network"), name
            inside = one.interconnect or one.host_link
            assert inside and inside.gbs_per_direction and one.network.gbs_per_direction, name
            if one.interconnect:
                assert one.network.gbs_per_direction <= inside.gbs_per_direction, name


@pytest.mark.parametrize(
    ("generation", "per_core"), [("m1", 0.326), ("m2", 0.358), ("m3", 0.355), ("m4", 0.46), ("m5", 0.57)]
)
def test_apple_rates_are_so_much_a_core(generation: str, per_core: float) -> None:
    """Some tables double a chip of a generation, some take another clock for it."""
    names = [name for name in target_names() if name.startswith(f"{generation}-") and name.endswith("-core")]
    assert len(names) >= 2
    for name in names:
        cores = int(name.split("-")[-2])
        rate = target(name).rates.bf16_tflops
        assert rate and rate / cores == pytest.approx(per_core, rel=0.02), name


def test_prices_are_ranges() -> None:
    for name in target_names():
        price = target(name).price
        if price and price.rent_usd_per_hour:
            low, high = price.rent_usd_per_hour
            assert 0.1 < low <= high < 20, name
        if price and price.purchase_usd:
            assert 50 < price.purchase_usd < 60000, name
