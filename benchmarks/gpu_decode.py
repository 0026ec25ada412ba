"""A Llama of the shape of 8B with random weights, decoding on a GPU: as a whole, by its parts, and its start.

    python benchmarks/gpu_decode.py --work FOLDER [--json FILE] [--start] [--peers]
    python benchmarks/gpu_decode.py --work FOLDER --prepare 90      # compile the kernels; no GPU is needed

A setup is WEIGHTS/CACHE/SEQUENCES/DEPTH. Weights are made on the device, pools filled with what a prompt left
in them. ``tokens/s`` are those of 31 steps of the engine by the clock of the processor, with all that is
around a step; ``graph`` is what its graph takes on the device, ``launches`` the same launch by launch. ``of
copy``: the bytes of weights and cache that a step reads, over ``graph``, over the bandwidth of a copy in the
same run. The parts are graphs of their own: products with weights, attention with the writing of the cache,
the rest.

--start writes the weights to a file and starts a process that reads it, up to its first token. --peers runs
transformers with a static cache and compiled decoding; --llama-bench FILE --gguf FILE llama.cpp on a model of
the same shape.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gpu_apart import apart
from gpu_engine import laid, random_parts, tables_of
from gpu_model import SHAPES, Model, Setup, config_of, place_of, prepared, program_of
from gpu_timer import Timer
from infer_compile.codegen.gpu_engine import WEIGHTS
from infer_compile.codegen.launches import step_table
from infer_compile.runtime.formats.launches import WEIGHTS_MAGIC

SETUPS = (
    "bf16/bf16/1/1024",
    "int4-rtn/bf16/1/1024",
    "int4-rtn/bf16/32/16384",
    "int4-rtn/tq3/32/16384",
    "bf16/tq3/32/16384",
    "bf16/bf16/32/16384",
)
STARTED = ("int4-rtn/tq3/1/1024", "bf16/tq3/1/1024")
"""Of which the start is measured."""
OWN_SECONDS = 15.0
"""What a start may take beyond the reading of weights."""
SHARES = {"bf16/bf16/1/1024": 0.80, "int4-rtn/bf16/1/1024": 0.55}
RATIO = 1.5
"""How many times as many tokens a second tq3 is to give as bf16 does, at 32 sequences of 16K."""
WARM, MANY = 16, 128
"""Tokens of the two answers whose times are subtracted, of peers."""
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(words)
    if given.prepare:
        for setup in {str(place_of(given.work, given.shape, each)): each for each in given.setups}.values():
            prepared(given.work, given.shape, setup, given.prepare)
            print(f"{setup.weights}, {setup.level}: compiled for {given.prepare / 10}", flush=True)
        return 0
    found = measured(given) if given.alone else gathered(given)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if not given.alone:
        print(table(found))
    return 1 if any("failed" in row for row in found["rows"]) else 0


def arguments() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--work", type=Path, required=True, help="a folder for kernels and weights; kept")
    words.add_argument("--prepare", type=int, metavar="CC", help="compile for 90 (9.0), measure nothing")
    words.add_argument("--shape", choices=tuple(SHAPES), default="8b")
    words.add_argument("--setups", type=_setups, default=_setups(",".join(SETUPS)))
    words.add_argument("--chunk", type=int, default=2048, help="tokens of a chunk of a prompt")
    words.add_argument("--rounds", type=int, default=21)
    words.add_argument("--minutes", type=float, default=9.0, help="nothing begins later, and all ends")
    words.add_argument("--each", type=float, default=150.0, help="seconds that a setup or a peer may take")
    words.add_argument("--source", action="store_true", help="compile the kernels at start")
    words.add_argument("--start", action="store_true", help="measure starts too: 16 GB in the folder")
    words.add_argument("--peers", action="store_true", help="transformers too")
    words.add_argument("--llama-bench", type=Path, help="of a CUDA build of llama.cpp")
    words.add_argument("--gguf", type=Path)
    words.add_argument("--device", default="cuda")
    words.add_argument("--json", type=Path)
    words.add_argument("--alone", choices=("setups", "transformers"), help="in this process")
    return words


def _setups(text: str) -> tuple[Setup, ...]:
    return tuple(map(Setup.read, text.split(",")))


def gathered(given: argparse.Namespace) -> dict[str, Any]:
    """Everything, each in a process of its own."""
    until = time.monotonic() + 60 * given.minutes
    found: dict[str, Any] = {}
    rows: list[Row] = []

    def run(name: str, script: str, words: Sequence[object]) -> None:
        left = until - time.monotonic()
        if left < 10:
            rows.append({"name": name, "skipped": "no time was left"})
            return
        part, why = apart(script, words, given.work / "part.json", min(left, given.each))
        own = part.pop("rows", [{"name": name, **part}] if part else [])
        found.update({key: value for key, value in part.items() if key not in ("total", "spent")})
        rows.extend(own)
        if why:
            rows.append({"name": name, "failed": why})
        print(f"{name}: {why or 'done'}", file=sys.stderr, flush=True)

    common = ["--work", given.work, "--shape", given.shape, "--chunk", given.chunk, "--rounds", given.rounds]
    common += ["--device", given.device] + ["--source"] * given.source
    for setup in given.setups:
        run(str(setup), __file__, ["--alone", "setups", "--setups", setup, *common])
    if given.peers:
        run("transformers", __file__, ["--alone", "transformers", *common])
    for text in STARTED if given.start else ():
        engine = stored(given, Setup.read(text))
        words = ["--began", time.time(), "--engine", engine, "--device", given.device]
        run(f"start {text}", str(Path(__file__).with_name("gpu_start.py")), words)
        (engine / WEIGHTS).unlink()
    if given.llama_bench:
        rows.append(llama(given))
    return {"schema": 1, "device": given.device, "copy_gbs": 0.0, "shape": given.shape, **found, "rows": rows}


def measured(given: argparse.Namespace) -> dict[str, Any]:
    if given.alone == "transformers":
        return {"rows": [transformers_row(given)]}
    timer = Timer(given.device, given.rounds)
    copied = timer.bandwidth()
    return {
        "device": timer.name(),
        "date": date.today().isoformat(),
        "copy_gbs": copied / 1e9,
        "rows": [row_of(given, timer, setup, copied) for setup in given.setups],
    }


def row_of(given: argparse.Namespace, timer: Timer, setup: Setup, copied: float) -> Row:
    row: Row = {"name": str(setup), "setup": setup_fields(setup)}
    chunk = given.chunk if setup.batch == 1 else 1
    program = program_of(given.shape, setup, chunk)
    limits, layout = program.limits, program.cache
    free = timer.free()
    needed = sum(tensor.bytes for tensor in program.tensors) + (6 << 30)
    needed += limits.exact_pages * layout.exact_page_bytes + limits.packed_pages * layout.packed_page_bytes
    if free is not None and needed > free:
        return row | {"skipped": f"takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"}
    model = Model(given.work, given.shape, setup, given.device, not given.source, chunk)
    step = model.decoded(timer)
    times = model.times(timer)
    read = model.weight_bytes + model.cache_bytes
    row |= {
        "tokens_per_second": setup.batch / step,
        "step": step,
        **times,
        "weight_bytes": model.weight_bytes,
        "cache_bytes": model.cache_bytes,
        "of_copy": read / times["graph"] / copied,
        "product_flops": model.product_flops(1) * setup.batch,
        "layers": len(model.program.layers),
    }
    if chunk > 1:
        row["chunk"] = {
            "tokens": chunk,
            **model.chunk_times(timer),
            "product_flops": model.product_flops(chunk),
            "attention_flops": model.attention_flops(chunk),
        }
    return row


def setup_fields(setup: Setup) -> dict[str, object]:
    return {name: getattr(setup, name) for name in ("weights", "level", "batch", "depth")}


def stored(given: argparse.Namespace, setup: Setup) -> Path:
    """The folder of an engine with its weights in a file, and its kernels as they were prepared."""
    program = program_of(given.shape, setup, 1)
    table = step_table(program)
    place = place_of(given.work, given.shape, setup)
    place = laid(place, program, table, given.device, not given.source)
    part_of = random_parts(program, given.device, tables_of(program))
    with (place / WEIGHTS).open("wb") as file:
        file.write(WEIGHTS_MAGIC + bytes.fromhex(program.digest))
        for name, part in table.weights.items():
            file.seek(part.offset)
            file.write(part_of(name, part).reshape(-1).view(torch.uint8).cpu().numpy())
        file.truncate(table.weights_bytes)
    Timer(given.device, 1).free()
    return place


def transformers_row(given: argparse.Namespace) -> Row:
    """transformers' own decoding in bf16: a static cache, its step compiled as ``generate`` does it."""
    row: Row = {"name": "transformers/bf16/1/1024"}
    try:
        import transformers
    except ImportError as failure:
        return row | {"absent": str(failure)}
    device = torch.device(given.device)
    config = transformers.LlamaConfig.from_dict(config_of(given.shape))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model = transformers.LlamaForCausalLM(config).eval()
    torch.set_default_dtype(before)
    prompt = torch.randint(0, config.vocab_size, (1, 1024 if device.type == "cuda" else 16), device=device)

    def seconds(tokens: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
        )
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    with torch.inference_mode():
        # The longer first: its cache serves the shorter, which then compiles nothing anew.
        for tokens in (MANY, WARM):
            seconds(tokens)
        step = (seconds(MANY) - seconds(WARM)) / (MANY - WARM)
    return row | {"step": step, "tokens_per_second": 1 / step, "version": transformers.__version__}


