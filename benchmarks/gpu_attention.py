"""Decode attention on a GPU: every level of our cache beside what others have, in one run and one table.

    python benchmarks/gpu_attention.py --work FOLDER [--json FILE] [--record FILE]
    python benchmarks/gpu_attention.py --work FOLDER --prepare 90      # compile the kernels; no GPU is needed

Eight key-value heads of 128, groups of 4 and 8 query heads; one new token of each sequence. Ours are the
launches of the engine's own step that read the cache; peers are PyTorch's scaled_dot_product_attention over
contiguous bf16, FlashInfer's paged decode in bf16 and fp8, and vLLM's 3-bit cache (installed, or the folder
``vllm`` of its source by --vllm). Every one is first held to PyTorch's attention in float32 over the cache as
it decodes, then timed: CUDA events around replays of a graph, caches flushed before each, median of the
rounds. What is wrong is printed as wrong, and the command fails.

``of copy`` is the bytes of the cache read once, over the time, over the bandwidth that a copy reached in the
same run. ``bound`` is the time that these bytes take at that bandwidth, or that issuing takes as
docs/cuda-kernels.md counts it, whichever is longer. Each subject has a process of its own, lest one that
fails takes others along.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from gpu_apart import apart
from gpu_cache import COPIED
from gpu_peers import NUMBER_BYTES, PEERS, Absent, vllm
from gpu_record import EVERY, record
from gpu_subjects import BESIDE, Case, Heads, Subject, level_subject, needed_bytes, prepared
from gpu_timer import Timer
from infer_compile.catalog.cuda_kernels import Kernel
from infer_compile.catalog.facts import load_facts
from infer_compile.catalog.target import load_target
from infer_compile.planner.performance.latency import slots_per_second
from infer_compile.runtime.formats.kv import LEVELS

TOLERANCE = 0.02
"""Of a head's output the root mean square difference, over that of all outputs. Queries are rounded to 127
steps and softmax weights to 8 or 11 bits, which makes a third of it."""
WRONG = 1e9
"""Stands for an error that is no number, and for results that changed while they were timed."""
OURS = ("tq3", "bf16", "fp8", "int8", "tq4", "ct3")
TRITON = "triton"
"""Behind a level and a colon: its kernels as Triton compiles them at start, decode.cu by none of them."""
GOALS = (
    (32, 32768, "flashinfer-bf16", 3.0),
    (32, 32768, "flashinfer-fp8", 1.7),
    (32, 32768, "vllm-3bit", 5.0),
    (1, 4096, "bf16", 1.0),
    (1, 4096, "flashinfer-bf16", 1.0),
)
"""Batch, context, and how many times as fast as what tq3 is to be."""
Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> int:
    given = arguments().parse_args(words)
    heads = Heads(given.kv_heads, given.head_dim, given.page_tokens, given.copied)
    if given.prepare:
        for level in (each for each in given.levels if ":" not in each):
            for group in given.groups:
                prepared(given.work, LEVELS[level], heads, group, given.prepare)
                print(f"{level}, groups of {group}: compiled for {given.prepare / 10}", flush=True)
        return 0
    names = (*given.levels, *given.peers)
    found = measured(given, heads, names) if given.alone else gathered(given, names)
    rows = found["rows"]
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if not given.alone or given.device == "cpu":
        print(table(found))
    if given.record and (kernels := verified(rows)):
        record(given.record, kernels, found["capability"], source_of(found))
    return 1 if any(map(wrong, rows)) else 0


def wrong(row: Row) -> bool:
    return row.get("error", 0.0) > TOLERANCE or "failed" in row


def verified(rows: Sequence[Row]) -> tuple[Kernel, ...]:
    """The kernels that ran in rows that were right; none if any was wrong."""
    ours = [row for row in rows if row.get("kernels") or row["subject"].partition(":")[0] in LEVELS]
    ran = {kernel for row in ours if "seconds" in row for kernel in row["kernels"]}
    return () if any(map(wrong, ours)) else tuple(kernel for kernel in EVERY if kernel in ran)


def arguments() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--work", type=Path, required=True, help="a folder for compiled kernels; kept")
    words.add_argument("--prepare", type=int, metavar="CC", help="compile for 90 (9.0), measure nothing")
    words.add_argument("--levels", type=_names, default=(*OURS, f"tq3:{TRITON}"), help="of our cache")
    words.add_argument("--peers", type=_names, default=tuple(PEERS))
    words.add_argument("--vllm", type=Path, help="the folder vllm of its source, where it is not installed")
    words.add_argument("--groups", type=_numbers, default=(4, 8))
    words.add_argument("--batches", type=_numbers, default=(32, 1, 8, 128))
    words.add_argument("--contexts", type=_numbers, default=(32768, 4096, 131072))
    words.add_argument("--kv-heads", type=int, default=8)
    words.add_argument("--head-dim", type=int, default=128)
    words.add_argument("--page-tokens", type=int, default=32)
    words.add_argument("--copied", type=int, default=COPIED, help="pages of different contents")
    words.add_argument("--rounds", type=int, default=21)
    words.add_argument("--minutes", type=float, default=8.5, help="no subject begins later, and all end")
    words.add_argument("--each", type=float, default=150.0, help="seconds that a subject may take")
    words.add_argument("--source", action="store_true", help="compile our kernels at start, as a bundle that "
                       "has none for the device does")  # fmt: skip
    words.add_argument("--target", default="h200-sxm", help="whose rate of instructions bounds")
    words.add_argument("--device", default="cuda")
    words.add_argument("--json", type=Path)
    words.add_argument("--record", type=Path, help="renew this file (catalog/cuda_kernels.yaml)")
    words.add_argument("--alone", action="store_true", help="all subjects in this process")
    return words


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(name) for name in _names(text))


def gathered(given: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """What processes of their own measured, one subject each."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    every: list[Row] = []
    for name in names:
        left = 60 * given.minutes - (time.monotonic() - began)
        if left <= 10:
            every.append({"subject": name, "skipped": "no time was left"})
            continue
        seconds = min(left, given.each)
        part, why = apart(__file__, words_of(given, name, seconds), given.work / f"{name}.json", seconds)
        every += part.get("rows", [])
        if why and not any(wrong(row) for row in part.get("rows", [])):
            every.append({"subject": name, "failed": why})
        found = found or {key: value for key, value in part.items() if key != "rows"}
        print(
            f"{name}: {len(part.get('rows', []))} rows{', ' + why if why else ''}",
            file=sys.stderr,
            flush=True,
        )
    return {"schema": 1, "copy_gbs": None, "device": given.device, "capability": "", **found, "rows": every}


