"""The kernels of latent attention on a device, against the slow form: all that the interpreter is asked."""

from on_device import arrays_on_the_device  # noqa: F401  # before what imports triton

# isort: split
from test_cuda_latent import *  # noqa: F403
