"""Triton's interpreter runs GPU kernels on the CPU; it has to be asked for before anything imports triton."""

import os
import sys

import pytest

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="pip install triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("triton was imported before: set TRITON_INTERPRET=1", allow_module_level=True)