def words_of(given: argparse.Namespace, name: str, seconds: float) -> list[object]:
    """What the process of one subject is told."""
    words: list[object] = ["--alone", "--minutes", (seconds - 5) / 60]
    words += ["--levels", "" if name in PEERS else name, "--peers", name if name in PEERS else ""]
    for key in (
        "work",
        "vllm",
        "kv_heads",
        "head_dim",
        "page_tokens",
        "copied",
        "rounds",
        "target",
        "device",
    ):
        if (value := getattr(given, key)) is not None:
            words += [f"--{key.replace('_', '-')}", value]
    for key in ("groups", "batches", "contexts"):
        words += [f"--{key}", ",".join(map(str, getattr(given, key)))]
    return words + ["--source"] * given.source


def measured(given: argparse.Namespace, heads: Heads, names: Sequence[str]) -> dict[str, Any]:
    """All of it here; the file is written after every row."""
    began = time.monotonic()
    timer = Timer(given.device, given.rounds)
    capability = ""
    if timer.cuda:
        capability = ".".join(map(str, torch.cuda.get_device_capability(timer.device)))
    copied, overhead = timer.bandwidth(), timer.overhead()
    rows: list[Row] = []
    found = {
        "schema": 1,
        "device": timer.name(),
        "capability": capability,
        "date": date.today().isoformat(),
        "copy_gbs": copied / 1e9,
        "replay_us": 1e6 * overhead,
        "heads": [heads.count, heads.size],
        "rounds": given.rounds,
        "rows": rows,
    }
    cases = [
        Case(group, batch, context)
        for group in given.groups
        for batch in given.batches
        for context in given.contexts
    ]
    for name in names:
        for case in cases:
            row: Row = {"subject": name, "group": case.group, "batch": case.batch, "context": case.context}
            rows.append(row)
            if time.monotonic() - began > 60 * given.minutes:
                row["skipped"] = "no time was left"
                continue
            row |= measure(given, timer, heads, name, case, copied)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")
            if "absent" in row:
                break
    return found


def measure(
    given: argparse.Namespace, timer: Timer, heads: Heads, name: str, case: Case, copied: float
) -> Row:
    free = timer.free()
    if free is not None and (needed := needs(heads, name, case)) > free:
        return {"skipped": f"takes {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} are free"}
    try:
        subject = subject_of(given, heads, name, case)
        return figures(given, timer, heads, case, subject, copied)
    except Absent as failure:
        return {"absent": str(failure)}
    except torch.OutOfMemoryError as failure:
        return {"skipped": str(failure).splitlines()[0]}


def figures(
    given: argparse.Namespace, timer: Timer, heads: Heads, case: Case, subject: Subject, copied: float
) -> Row:
    """Held to what is expected before it is timed, and again after."""
    subject.run()
    expected = subject.expected()
    error = difference(subject.output(), expected)
    row: Row = {"error": error, "bytes": subject.bytes, "slots": subject.slots, "kernels": subject.kernels}
    if not error <= TOLERANCE:
        return row | {"error": error if error == error else WRONG}
    seconds = timer.replayed(subject.run)
    if not difference(subject.output(), expected) <= TOLERANCE:
        return row | {"error": WRONG}
    numbers = 2 * case.batch * case.context * heads.count * heads.size
    slots = slots_per_second(load_target(given.target, Path()), load_facts().coefficients)
    issued = numbers * (subject.slots or 0.0) / slots
    return row | {
        "seconds": seconds,
        "gbs": subject.bytes / seconds / 1e9,
        "of_copy": subject.bytes / seconds / copied,
        "bound": max(subject.bytes / copied, issued),
        "bound_by": "issue" if issued > subject.bytes / copied else "bytes",
    }


