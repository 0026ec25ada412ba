"""PTX executed on a CPU: what compilers made of GPU kernels, without a GPU.

    counts = Module(text).run("kernel", grid=(4, 2), block=(128,), arguments=[array, 3, 0.5], shared=4096)

Arrays are device memory and are changed. What a GPU leaves undefined is a ``Fault`` that names the thread and
the instruction: memory outside of an array or misaligned, shared memory never written or still being copied
to, races (of blocks in global memory; of warps, and of threads of a warp, in shared memory), barriers and
``.sync`` instructions that not everybody comes to. What is not known here is ``Unknown``, at once.

Otherwise than on a GPU: approximations (ex2, lg2, rcp, rsqrt, sin, cos, tanh, div) are exact; products of
matrices sum in float64 before they are rounded once; blocks that wait for one another go on until they are
stopped; races of a block's warps in global memory are not found; of zeros of both signs min and max take
either.
"""

from .inline import run
from .module import Inside, Module
from .text import Unknown
from .warps import Fault

__all__ = ["Fault", "Inside", "Module", "Unknown", "run"]
