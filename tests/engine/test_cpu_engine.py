"""The generated engine against the reference, on twenty drawn models."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from driver import Driver
from shapes import (
    Build,
    compile_engine,
    draw_config,
    draw_program,
    draw_sampling,
    draw_steps,
    reference_of,
    write_model,
)

from infer_compile.codegen.blocks import WeightsLayout
from infer_compile.codegen.generate import SOURCE, generate
from infer_compile.codegen.toolchain import find
from infer_compile.runtime.engines.cpu import CpuEngine
from infer_compile.runtime.engines.sampling import draw
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.program import Program
from infer_compile.runtime.formats.weights import FP8
from infer_compile.runtime.step import Engine, SequenceStep, StepResult

EMULATION = {name: Path(__file__).with_name(f"{name}_emulated.hpp") for name in ("avx512", "amx")}
FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
DRAWN = 20
PATHS = ("avx2", "avx512", "portable")

# The tolerance of docs/numerics.md: sums in another order differ in their last bits, and now and then such a
# sum rounds to another int8 value or 3-bit code; what follows differs by the noise of that rounding. Rows
# before that agree closely.
ROW_ERROR = 0.03
UNDISTURBED_ERROR = 2e-4


def build_for(path: str) -> Build:
    """What this processor lacks is emulated; matrix tiles always, for ``amx`` is to run everywhere."""
    extra: list[str] = []
    if path in ("avx512", "amx") and "avx512_vnni" not in FLAGS:
        if not Path("/usr/include/simde").exists():
            pytest.skip("this processor has no AVX-512 and libsimde-dev, which emulates it, is not installed")
        extra += [f"-mno-{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni")]
        extra += ["-include", str(EMULATION["avx512"])]
    if path == "amx":
        extra += ["-mno-amx-tile", "-mno-amx-int8", "-include", str(EMULATION["amx"])]
    return Build(path, tuple(extra))  # type: ignore[arg-type]


class Drawn:
    """One drawn model with its reference results."""

    def __init__(self, seed: int, folder: Path) -> None:
        torch.set_num_threads(1)
        rng = np.random.default_rng(seed)
        config = draw_config(rng)
        self.folder = folder
        self.program: Program = draw_program(rng, config)
        self.model = write_model(rng, config, self.program, folder)
        self.reference = reference_of(self.program, self.model)
        self.batches = draw_steps(rng, self.program, Driver(self.reference, seed), 7)
        for step in (step for batch in self.batches for step in batch):
            step.sampling = draw_sampling(rng) if rng.random() < 0.5 else step.sampling
        self.expected = [self.reference.step(batch, logits=True, hidden=True) for batch in self.batches]


def errors_of(result: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Of each row the root mean square difference, over that of the expected row around its mean."""
    centred = expected - expected.mean(axis=1, keepdims=True)
    spread = np.sqrt(np.mean(centred**2, axis=1))
    return np.sqrt(np.mean((result - expected) ** 2, axis=1)) / spread


def check_tokens(result: StepResult, expected: StepResult, batch: list[SequenceStep]) -> None:
    """Tokens are what the slow sampler draws from the engine's own logits, and greedy ones are the
    reference's unless its two largest logits are closer than the tolerance."""
    assert result.logits is not None and expected.logits is not None
    row = 0
    for step, mine, theirs in zip(batch, result.tokens, expected.tokens, strict=True):
        positions = positions_of(step)[len(step.tokens) - step.outputs :] + 1
        for i, position in enumerate(positions):
            assert mine[i] == draw(result.logits[row + i], step.sampling, step.mask, int(position))
            logits = np.sort(expected.logits[row + i])
            close = logits[-1] - logits[-2] < 6 * ROW_ERROR * logits.std()
            assert close or step.sampling.temperature > 0 or mine[i] == theirs[i]
        row += step.outputs


def positions_of(step: SequenceStep) -> np.ndarray:
    parents = range(-1, len(step.tokens) - 1) if step.parents is None else step.parents
    positions: list[int] = []
    for parent in parents:
        positions.append(step.start if parent < 0 else positions[parent] + 1)
    return np.array(positions)


