"""Triton's interpreter runs GPU kernels on the CPU; it has to be asked for before anything imports triton."""

import os
import sys
from functools import cache

import pytest

if "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"
triton = pytest.importorskip("triton", reason="pip install triton")
if not triton.knobs.runtime.interpret:
    pytest.skip("triton was imported before: set TRITON_INTERPRET=1", allow_module_level=True)


def _patch_once() -> None:
    """Every call of one kernel's function from another has the interpreter put its own functions into
    triton.language again, which takes most of its time: here a launch does, for all that it calls."""
    from types import SimpleNamespace

    from triton import language
    from triton.runtime import interpreter

    patch_language = interpreter._patch_lang
    everywhere = SimpleNamespace(__globals__={"tl": language, "core": language.core})
    patched: list[object] = []

    class Launch:
        def __init__(self) -> None:
            self._scope = patch_language(everywhere)
            patched.append(self)

        def restore(self) -> None:
            patched.clear()
            self._scope.restore()

    interpreter._patch_lang = lambda function: patched[0] if patched else Launch()

    # It writes out a table of all types to look one up.
    look_up = interpreter._get_np_dtype
    known = cache(look_up)
    interpreter._get_np_dtype = lambda kind: (known if type(kind) is language.dtype else look_up)(kind)


_patch_once()
