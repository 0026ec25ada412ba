"""A GPU's engine opened on machines that are made up: what is asked of them, and how each refuses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import gpu_bundle
import pytest

torch = pytest.importorskip("torch")

from infer_compile.runtime.engines import cuda, device  # noqa: E402
from infer_compile.runtime.engines.device import GIB, Holder  # noqa: E402
from infer_compile.runtime.engines.driver import failed  # noqa: E402
from infer_compile.runtime.errors import InferCompileError  # noqa: E402


class Loading(Exception):
    """The engine found all that it needs, and begins with the weights."""


class Card:
    """A driver that shows a card, or none."""

    loaded: list[bytes]

    def __init__(self, version: tuple[int, int], shown: bool) -> None:
        self.version = lambda: version
        self._shown = shown
        self.loaded = []

    def start(self) -> None:
        if not self._shown:
            raise failed("cuInit: no CUDA-capable device is detected")

    def load(self, cubin: bytes, entry: str, shared: int) -> int:
        self.loaded.append(cubin)
        return len(self.loaded)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        gpu_bundle.built(gpu_bundle.write(folder, "rtx-4090"), folder / "out")
    return folder / "out" / "engine"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Card]:
    """Makes one up: a card of the bundle's architecture, unless it is told otherwise."""

    def make(
        *,
        version: tuple[int, int] = (13, 0),
        shown: bool = True,
        built: str | None = "13.0",
        free: int = 20 * GIB,
        capability: tuple[int, int] = (8, 9),
        fails: type[Exception] = Loading,
    ) -> Card:
        def load(*_: object) -> None:
            raise fails

        card = Card(version, shown)
        monkeypatch.setattr(cuda, "Driver", lambda: card)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (free, 24 * GIB))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        monkeypatch.setattr(cuda, "holders", lambda index: (Holder(7, "trainer", 3 * GIB),))
        monkeypatch.setattr(cuda.CudaEngine, "_stored", lambda engine: load)
        return card

    return make


def refusal(engine: Path) -> str:
    with pytest.raises(InferCompileError) as raised:
        cuda.CudaEngine(engine)
    assert raised.value.exit == 1
    return str(raised.value)


def test_its_kernels_are_loaded_before_its_weights(engine: Path, machine: Callable[..., Card]) -> None:
    card = machine()
    with pytest.raises(Loading):
        cuda.CudaEngine(engine)
    assert sorted(card.loaded) == sorted(path.read_bytes() for path in engine.glob("sm_89/*.cubin"))


def test_an_engine_of_latent_attention_is_opened_as_any_other(
    tmp_path: Path, machine: Callable[..., Card]
) -> None:
    pytest.importorskip("transformers", reason="pip install transformers")
    import deepseek

    spec = deepseek.write(tmp_path, deepseek.model("V3"), "rtx-4090", "weights: bf16, kv: fp8")
    with pytest.MonkeyPatch.context() as patch:
        gpu_bundle.without_compiler(patch.setattr)
        gpu_bundle.built(spec, tmp_path / "out")
    card, engine = machine(), tmp_path / "out" / "engine"
    with pytest.raises(Loading):
        cuda.CudaEngine(engine)
    assert sorted(card.loaded) == sorted(path.read_bytes() for path in engine.glob("sm_89/*.cubin"))


def test_what_a_machine_lacks_is_said_before_anything_is_loaded(
    engine: Path, machine: Callable[..., Card]
) -> None:
    machine(version=(12, 4))
    assert "IC525" in refusal(engine)
    machine(shown=False)
    said = refusal(engine)
    assert "IC526" in said and "no CUDA-capable device" in said
    machine(built=None)
    assert "IC529" in refusal(engine)
    card = machine(free=1 << 20)
    said = refusal(engine)
    assert "IC527" in said and "of 24.0 GiB 0.0 GiB are free" in said and "trainer" in said
    assert not card.loaded


def test_memory_that_goes_while_it_loads_is_said_too(engine: Path, machine: Callable[..., Card]) -> None:
    machine(fails=torch.OutOfMemoryError)
    said = refusal(engine)
    assert "IC527" in said and "weights, cache and buffers take" in said


def test_a_card_of_another_architecture_takes_the_source_or_is_refused(
    engine: Path,
    machine: Callable[..., Card],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    card = machine(capability=(9, 0))
    monkeypatch.setattr(device, "find_spec", lambda name: object())
    monkeypatch.setenv("CC", "cc")
    with caplog.at_level(logging.INFO), pytest.raises(Loading):
        cuda.CudaEngine(engine)
    assert "compute capability 9.0" in caplog.text and "compiled now" in caplog.text and not card.loaded
    monkeypatch.setattr(device, "find_spec", lambda name: None)
    assert "IC528" in refusal(engine)


def test_a_cubin_that_is_missing_is_a_damaged_bundle(
    engine: Path, machine: Callable[..., Card], tmp_path: Path
) -> None:
    copy = tmp_path / "engine"
    for path in engine.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(engine)).parent.mkdir(parents=True, exist_ok=True)
            (copy / path.relative_to(engine)).write_bytes(path.read_bytes())
    min(copy.glob("sm_89/*.cubin")).unlink()
    machine()
    assert "IC520" in refusal(copy)
