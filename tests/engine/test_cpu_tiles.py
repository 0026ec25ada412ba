"""Engines for matrix tiles (AMX): emulated, they give what engines without tiles give; the code for the
processor itself compiles; and a processor without working tiles is refused."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import numpy as np
import pytest
from driver import Driver
from shapes import Build, compile_engine, draw_config, draw_program, draw_steps, write_model
from test_cpu_engine import build_for
from test_linear import SOURCE, compile_kernels

from infer_compile.codegen.engine import LIBRARY, PROGRAM
from infer_compile.probe.cpu import processor
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.weights import weight_format

TRIAL = Path(__file__).with_name("trial_probe.cpp")
PRODUCT = re.compile(rb"\xc4\xe2[\x00-\xff]\x5e", re.DOTALL)
"""TDPBSSD: VEX.128.F2.0F38.W0 5E."""
STUB = """
#include "abi.h"
#define IC_EXPORT extern "C" __attribute__((visibility("default")))
IC_EXPORT int32_t ic_abi(void) { return IC_ABI; }
IC_EXPORT const char* ic_program(void) { return "DIGEST"; }
IC_EXPORT int32_t ic_open(const char*, int32_t, ic_engine**, char*, int32_t) { return REFUSAL; }
IC_EXPORT void ic_close(ic_engine*) {}
IC_EXPORT uint8_t* ic_pool(ic_engine*, int32_t, uint64_t*) { return nullptr; }
IC_EXPORT int32_t ic_step(ic_engine*, const ic_sequence*, int32_t, int32_t*, float*, float*, char*, int32_t) {
  return IC_REFUSED;
}
"""


def test_an_engine_with_tiles_gives_the_same_bits(tmp_path: Path) -> None:
    """As one without, and as its own vectors give where tokens come one by one."""
    rng = np.random.default_rng(1)
    config = draw_config(rng) | {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
    config |= {"head_dim": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    program = draw_program(rng, config, ["bf16"], weight_format("int4-rtn", 64))
    model = write_model(rng, config, program, tmp_path)
    vectors, tiles = (
        CpuEngine(compile_engine(program, model, tmp_path / path, build_for(path)), threads=2)
        for path in ("avx512", "amx")
    )
    batches = draw_steps(rng, program, Driver(vectors), 6)  # type: ignore[arg-type]
    sizes = [sum(len(step.tokens) for step in batch) for batch in batches]
    assert min(sizes) == 1 and max(sizes) > 64
    for batch in batches:
        expected, found = (engine.step(batch, logits=True, hidden=True) for engine in (vectors, tiles))
        for one, other in ((expected.logits, found.logits), (expected.hidden, found.hidden)):
            assert one is not None and other is not None
            assert np.array_equal(one.view(np.int32), other.view(np.int32))
    tokens = rng.integers(0, program.vocabulary, 45).tolist()
    together = tiles.step([Driver(tiles).open(45).feed(tokens)], logits=True).logits  # type: ignore[arg-type]
    place = Driver(tiles).open(45)  # type: ignore[arg-type]
    apart = [tiles.step([place.feed([token])], logits=True).logits for token in tokens]
    assert together is not None and np.array_equal(np.concatenate(apart), together)
    vectors.close()
    tiles.close()


def test_the_code_for_the_processor_itself(tmp_path: Path) -> None:
    """Nothing here may be able to run it: that it compiles, to these instructions, has to do."""
    compile_kernels(SOURCE, tmp_path / "real", Build("amx"))
    assert PRODUCT.search((tmp_path / "real" / "libprobe.so").read_bytes())


def test_tiles_are_tried_before_they_are_used(tmp_path: Path) -> None:
    trial = compile_kernels(TRIAL, tmp_path / "trial", build_for("amx")).probe_trial
    trial.argtypes = [ctypes.c_bool, ctypes.c_bool]
    assert trial(True, False) == 0
    assert trial(False, False) == 3
    assert trial(True, True) == 4


@pytest.mark.parametrize(("refusal", "code"), [(3, "IC531"), (4, "IC532")])
def test_an_engine_that_the_processor_does_not_bear_is_refused(
    refusal: int, code: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    program = draw_program(rng, draw_config(rng) | {"num_hidden_layers": 1}, ["bf16"])
    stub = tmp_path / "stub.cpp"
    stub.write_text(STUB.replace("DIGEST", program.digest).replace("REFUSAL", str(refusal)))
    compile_kernels(stub, tmp_path / "engine", Build("portable"))
    (tmp_path / "engine" / "libprobe.so").rename(tmp_path / "engine" / LIBRARY)
    (tmp_path / "engine" / PROGRAM).write_text(program.to_json())
    with pytest.raises(InferCompileError, match=rf"{code}(.|\n)*isa: avx512"):
        CpuEngine(tmp_path / "engine", threads=1)


@pytest.mark.skipif(processor().isa != "amx", reason="this processor has no matrix tiles (AMX)")
def test_the_processors_own_tiles(tmp_path: Path) -> None:
    source = tmp_path / "own.cpp"
    source.write_text(
        '#include "trial.hpp"\n'
        'extern "C" __attribute__((visibility("default")))\n'
        "int32_t probe_trial() { return ic::try_processor(); }\n"
    )
    assert compile_kernels(source, tmp_path / "own", Build("amx")).probe_trial() == 0