def llama(given: argparse.Namespace) -> Row:
    """llama.cpp, one sequence behind 1,024 tokens."""
    words = ("-m", given.gguf, "-p", 0, "-n", MANY, "-d", 1024, "-ngl", 99, "-fa", "1", "-o", "json")
    row: Row = {"name": f"llama.cpp {given.gguf.name if given.gguf else ''}"}
    try:
        done = subprocess.run(
            [str(word) for word in (given.llama_bench, *words)],
            capture_output=True,
            text=True,
            check=True,
            timeout=given.each,
        )
    except (OSError, subprocess.SubprocessError) as failure:
        return row | {"failed": str(failure)}
    rate = max(json.loads(done.stdout)[0]["samples_ts"])
    return row | {"tokens_per_second": rate, "step": 1 / rate}


def table(found: Mapping[str, Any]) -> str:
    head = f"{found['device']}; copy {found['copy_gbs']:.0f} GB/s"
    names = ("tokens/s", "step ms", "graph", "launches", "of copy", "products", "attention", "rest")
    lines = [head, f"{'setup':26}" + "".join(f"{name:>10}" for name in names)]
    for row in found["rows"]:
        lines.append(f"{row['name']:26}{_cells(row)}")
    return "\n".join([*lines, *goals(found["rows"])])