@pytest.mark.parametrize("seed", range(DRAWN))
def test_agrees_with_the_reference(seed: int, tmp_path: Path) -> None:
    """Each on one instruction set, for what takes time is to compile; the kernels alone are tested on all."""
    path = PATHS[seed % len(PATHS)]
    how = build_for(path)
    case = Drawn(seed, tmp_path)
    engine = CpuEngine(
        compile_engine(case.program, case.model, case.folder / path, how), threads=1 + seed % 2
    )
    closest = np.inf
    for batch, expected in zip(case.batches, case.expected, strict=True):
        result = engine.step(batch, logits=True, hidden=True)
        assert result.logits is not None and result.hidden is not None
        assert expected.logits is not None and expected.hidden is not None
        errors = errors_of(result.logits, expected.logits)
        closest = np.min(errors, initial=closest)
        assert np.all(errors < ROW_ERROR)
        assert np.all(errors_of(result.hidden, expected.hidden) < ROW_ERROR)
        check_tokens(result, expected, batch)
    assert closest < UNDISTURBED_ERROR
    engine.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Path, Path]:
    """A compressed, quantized model, whose layers differ in level, and its AVX2 (or portable) engine."""
    rng = np.random.default_rng(3)
    config = draw_config(rng) | {"head_dim": 64, "num_hidden_layers": 2, "sliding_window": None}
    program = draw_program(rng, config, ["ct3", "tq3"])
    cache = program.cache.model_copy(update={"sink_pages": 1, "recent_pages": 1, "page_tokens": 32})
    program = program.model_copy(update={"cache": cache})
    folder = tmp_path_factory.mktemp("small")
    model = write_model(rng, config, program, folder)
    path = "avx2" if "avx2" in FLAGS else "portable"
    return program, model, compile_engine(program, model, folder / "engine", Build(path))  # type: ignore[arg-type]


def test_no_bit_depends_on_chunks_threads_or_company(small: tuple[Program, Path, Path]) -> None:
    program, _, folder = small
    tokens = np.random.default_rng(0).integers(0, program.vocabulary, 300).tolist()
    results = []
    for threads, chunks in ((1, [150, 150]), (2, [1] * 300), (3, [7, 100, 45, 1, 147])):
        engine = CpuEngine(folder, threads=threads)
        driver = Driver(engine)  # type: ignore[arg-type]
        company = driver.open(300)
        alone, start, rows = driver.open(300), 0, []
        for chunk in chunks:
            other = company.feed(tokens[company.start : company.start + min(2, 160 - chunk)], outputs=0)
            piece = alone.feed(tokens[start : start + chunk], outputs=min(chunk, 1))
            batch = [other, piece] if len(other.tokens) else [piece]
            result = driver.step(*batch)
            assert result.logits is not None
            start += chunk
            rows.append(result.logits[-1])
        results.append(rows[-1])
        engine.close()
    assert program.cache.compressed
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])


def behind(engine: Engine, before: list[int], tokens: list[int], **fed: Any) -> np.ndarray:
    """Logits of ``tokens``, fed at once behind others."""
    driver = Driver(engine)  # type: ignore[arg-type]
    place = driver.open(300)
    for start in range(0, len(before), 100):
        driver.step(place.feed(before[start : start + 100], outputs=0))
    logits = driver.step(place.feed(tokens, **fed)).logits
    assert logits is not None
    return logits


def test_a_branch_has_the_bits_of_a_chain(small: tuple[Program, Path, Path]) -> None:
    """A draft may be right with a token that stands beside its chain: far from its place, across pages."""
    program, _, folder = small
    tokens = np.random.default_rng(4).integers(0, program.vocabulary, 300).tolist()
    certain, chain, siblings = tokens[-2:], tokens[100:105], [(0, 7), (0, 8), (3, 7), (4, 9)]
    text = certain + chain
    tree = [*text, *(token for _, token in siblings)]
    parents = [*range(-1, len(text) - 1), *(1 + depth for depth, _ in siblings)]
    engine = CpuEngine(folder, threads=2)
    # Some of the chain, and slots of siblings, lie in the next page; in the end pages are compressed.
    for start in (1, 25, 28, 31, 158, 250):
        branches = behind(engine, tokens[:start], tree, accepted=2, parents=parents)
        straight = behind(engine, tokens[:start], text, accepted=2)
        np.testing.assert_array_equal(branches[: len(text)], straight)
        for row, (depth, token) in enumerate(siblings, len(text)):
            expected = behind(engine, tokens[:start], [*text[: 2 + depth], token])
            np.testing.assert_array_equal(branches[row], expected[-1])
            assert not np.array_equal(branches[row], straight[2 + depth])
    engine.close()


def test_every_form_of_a_page_is_read(small: tuple[Program, Path, Path]) -> None:
    """A changed byte of a sink, of a compressed and of a recent page changes the logits; of an exact page
    that no query sees any more, it does not."""
    program, _, folder = small
    layout = program.cache
    tokens = np.random.default_rng(1).integers(0, program.vocabulary, 200).tolist()

    def last(pool: str | None, page: int) -> np.ndarray:
        engine = CpuEngine(folder, threads=1)
        driver = Driver(engine)  # type: ignore[arg-type]
        place = driver.open(201)
        for start in (0, 150):
            driver.step(place.feed(tokens[start : start + 150], outputs=0))
        if pool is not None:
            table, size = (
                (place.exact, layout.exact_page_bytes)
                if pool == "exact"
                else (place.packed, layout.packed_page_bytes)
            )
            first = int(table[page]) * size
            engine.pool(pool)[first : first + size] ^= 0x11
        result = driver.step(place.feed([5]))
        engine.close()
        assert result.logits is not None
        return result.logits[0]

    plain = last(None, 0)
    assert not np.array_equal(last("exact", 0), plain)  # the sink
    assert not np.array_equal(last("packed", 2), plain)
    assert not np.array_equal(last("exact", 5), plain)  # one page back
    assert np.array_equal(last("exact", 2), plain)  # sealed and far: nobody sees it exact


