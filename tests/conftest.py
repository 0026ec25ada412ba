"""Triton's interpreter runs the GPU kernels on the CPU; it has to be chosen before anything imports triton."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
