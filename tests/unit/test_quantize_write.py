"""The written model folder: whole, the same every time, continued where it stopped, within its memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from random_model import CONFIG, config_of, program_of, random_tensors, save_model
from safetensors import safe_open
from safetensors.numpy import load_file

from infer_compile.quantize import disk, rtn
from infer_compile.quantize.assets import require_tokenizer
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.read import read_tensor, reference_loader
from infer_compile.quantize.rtn import Quantized, quantize
from infer_compile.quantize.shard import open_shard
from infer_compile.quantize.write import Written, write
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.formats.weights import weight_format

SMALL = 60_000
FORMATS = ["bf16", "int8", "int4-rtn", "fp8"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    save_model(folder, CONFIG, random_tensors(CONFIG, np.float32), shards=2)
    return folder


def run(source: Path, out: Path, format: str = "int4-rtn", **options: Any) -> Written:
    config = json.loads((source / "config.json").read_text())
    return write(Checkpoint.open(source), program_of(config, format), out, config=config, **options)


def refused(source: Path, out: Path, **options: Any) -> list[str]:
    with pytest.raises(InferCompileError) as caught:
        run(source, out, **options)
    return [problem.code for problem in caught.value.problems]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_the_program_gets_back_what_the_checkpoint_holds(tmp_path: Path, format: str, dtype: type) -> None:
    tensors = random_tensors(CONFIG, dtype)
    save_model(tmp_path / "source", CONFIG, tensors)
    run(tmp_path / "source", tmp_path / "out", format)
    program = program_of(CONFIG, format)
    load = reference_loader(tmp_path / "out")
    for tensor in program.tensors:
        parts = [tensors[name].astype(np.float32) for name in tensor.sources]
        value = read_tensor(tmp_path / "out", tensor)
        if tensor.format.scaled:
            wanted = quantize(np.concatenate(parts), tensor.format)
            assert isinstance(value, Quantized)
            assert np.array_equal(value.values, wanted.values)
            assert value.scales.tobytes() == wanted.scales.tobytes()
            assert np.array_equal(load(tensor), wanted.dequantize())
        else:
            stacked = np.concatenate(parts).reshape(tensor.rows, tensor.cols).astype(ml_dtypes.bfloat16)
            assert not isinstance(value, Quantized) and value.tobytes() == stacked.tobytes()
            assert np.array_equal(load(tensor), stacked.astype(np.float32))
    quantized = [tensor.name for tensor in program.tensors if tensor.format.scaled]
    assert len(quantized) == {"bf16": 0, "fp8": 4 * 3}.get(format, 4 * 3 + 1)


@pytest.mark.parametrize("format", FORMATS)
def test_the_files_hold_the_bytes_that_the_program_counts(source: Path, tmp_path: Path, format: str) -> None:
    written = run(source, tmp_path / "out", format)
    program = program_of(CONFIG, format)
    stored = sum(
        entry.end - entry.begin
        for path in (tmp_path / "out").glob("*.safetensors")
        for name, entry in open_shard(path).entries.items()
        if not name.endswith(".weight_shape")
    )
    assert stored == program.weight_bytes
    modules = sum(len(tensor.sources) for tensor in program.tensors if tensor.format.group)
    assert written.bytes == stored + 16 * modules
    assert set(written.files) == set(names(tmp_path / "out"))


def test_a_tied_head_is_not_stored_and_quantized_when_read(tmp_path: Path) -> None:
    config = config_of(tie_word_embeddings=True)
    tensors = random_tensors(config, np.float32)
    save_model(tmp_path / "source", config, tensors)
    run(tmp_path / "source", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not [name for name in stored if name.startswith("lm_head")]
    embedding = tensors["model.embed_tokens.weight"].astype(ml_dtypes.bfloat16)
    assert stored["model.embed_tokens.weight"].tobytes() == embedding.tobytes()
    (head,) = [tensor for tensor in program_of(config).tensors if tensor.name == "head"]
    found, wanted = read_tensor(tmp_path / "out", head), quantize(embedding, head.format)
    assert isinstance(found, Quantized) and np.array_equal(found.values, wanted.values)
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert described["ignore"] == ["lm_head"] and len(described["config_groups"]) == 1


def test_the_description_is_what_vllm_takes_for_fp8_with_dynamic_activations(
    source: Path, tmp_path: Path
) -> None:
    # Its rule (compressed_tensors.py, _is_fp8_w8a8): floating-point weights, symmetric, static, a scale per
    # channel, and floating-point activations that are dynamic.
    run(source, tmp_path / "out", "fp8")
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert described["format"] == "float-quantized" and described["ignore"] == ["lm_head"]
    (group,) = described["config_groups"].values()
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    assert group["targets"] == ["Linear"] and group["format"] == "float-quantized"
    assert group["weights"] == numbers | {"strategy": "channel", "dynamic": False}
    assert group["input_activations"] == numbers | {"strategy": "token", "dynamic": True}


def test_the_description_is_what_vllm_takes_for_weight_only_integers(source: Path, tmp_path: Path) -> None:
    # Its rule (compressed_tensors.py, _is_wNa16_group_channel): pack-quantized, 4 or 8 bits, static, a scale
    # per group, no input activations.
    run(source, tmp_path / "out")
    described = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == "compressed-tensors" and described["format"] == "pack-quantized"
    layers, head = described["config_groups"].values()
    assert layers["targets"] == ["Linear"] and head["targets"] == ["lm_head"]
    for group, bits in ((layers, 4), (head, 8)):
        weights = group["weights"]
        assert (weights["num_bits"], weights["group_size"]) == (bits, 64)
        assert weights["strategy"] == "group" and weights["symmetric"] and not weights["dynamic"]
        assert group["input_activations"] is None
    assert described["ignore"] == []


def test_the_config_is_the_sources_in_bf16_without_code(source: Path, tmp_path: Path) -> None:
    config = CONFIG | {"auto_map": {"AutoModel": "modeling_x.X"}}
    (source / "config.json").write_text(json.dumps(config))
    run(source, tmp_path / "out", "bf16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == CONFIG | {"torch_dtype": "bfloat16"}
    (source / "config.json").write_text(json.dumps({"dtype": "float32"} | CONFIG))
    run(source, tmp_path / "again", "bf16")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"


def test_tokenizer_files_come_along_and_code_does_not(source: Path, tmp_path: Path) -> None:
    kept = ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"]
    kept += ["tokenizer.model", "merges.txt", "vocab.json", "special_tokens_map.json"]
    dropped = ["modeling_x.py", "pytorch_model.bin", "training_args.bin", "README.md", "notes.json"]
    for name in kept + dropped:
        (source / name).write_text(name)
    written = run(source, tmp_path / "out")
    found = contents(tmp_path / "out")
    assert all(found[name] == name.encode() for name in kept)
    assert not set(dropped) & set(found) and set(written.files) == set(found)
    require_tokenizer(tmp_path / "out")
    (source / "tokenizer.json").unlink()
    with pytest.raises(InferCompileError, match="IC134"):
        require_tokenizer(source)


def test_shards_stay_below_the_limit_and_are_indexed(source: Path, tmp_path: Path) -> None:
    written = run(source, tmp_path / "out", shard_bytes=SMALL)
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    placed: dict[str, str] = {}
    for shard in shards:
        with safe_open(shard, framework="np") as opened:
            assert opened.metadata()["format"] == "pt"
            placed |= dict.fromkeys(opened.keys(), shard.name)
        assert shard.stat().st_size < SMALL + 8192
    assert index["weight_map"] == placed and index["metadata"]["total_size"] == written.bytes
    assert Checkpoint.open(tmp_path / "out").names == tuple(sorted(placed))


def test_the_bytes_depend_on_the_model_and_the_program_alone(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "one", threads=1, shard_bytes=SMALL)
    run(source, tmp_path / "two", threads=4, shard_bytes=SMALL)
    moved = tmp_path / "elsewhere"
    shutil.copytree(source, moved)
    run(moved, tmp_path / "three", shard_bytes=SMALL)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_progress_counts_up_to_all_bytes(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    written = run(source, tmp_path / "out", progress=lambda *step: seen.append(step))
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert seen[-1][1] == written.bytes and {total for _, _, total in seen} == {written.bytes}


def test_tensors_that_nothing_reads_are_named_and_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG) | {"model.layers.0.rotary.inv_freq": np.ones(32, np.int64)}
    save_model(tmp_path / "source", CONFIG, tensors)
    written = run(tmp_path / "source", tmp_path / "out")
    assert written.unused == ("model.layers.0.rotary.inv_freq",)
    assert written.unused[0] not in Checkpoint.open(tmp_path / "out").names


def test_a_second_run_writes_no_finished_shard_again(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out, shard_bytes=SMALL)
    before = contents(out)
    stamps = {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    assert set(run(source, out, shard_bytes=SMALL).reused) == set(stamps)
    assert stamps == {path.name: path.stat().st_ino for path in out.glob("*.safetensors")}
    damaged, missing, halved, *kept = sorted(stamps)
    content = bytearray((out / damaged).read_bytes())
    content[-5] ^= 1
    (out / damaged).write_bytes(content)
    (out / missing).unlink()
    (out / halved).write_bytes(before[halved][:-10])
    (out / f"{missing}.partial").write_bytes(b"left by a killed run")
    assert sorted(run(source, out, shard_bytes=SMALL).reused) == kept
    assert contents(out) == before


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from random_model import CONFIG, program_of
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.write import write

def die(name, done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)

options = {"config": CONFIG, "shard_bytes": int(sys.argv[4]), "progress": die}
write(Checkpoint.open(Path(sys.argv[2])), program_of(CONFIG), Path(sys.argv[3]), **options)
"""


