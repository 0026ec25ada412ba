"""The kernels of the cache on a device, against the slow form: all that the interpreter is asked."""

from on_device import arrays_on_the_device  # noqa: F401  # before what imports triton

# isort: split
from test_cuda_cache import *  # noqa: F403
from test_cuda_cache import _fine_weights  # noqa: F401
