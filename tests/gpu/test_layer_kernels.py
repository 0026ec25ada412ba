"""Products, norms, gates, rotations and the draw on a device: all that the interpreter is asked."""

from on_device import arrays_on_the_device  # noqa: F401
from test_cuda_draws import *  # noqa: F403
from test_cuda_kernels import *  # noqa: F403