def subject_of(given: argparse.Namespace, heads: Heads, name: str, case: Case) -> Subject:
    level, _, compiler = name.partition(":")
    if level in LEVELS:
        ahead = not given.source and compiler != TRITON
        return level_subject(LEVELS[level], heads, case, given.device, given.work, ahead)
    if name == "vllm-3bit":
        return vllm(heads, case, given.device, given.vllm)
    return PEERS[name](heads, case, given.device)


def needs(heads: Heads, name: str, case: Case) -> int:
    """Bytes of memory."""
    if (level := name.partition(":")[0]) in LEVELS:
        return needed_bytes(LEVELS[level], heads, case)
    numbers = 2 * case.batch * case.context * heads.count * heads.size
    return int(numbers * NUMBER_BYTES[name]) + BESIDE


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of the worst head; not a number where the output holds one."""
    apart = (found - expected).square().mean(-1).sqrt().max()
    return float(apart / expected.square().mean().sqrt())


def table(found: Mapping[str, Any]) -> str:
    """One row for each subject in each case, beside bf16 of ours and FlashInfer's."""
    rows = found["rows"]
    lines = [
        f"{found['device']}; copy {found['copy_gbs'] or 0:.0f} GB/s; a replay of next to nothing "
        f"{found.get('replay_us', 0):.1f} us; median of {found.get('rounds')} rounds",
        f"{'group':>5} {'batch':>5} {'context':>7} {'subject':16} {'us':>9} {'GB/s':>6} {'of copy':>7} "
        f"{'bound us':>9} {'x bf16':>6} {'x FI bf16':>9} {'error':>7}",
    ]
    cases = list(
        dict.fromkeys((row["group"], row["batch"], row["context"]) for row in rows if "group" in row)
    )
    for case in cases:
        for row in rows:
            if (row.get("group"), row.get("batch"), row.get("context")) == case:
                lines.append(f"{case[0]:5} {case[1]:5} {case[2]:7} {row['subject']:16} {_cells(row, rows)}")
    lines += [f"{row['subject']}: {_without(row)}" for row in rows if "group" not in row]
    return "\n".join([*lines, *goals(rows)])


def _cells(row: Row, rows: Sequence[Row]) -> str:
    if "seconds" not in row:
        return _without(row)
    bound = f"{1e6 * row['bound']:8.1f}{row['bound_by'][0]}"
    beside = [_times(row, rows, other) for other in ("bf16", "flashinfer-bf16")]
    return (
        f"{1e6 * row['seconds']:9.1f} {row['gbs']:6.0f} {row['of_copy']:7.0%} {bound:>9} "
        f"{beside[0]:>6} {beside[1]:>9} {row['error']:7.4f}"
    )


def _without(row: Row) -> str:
    """Why there is no figure."""
    for word in ("failed", "absent", "skipped"):
        if word in row:
            return f"{word}: {row[word]}"
    return f"WRONG: differs by {row['error']:.3g} where {TOLERANCE} is allowed"


def _times(row: Row, rows: Sequence[Row], other: str) -> str:
    """How many times as fast as ``other`` in the same case."""
    ratio = ratio_of(row, rows, other)
    return "" if ratio is None else f"{ratio:.2f}"


def ratio_of(row: Row, rows: Sequence[Row], other: str) -> float | None:
    same = [
        each
        for each in rows
        if each["subject"] == other
        and "seconds" in each
        and all(each[key] == row[key] for key in ("group", "batch", "context"))
    ]
    return float(same[0]["seconds"] / row["seconds"]) if same and "seconds" in row else None


def goals(rows: Sequence[Row]) -> list[str]:
    """What tq3 is to reach, and whether it did."""
    said = []
    for batch, context, other, wanted in GOALS:
        ours = [
            row
            for row in rows
            if (row["subject"], row.get("batch"), row.get("context")) == ("tq3", batch, context)
        ]
        found = [ratio for row in ours if (ratio := ratio_of(row, rows, other)) is not None]
        reached = (
            f"{statistics.fmean(found):.2f}, {'met' if min(found) >= wanted else 'MISSED'}"
            if found
            else "no figure"
        )
        said.append(f"goal: tq3 {wanted} times {other} at {batch} x {context}: {reached}")
    return said


def source_of(found: Mapping[str, Any]) -> str:
    return f"benchmarks/gpu_attention.py on {found['device']}, {found['date']}"


if __name__ == "__main__":
    sys.exit(main())