def test_pools_have_the_planned_size(small: tuple[Program, Path, Path]) -> None:
    program, _, folder = small
    engine = CpuEngine(folder, threads=1)
    assert engine.pool("exact").nbytes == program.limits.exact_pages * program.cache.exact_page_bytes
    assert engine.pool("packed").nbytes == program.limits.packed_pages * program.cache.packed_page_bytes
    engine.close()


def test_a_number_that_is_not_finite_is_refused(small: tuple[Program, Path, Path], tmp_path: Path) -> None:
    program, _, folder = small
    copy = tmp_path / "engine"
    shutil.copytree(folder, copy)
    table = next(tensor for tensor in program.tensors if tensor.name == "embed")
    first = WeightsLayout(program).offsets[table.name]
    weights = bytearray((copy / "weights.bin").read_bytes())
    weights[first : first + table.bytes] = np.full(table.bytes // 2, np.inf, ml_dtypes.bfloat16).tobytes()
    (copy / "weights.bin").write_bytes(weights)
    engine = CpuEngine(copy, threads=1)
    with pytest.raises(InferCompileError, match=r"IC522(.|\n)*sequence 0, layer 0"):
        engine.step([Driver(engine).open(32).feed([1])])  # type: ignore[arg-type]
    engine.close()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": np.array([999_999], np.int32)}, "not in the vocabulary"),
        ({"start": 511, "tokens": np.array([1, 2], np.int32)}, "outside the context"),
        ({"exact": np.array([-1, -1], np.int32)}, "no exact page"),
        ({"outputs": 2}, "more outputs"),
        ({"mask": np.zeros(10, np.uint32)}, "allows no token"),
        ({"accepted": 2}, "more tokens are accepted"),
        ({"exact": np.array([], np.int32)}, "page table is too short"),
    ],
)
def test_a_broken_step_is_refused_whole(
    small: tuple[Program, Path, Path], change: dict[str, object], says: str
) -> None:
    _, _, folder = small
    engine = CpuEngine(folder, threads=1)
    before = engine.pool("exact").copy()
    step = replace(Driver(engine).open(32).feed([1]), **change)  # type: ignore[arg-type]
    with pytest.raises(InferCompileError, match="IC521") as refusal:
        engine.step([step])
    assert says in str(refusal.value)
    assert np.array_equal(engine.pool("exact"), before)
    engine.close()


def test_files_of_another_build_are_refused(small: tuple[Program, Path, Path], tmp_path: Path) -> None:
    _, _, folder = small
    for name, damage in (
        ("weights.bin", lambda data: data[:-64]),
        ("weights.bin", lambda data: data[:20] + b"\xff" + data[21:]),
        ("program.json", lambda data: data.replace(b'"max_context": 512', b'"max_context": 513')),
        ("libengine.so", lambda data: data[:100]),
    ):
        copy = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        (copy / name).write_bytes(damage((folder / name).read_bytes()))
        with pytest.raises(InferCompileError, match="IC520"):
            CpuEngine(copy, threads=1)


def test_shapes_are_constants_of_the_source(small: tuple[Program, Path, Path]) -> None:
    program, _, _ = small
    source = generate(program)[SOURCE]
    head = next(tensor for tensor in program.tensors if tensor.name == "layers.0.attention.qkv")
    assert f"{head.rows}, {head.cols}" in source
    assert f"kVocabulary = {program.vocabulary};" in source
    assert program.digest in source


def test_same_program_compiles_to_the_same_bytes(small: tuple[Program, Path, Path], tmp_path: Path) -> None:
    program, model, folder = small
    path = "avx2" if "avx2" in FLAGS else "portable"
    again = compile_engine(program, model, tmp_path / "again", Build(path))  # type: ignore[arg-type]
    for name in ("libengine.so", "weights.bin", "engine.cpp", "program.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name
    assert str(tmp_path).encode() not in (again / "libengine.so").read_bytes()


def test_a_shape_without_a_kernel_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    config = draw_config(rng)
    program = draw_program(rng, config)
    narrow = program.model_copy(update={"buffers": program.buffers | {"gated": 40}})
    with pytest.raises(InferCompileError, match=r"IC310.*gated, 40"):
        generate(narrow)
    with pytest.raises(InferCompileError, match=r"IC310.*no product with weights in fp8"):
        generate(draw_program(rng, config, weights=FP8))
    mixture = {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2}
    with pytest.raises(InferCompileError, match=r"IC310.*mixtures of experts"):
        generate(draw_program(rng, config | mixture))


def test_compiler_of_the_host_is_found() -> None:
    toolchain = find("x86-64")
    assert toolchain.version != "unknown"
