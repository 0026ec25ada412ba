"""Bytes of a cached token are counted, not believed."""

from __future__ import annotations

import numpy as np
import pytest
from fake_engine import FakeEngine, tiny_program

from infer_compile.runtime.errors import Exit, InferCompileError
from infer_compile.runtime.measure import Measured, measure
from infer_compile.runtime.step import StepResult

PROGRAMS = [
    {},
    {"level": "bf16"},
    {"sink": 0, "recent": 0},
    {"sink": 2, "recent": 3, "page_tokens": 8, "batch_tokens": 5},
    {"exact_pages": 3, "packed_pages": 3, "sequences": 1},
]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_sound_engine_measures_as_planned_and_is_left_clean(program: dict[str, object]) -> None:
    engine = FakeEngine(tiny_program(**program))
    cache = engine.program.cache
    assert measure(engine) == Measured(cache.level, cache.token_bytes, cache.exact_token_bytes)
    assert not engine.pool("exact").any()
    assert not engine.pool("packed").any()


def test_zeros_and_sentinels_that_are_written_count() -> None:
    class Constant(FakeEngine):
        value = 0

        def step(self, batch: list, **asked: bool) -> StepResult:
            result = super().step(batch, **asked)
            for name in ("exact", "packed"):
                pool = self.pool(name)
                pool[(pool != 0xA5) & (pool != 0x5A)] = self.value
            return result

        def _visible(self, *_: object) -> np.ndarray:
            return np.zeros(10_000, [("id", "<i4"), ("chain", "<u4")])

    for value in (0, 0xA5, 0x5A):
        engine = Constant(tiny_program())
        engine.value = value
        assert measure(engine).token_bytes == 52


class Spoiled(FakeEngine):
    """A sound engine with something wrong after each step."""

    spoil = staticmethod(lambda exact, packed: None)

    def step(self, batch: list, **asked: bool) -> StepResult:
        result = super().step(batch, **asked)
        self.spoil(self._exact, self._packed)
        return result


def never_packs(exact: np.ndarray, packed: np.ndarray) -> None:
    packed[:] = packed[-1, -1, -1]


def packs_too_narrow(exact: np.ndarray, packed: np.ndarray) -> None:
    packed[..., -1] = packed[-1, -1, -1]


def writes_past_its_page(exact: np.ndarray, packed: np.ndarray) -> None:
    packed[3, 0, 0] = 1


def writes_another_exact_token(exact: np.ndarray, packed: np.ndarray) -> None:
    exact[2, 3, 0] = 1


@pytest.mark.parametrize(
    "spoil", [never_packs, packs_too_narrow, writes_past_its_page, writes_another_exact_token]
)
def test_an_engine_that_keeps_its_cache_otherwise_is_refused(spoil: object) -> None:
    engine = Spoiled(tiny_program())
    engine.spoil = spoil
    with pytest.raises(InferCompileError, match="IC501") as caught:
        measure(engine)
    assert caught.value.exit == Exit.MISMATCH
