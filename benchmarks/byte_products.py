"""What bounds products of quantized weights on this processor: its most products of bytes a second.

    python benchmarks/byte_products.py [--threads 2] [--weights 0.97]

Compiles a loop of nothing but the instructions that kernels/cpu/dot.hpp multiplies and sums with, and prints
its best of 20 rounds on so many threads at once, in 1e9 products a second; and how many tokens of a prompt a
model with so many billion weights could pass in that time if all else took none."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

from infer_compile.codegen.toolchain import find
from infer_compile.probe.cpu import processor

SOURCE = Path(__file__).with_name("byte_products.cpp")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--threads", type=int, default=2)
    words.add_argument("--weights", type=float, default=0.97, help="billions that a token is multiplied with")
    given = words.parse_args()
    found = processor()
    isa = "avx512" if found.isa == "amx" else found.isa
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, SOURCE.name)
        source.write_bytes(SOURCE.read_bytes())
        program = source.with_suffix("")
        find(found.architecture).compile(source, program, isa, shared=False)
        rate = float(subprocess.run([program, str(given.threads)], capture_output=True, check=True).stdout)
    print(f"{found.name}, {isa}, {given.threads} threads: {rate:.0f}e9 products of bytes a second")
    print(f"at most {rate / given.weights:.0f} tokens a second through {given.weights:g} billion weights")


if __name__ == "__main__":
    main()
