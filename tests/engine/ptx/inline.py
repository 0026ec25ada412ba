"""Inline assembly executed by itself."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .module import Module

_BLOCK = 128
_KERNEL = """
.visible .entry inline(.param .u64 inputs, .param .u64 outputs, .param .u32 count)
{{
.reg .b64 %in, %out; .reg .b32 %place, %most, %block; .reg .pred %beyond;
{registers}
mov.u32 %place, %tid.x;
mov.u32 %block, %ctaid.x;
mad.lo.u32 %place, %block, {block}, %place;
ld.param.u32 %most, [count];
setp.ge.u32 %beyond, %place, %most;
@%beyond bra done;
ld.param.u64 %in, [inputs];
ld.param.u64 %out, [outputs];
mad.wide.u32 %in, %place, {stride_in}, %in;
mad.wide.u32 %out, %place, {stride_out}, %out;
{loads}
{text}
{stores}
done:
ret;
}}
"""


def run(text: str, inputs: NDArray[np.uint32], outputs: Sequence[int]) -> list[NDArray[np.uint64]]:
    """``inputs`` [threads, words] and what becomes of them, for each output: operands ``$0`` and so on, of so
    many bits each, after ``text``; inputs come behind them."""
    count, words = inputs.shape
    names = [f"%value{index}" for index in range(len(outputs) + words)]
    body = re.sub(r"\$(\d+)", lambda found: names[int(found[1])], text)
    kinds = [*outputs, *[32] * words]
    source = _KERNEL.format(
        block=_BLOCK,
        registers="\n".join(f".reg .b{bits} {name};" for bits, name in zip(kinds, names, strict=True)),
        stride_in=4 * words,
        stride_out=8 * len(outputs),
        loads="\n".join(
            f"ld.global.b32 {name}, [%in+{4 * index}];" for index, name in enumerate(names[len(outputs) :])
        ),
        text=body,
        stores="\n".join(
            f"st.global.b{bits} [%out+{8 * index}], {name};"
            for index, (bits, name) in enumerate(zip(outputs, names, strict=False))
        ),
    )
    found = np.zeros((count, len(outputs)), np.uint64)
    given = np.ascontiguousarray(inputs, np.uint32)
    Module(source).run("inline", (-(-count // _BLOCK),), (_BLOCK,), [given, found, count])
    return list(found.T)
