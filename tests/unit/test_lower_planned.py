"""What the planner counts for the example specs is what lowering makes of its plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer_compile.catalog.source import resolve
from infer_compile.catalog.target import load_target
from infer_compile.graph.build import build
from infer_compile.lower.lower import lower
from infer_compile.planner.search import plan
from infer_compile.spec.load import load

SPECS = Path(__file__).resolve().parents[2] / "specs"


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("quickstart", "desktop-ddr4-3200-dual-channel"),
        ("llama-3.1-8b-rtx-4090", "rtx-4090"),
        ("llama-3.3-70b-h100", "h100-sxm"),
        ("llama-3.2-1b-jetson-orin-nano", "jetson-orin-nano-8gb"),
    ],
)
def test_planned_bytes_are_the_programs(spec: str, target: str) -> None:
    loaded = load(SPECS / f"{spec}.yaml").spec
    # On a GPU our own engine is planned for where it is pinned.
    loaded = loaded.model_copy(update={"pin": loaded.pin.model_copy(update={"engine": "native"})})
    graph = build(resolve(loaded.model.source, None, SPECS).config, spec)
    planned = plan(loaded, graph, load_target(target, SPECS))
    program = lower(graph, planned)
    assert program.weight_bytes == planned.weights.bytes
    assert program.cache.token_bytes == planned.kv.bytes_per_token
    assert program.limits == planned.program_limits
    gib = planned.predicted.memory_gib
    if planned.parallelism.tensor == 1:
        layout, limits = program.cache, program.limits
        pools = limits.exact_pages * layout.exact_page_bytes + limits.packed_pages * layout.packed_page_bytes
        names = list(program.buffers)
        outputs = names[names.index("selected") :]
        floats = sum(
            width * (limits.max_outputs if name in outputs else limits.max_batch_tokens)
            for name, width in program.buffers.items()
        )
        for counted, found in (
            (gib.weights, program.weight_bytes),
            (gib.kv, pools),
            (gib.activations, 4 * floats),
        ):
            assert counted == pytest.approx(found / 2**30, rel=1e-3)