def test_a_killed_run_is_continued(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", KILLED, Path(__file__).parent, source, out, SMALL]
    assert subprocess.run(list(map(str, command))).returncode == -signal.SIGKILL
    finished = [name for name in names(out) if name.endswith(".safetensors")]
    assert finished and any(name.endswith(".partial") for name in names(out))
    assert sorted(run(source, out, shard_bytes=SMALL).reused) == finished
    run(source, tmp_path / "fresh", shard_bytes=SMALL)
    assert contents(out) == contents(tmp_path / "fresh")


def test_an_interrupted_run_leaves_no_halves(source: Path, tmp_path: Path) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", shard_bytes=SMALL, progress=interrupt)
    left = names(tmp_path / "out")
    assert left and all(name.endswith(".safetensors") for name in left)
    assert list(run(source, tmp_path / "out", shard_bytes=SMALL).reused) == left


def test_a_changed_source_or_program_is_not_mixed_with_old_shards(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(source, out, shard_bytes=SMALL)
    tensors = random_tensors(CONFIG, np.float32)
    tensors["lm_head.weight"][5, 7] += 1
    save_model(source, CONFIG, tensors, shards=2)
    again = run(source, out, shard_bytes=SMALL)
    assert 0 < len(again.reused) < len([name for name in again.files if name.endswith(".safetensors")])
    run(source, tmp_path / "fresh", shard_bytes=SMALL)
    assert contents(out) == contents(tmp_path / "fresh")
    assert not run(source, out, "int8").reused
    run(source, tmp_path / "int8", "int8")
    assert contents(out) == contents(tmp_path / "int8")


def test_a_changed_method_is_not_mixed_with_old_shards(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(source, tmp_path / "out")
    monkeypatch.setattr(rtn, "METHOD", "rtn/next")
    assert not run(source, tmp_path / "out").reused


class Full:
    """os.pwrite on a disk that has room for so many bytes."""

    def __init__(self, room: int, code: int = errno.ENOSPC) -> None:
        self.room, self.code, self.write = room, code, os.pwrite

    def __call__(self, descriptor: int, content: memoryview, position: int) -> int:
        taken = min(len(content), self.room)
        if not taken:
            raise OSError(self.code, os.strerror(self.code))
        self.room -= taken
        return self.write(descriptor, content[:taken], position)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_leaves_whole_shards_and_the_run_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "pwrite", Full(150_000, code))
        assert refused(source, out, shard_bytes=SMALL) == ["IC140"]
    left = sorted(contents(out))
    assert left and all(name.endswith(".safetensors") for name in left)
    again = run(source, out, shard_bytes=SMALL)
    assert sorted(again.reused) == left
    run(source, tmp_path / "fresh", shard_bytes=SMALL)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_disk_that_fills_at_the_small_files(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert refused(source, tmp_path / "out") == ["IC140"]
    assert names(tmp_path / "out") == ["model.safetensors"]


def test_a_disk_without_room_is_refused_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage)
    assert refused(source, tmp_path / "out") == ["IC140"]
    assert not names(tmp_path / "out")


def test_a_folder_that_cannot_be_made(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refused(source, tmp_path / "file" / "model") == ["IC141"]


def test_everything_wrong_with_the_tensors_is_said_at_once(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.o_proj.weight"] = np.ones((128, 64), np.float32)
    tensors["model.layers.2.mlp.down_proj.weight"] = np.ones((128, 192), np.int8)
    tensors["model.norm.weight"] = np.ones(64, np.float32)
    save_model(tmp_path / "source", CONFIG, tensors)
    assert sorted(refused(tmp_path / "source", tmp_path / "out")) == ["IC128", "IC129", "IC129", "IC130"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, name: str, bad: float) -> None:
    tensors = random_tensors(CONFIG)
    tensors[name].reshape(-1)[9] = bad
    save_model(tmp_path / "source", CONFIG, tensors)
    with pytest.raises(InferCompileError, match=f"IC131.*{name}"):
        run(tmp_path / "source", tmp_path / "out")
    assert not names(tmp_path / "out")


def test_a_number_beyond_bf16(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG, np.float32)
    tensors["model.norm.weight"][0] = 3.4e38
    save_model(tmp_path / "source", CONFIG, tensors)
    assert refused(tmp_path / "source", tmp_path / "out") == ["IC131"]


def test_a_folder_that_does_not_hold_the_program_is_refused(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    matrix = next(tensor for tensor in program_of(CONFIG).tensors if tensor.format.group)
    vector = next(tensor for tensor in program_of(CONFIG).tensors if tensor.rows == 1)
    wrong = [
        matrix.model_copy(update={"format": weight_format("int8", 64)}),
        matrix.model_copy(update={"format": weight_format("int4-rtn", 32)}),
        matrix.model_copy(update={"format": weight_format("bf16")}),
        matrix.model_copy(update={"rows": matrix.rows + 1}),
        vector.model_copy(update={"cols": vector.cols - 1}),
        vector.model_copy(update={"sources": ("model.absent.weight",)}),
    ]
    for tensor in wrong:
        with pytest.raises(InferCompileError, match="IC135"):
            read_tensor(tmp_path / "out", tensor)


LAYERS = 6
MEASURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from random_model import config_of, program_of
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.write import write

def resident(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

config = config_of(hidden_size=1024, intermediate_size=4096, num_hidden_layers=int(sys.argv[4]))
checkpoint = Checkpoint.open(Path(sys.argv[2]))
program = program_of(config)
before = resident("VmRSS")
write(checkpoint, program, Path(sys.argv[3]), config=config, threads=2)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory from /proc")
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path) -> None:
    config = config_of(hidden_size=1024, intermediate_size=4096, num_hidden_layers=1)
    layer = random_tensors(config, np.float32)
    largest = max(tensor.nbytes for tensor in layer.values())
    source = tmp_path / "source"
    for number in range(LAYERS):
        part = {
            name.replace(".layers.0.", f".layers.{number}."): tensor
            for name, tensor in layer.items()
            if ".layers." in name or not number
        }
        save_model(source, config, part)
        (source / "model.safetensors").rename(source / f"model-{number + 1:05d}-of-{LAYERS:05d}.safetensors")
    checkpoint = Checkpoint.open(source)
    total = sum(checkpoint.size(name) for name in checkpoint.names)
    assert total > 18 * largest
    command = [sys.executable, "-c", MEASURE, Path(__file__).parent, source, tmp_path / "out", LAYERS]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    # The largest tensor, mapped, and what two threads have in hand.
    assert largest / 2 < int(result.stdout) < largest + 2 * (8 << 20) < total / 8
