"""PTX executed on a CPU: what compilers made of GPU kernels, without a GPU."""

from .inline import run
from .module import Inside, Module
from .text import Unknown
from .warps import Fault

__all__ = ["Fault", "Inside", "Module", "Unknown", "run"]
