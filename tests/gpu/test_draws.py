"""The draw on a GPU at the size of a real vocabulary, as a graph runs it, and inputs on their way to it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no NVIDIA GPU", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from shapes import draw_sampling  # noqa: E402
from test_cuda_draws import part  # noqa: E402
from test_cuda_transfer import MOST, TABLE, told  # noqa: E402

from infer_compile.runtime.engines.draws import (  # noqa: E402
    UNSETTLED,
    draw,
    draw_among_largest,
    draws_of,
)
from infer_compile.runtime.engines.transfer import Transfer  # noqa: E402

VOCABULARY = 128_256


def test_what_a_graph_draws_is_what_the_processor_draws() -> None:
    rng = np.random.default_rng(0)
    settings = torch.from_numpy(
        draws_of([part(row, draw_sampling(rng)) for row in range(32)], VOCABULARY).settings
    )
    logits = torch.from_numpy((3 * rng.standard_normal((32, VOCABULARY))).astype(np.float32))
    scores, drawn_with = logits.cuda(), settings.cuda()
    before = draw_among_largest(scores, drawn_with)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = draw_among_largest(scores, drawn_with)
    graph.replay()
    assert torch.equal(found, before)
    expected = draw(logits, settings)
    settled = found.cpu() != UNSETTLED
    assert settled.any() and torch.equal(found.cpu()[settled], expected[settled])
    assert torch.equal(draw(scores, drawn_with).cpu(), expected)


def test_inputs_are_not_overtaken_by_those_of_the_next_step() -> None:
    """Each is read before the next is written, however long the device is busy before."""
    transfer, busy, seen = Transfer(TABLE, MOST, torch.device("cuda")), torch.rand(4096, 4096).cuda(), []
    counts = told(1).counts
    for number in range(20):
        busy = (busy @ busy).sigmoid()
        inputs = told(1)
        inputs.arrays["tokens"][0] = number
        transfer.send(inputs, counts)
        seen.append(transfer.views(counts)["tokens"].clone())
    assert [int(each[0]) for each in seen] == list(range(20))