def _cells(row: Row) -> str:
    for word in ("failed", "absent", "skipped"):
        if word in row:
            return f" {word}: {row[word]}"
    if "spent" in row:
        own = row["total"] - row["spent"]["weights"]
        each = ", ".join(f"{name} {seconds:.2f}" for name, seconds in row["spent"].items())
        verdict = "met" if own <= OWN_SECONDS else "MISSED"
        return f" {row['total']:.2f} s, {own:.2f} beyond reading weights ({verdict}): {each}"
    cells = f"{row['tokens_per_second']:10.1f}{1e3 * row['step']:10.3f}"
    if "graph" not in row:
        return cells
    cells += f"{1e3 * row['graph']:10.3f}{1e3 * row['launches']:10.3f}{row['of_copy']:10.0%}"
    return cells + "".join(f"{1e3 * row[name]:10.3f}" for name in ("products", "attention", "rest"))


def goals(rows: Sequence[Row]) -> list[str]:
    found = {row["name"]: row for row in rows if "graph" in row}
    said = [
        f"goal: {name} at {least:.0%} of the copy's bandwidth: {found[name]['of_copy']:.0%}, "
        f"{'met' if found[name]['of_copy'] >= least else 'MISSED'}"
        for name, least in SHARES.items()
        if name in found
    ]
    for weights in ("int4-rtn", "bf16"):
        pair = [found.get(f"{weights}/{level}/32/16384") for level in ("tq3", "bf16")]
        if pair[0] and pair[1]:
            ratio = pair[0]["tokens_per_second"] / pair[1]["tokens_per_second"]
            said.append(
                f"goal: {weights} with tq3 {RATIO} times bf16's cache at 32 x 16384: {ratio:.2f}, "
                f"{'met' if ratio >= RATIO else 'MISSED'}"
            )
    return said


if __name__ == "__main__":
    sys.exit(main())
