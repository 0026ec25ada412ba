"""The portable path on a 64-bit Arm processor: cross-compiled, and run where qemu-user emulates one."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from driver import Driver
from shapes import draw_config, draw_program, draw_steps, reference_of, write_model
from test_cpu_engine import ROW_ERROR, UNDISTURBED_ERROR, errors_of

from infer_compile.codegen.generate import SOURCE, generate
from infer_compile.codegen.repack import repack
from infer_compile.codegen.toolchain import find
from infer_compile.runtime.step import SequenceStep

ARM = b"\xb7\x00"
"""The machine in the head of an ELF file."""
MAIN = Path(__file__).with_name("static_main.cpp")


def words_of(batches: list[list[SequenceStep]]) -> np.ndarray:
    parts: list[np.ndarray | list[int]] = [[len(batches)]]
    for batch in batches:
        parts.append([len(batch)])
        for step in batch:
            tree = step.parents is not None
            head = [len(step.tokens), step.start, step.accepted, step.sealed, len(step.exact), step.outputs]
            parts += [[*head, tree], step.tokens, *([step.parents] if tree else []), step.exact, step.packed]
    return np.concatenate([np.asarray(part, "<i4") for part in parts])


CROSS = "aarch64-linux-gnu-g++"
ZIG = importlib.util.find_spec("ziglang") is not None


@pytest.mark.skipif(shutil.which(CROSS) is None and not ZIG, reason=f"takes {CROSS} or the ziglang wheel")
def test_static_program_for_arm_agrees_with_the_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    config = draw_config(rng) | {"num_hidden_layers": 3}
    program = draw_program(rng, config, ["ct3", "k8v4", "tq3"])
    model = write_model(rng, config, program, tmp_path)
    (tmp_path / "kernels").mkdir()
    for name, text in generate(program).items():
        (tmp_path / name).write_text(text)
    shutil.copy(MAIN, tmp_path)
    repack(program, model, tmp_path / "weights.bin")  # the cache's tables lie beside it already
    binary = tmp_path / "main"
    toolchain = find("aarch64", static=True)
    toolchain.compile(tmp_path / MAIN.name, binary, "portable", shared=False, extra=("-O1", "-static"))
    assert binary.read_bytes()[18:20] == ARM

    arm = platform.machine() in ("aarch64", "arm64")
    emulator = [] if arm else [shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")]
    if emulator == [None]:
        pytest.skip("compiled, but not run: qemu-user is not installed")
    reference = reference_of(program, model)
    batches = draw_steps(rng, program, Driver(reference), 4)
    (tmp_path / "steps").write_bytes(words_of(batches).tobytes())
    command = [
        *emulator,
        str(binary),
        str(tmp_path / "weights.bin"),
        str(tmp_path / "steps"),
        str(tmp_path / "logits"),
    ]
    subprocess.run(command, check=True, timeout=300)
    logits = np.fromfile(tmp_path / "logits", "<f4").reshape(-1, program.vocabulary)
    expected = np.concatenate([reference.step(batch, logits=True).logits for batch in batches])
    assert len(expected) > 0
    errors = errors_of(logits, expected)
    assert np.all(errors < ROW_ERROR)
    assert np.min(errors) < UNDISTURBED_ERROR


@pytest.mark.skipif(not ZIG, reason="takes the ziglang wheel")
def test_zig_compiles_for_arm_where_there_is_no_cross_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library without the C++ runtime, which zig would build first, for minutes."""
    monkeypatch.setenv("PATH", str(tmp_path))
    toolchain = find("aarch64")
    assert toolchain.zig
    visible = '__attribute__((visibility("default")))'
    (tmp_path / "twice.cpp").write_text(f'extern "C" {visible} int twice(int x) {{ return 2 * x; }}')
    library = tmp_path / "twice.so"
    toolchain.compile(tmp_path / "twice.cpp", library, "portable", extra=("-nostdlib++", "-nostdlib"))
    assert library.read_bytes()[18:20] == ARM


def test_source_is_in_place() -> None:
    assert f'#include "{SOURCE}"' in MAIN.read_text()
