"""What a step tells the device, side by side in one transfer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infer_compile.runtime.engines.inputs import Inputs
from infer_compile.runtime.engines.transfer import Transfer
from infer_compile.runtime.formats.launches import ALIGNMENT, Buffer, Count, StepTable

BUFFERS = {
    "tokens": Buffer(dtype="int32", width=1, per="rows"),
    "settings": Buffer(dtype="f64", width=5, per="outputs"),
    "tiles": Buffer(dtype="int32", width=2, per="tiles"),
    "exact_table": Buffer(dtype="int32", width=6, per="sequences"),
    "x": Buffer(dtype="f32", width=8, per="rows"),
}
TABLE = StepTable(
    program="",
    captured=(),
    tiles=(1,),
    inputs=("tokens", "settings", "tiles", "exact_table"),
    hidden="x",
    weights_bytes=0,
    weights={},
    buffers=BUFFERS,
    lines=(),
    head=(),
)
MOST: dict[Count, int] = {"rows": 9, "outputs": 3, "tiles": 9, "sequences": 4}


def told(rows: int, outputs: int = 1) -> Inputs:
    return Inputs(
        arrays={
            "tokens": np.arange(100, 100 + rows, dtype=np.int32),
            "settings": np.full((outputs, 5), 0.3),
            "tiles": np.full((1, 2), 7, np.int32),
        },
        tables={"exact_table": [np.array([4, 5, 6], np.int32)]},
        counts={"rows": rows, "outputs": outputs, "tiles": 1, "sequences": 1},
        tile=1,
    )


@pytest.fixture
def transfer() -> Transfer:
    return Transfer(TABLE, MOST, torch.device("cpu"))


def test_inputs_arrive_with_what_fills_them_up(transfer: Transfer) -> None:
    transfer.send(told(9, 3), MOST)
    counts: dict[Count, int] = {"rows": 3, "outputs": 2, "tiles": 3, "sequences": 2}
    transfer.send(told(2), counts)
    views = transfer.views(counts)
    assert list(views) == list(TABLE.inputs)
    assert views["tokens"].tolist() == [100, 101, 0]
    assert views["settings"].tolist() == [0.3] * 5 + [0.0] * 5
    assert views["tiles"].tolist() == [7, 7, -1, -1, -1, -1]
    assert views["exact_table"].numel() == 12 and views["exact_table"][:3].tolist() == [4, 5, 6]


def test_places_depend_on_the_counts_alone(transfer: Transfer) -> None:
    counts: dict[Count, int] = {"rows": 3, "outputs": 1, "tiles": 3, "sequences": 1}
    transfer.send(told(1), counts)
    before = transfer.views(counts)
    transfer.send(told(9, 3), MOST)
    transfer.send(told(3), counts)
    after = transfer.views(counts)
    assert before["tokens"].tolist() == [100, 101, 102]
    assert [each.data_ptr() for each in before.values()] == [each.data_ptr() for each in after.values()]
    assert all(each.data_ptr() % ALIGNMENT == 0 for each in before.values())


class Log:
    """A copy to the device that ends when it is waited for."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer, self.seen = transfer, list[tuple[str, int]]()

    def _see(self, what: str) -> None:
        self.seen.append((what, int(self.transfer._here[0])))

    def synchronize(self) -> None:
        self._see("waited")

    def record(self) -> None:
        self._see("sent")


def test_what_is_still_being_sent_is_not_written_over(transfer: Transfer) -> None:
    log = Log(transfer)
    transfer._sent = log  # type: ignore[assignment]
    counts = told(1).counts
    for first in (1, 2):
        inputs = told(1)
        inputs.arrays["tokens"][0] = first
        transfer.send(inputs, counts)
    assert log.seen == [("waited", 0), ("sent", 1), ("waited", 1), ("sent", 2)]


def test_an_input_counted_in_nothing_is_refused() -> None:
    table = TABLE.model_copy(update={"buffers": BUFFERS | {"tokens": Buffer(dtype="int32", width=1)}})
    with pytest.raises(ValueError, match="tokens is counted in nothing"):
        Transfer(table, MOST, torch.device("cpu"))
