"""Checkpoints: read as they are, refused with a reason where they are damaged."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from random_model import CONFIG, config_of, random_tensors, save_model
from safetensors.numpy import load_file

from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.quantize.shard import arrange, encode_header
from infer_compile.runtime.errors import InferCompileError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_as_it_was_saved(tmp_path: Path, dtype: type, shards: int) -> None:
    tensors = random_tensors(CONFIG, dtype)
    save_model(tmp_path, CONFIG, tensors, shards)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.names == tuple(sorted(tensors))
    for name, tensor in tensors.items():
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype and checkpoint.shape(name) == tensor.shape
        assert found.tobytes() == tensor.tobytes()
        assert checkpoint.size(name) == tensor.nbytes


def test_numbered_shards_without_an_index_are_read(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG), 3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len(Checkpoint.open(tmp_path).names) == len(random_tensors(CONFIG))


def test_a_single_file_of_another_name_is_read(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG))
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    assert Checkpoint.open(tmp_path).shape("model.norm.weight") == (128,)


def test_data_that_starts_at_an_odd_byte_is_read(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    header += b" " * (1 - len(header) % 2)
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    assert np.array_equal(Checkpoint.open(tmp_path).read("w"), values)


def test_our_headers_are_read_by_the_safetensors_library(tmp_path: Path) -> None:
    entries = arrange([("a", "BF16", (3,)), ("b", "I64", (2,)), ("c", "I32", (2, 2)), ("d", "F32", ())])
    assert all(entry.begin % 8 == 0 for name, entry in entries.items() if name == "b")
    size = max(entry.end for entry in entries.values())
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode_header(entries, {"format": "pt"}) + bytes(range(size)))
    found = load_file(path)
    assert {name: tensor.shape for name, tensor in found.items()} == {
        "a": (3,),
        "b": (2,),
        "c": (2, 2),
        "d": (),
    }
    assert found["b"].tobytes() == bytes(range(16))


def refused(folder: Path) -> InferCompileError:
    with pytest.raises(InferCompileError) as caught:
        Checkpoint.open(folder)
    assert all(problem.because or problem.fix for problem in caught.value.problems)
    return caught.value


def codes(error: InferCompileError) -> list[str]:
    return [problem.code for problem in error.problems]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert codes(refused(tmp_path / "none")) == ["IC120"]


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("")
    assert "is a file" in str(refused(tmp_path / "model"))


def test_only_a_pickle_is_refused_and_not_opened(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    error = refused(tmp_path)
    assert codes(error) == ["IC123"] and "pytorch_model.bin" in str(error)
    assert not (tmp_path / "sprung").exists()


def test_a_pickle_beside_safetensors_is_passed_over(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"not looked at")
    assert Checkpoint.open(tmp_path).names


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    error = refused(tmp_path)
    assert codes(error) == ["IC124"] and "GGUF" in str(error)


@pytest.mark.parametrize("kept", [0, 5, 100, 5_000, -1])
def test_a_truncated_file(tmp_path: Path, kept: int) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    error = refused(tmp_path)
    assert codes(error) == ["IC125"] and "model.safetensors" in error.problems[0].where


def test_a_file_with_bytes_too_many(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG))
    with (tmp_path / "model.safetensors").open("ab") as file:
        file.write(b"x")
    assert "longer" in str(refused(tmp_path))


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (tmp_path / "model.safetensors").write_text(text)
    error = refused(tmp_path)
    assert codes(error) == ["IC125"] and error.problems[0].fix == "git lfs pull"


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"[]", "not a JSON object"),
        (b"{nonsense", "not JSON"),
        (b'{"w": 3}', "not a JSON object"),
        (b'{"w": {"dtype": "F32", "shape": [2]}}', "lacks"),
        (b'{"w": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}', "lacks"),
        (b'{"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}', "cannot take 8 bytes"),
        (b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}', "starts at byte 4"),
        (
            b'{"v": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]},'
            b'"w": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}',
            "starts at byte 4 instead of 8",
        ),
        (b'{"__metadata__": []}', "metadata"),
    ],
)
def test_a_header_that_does_not_describe_the_file(tmp_path: Path, header: bytes, reason: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    error = refused(tmp_path)
    assert codes(error) == ["IC125"] and reason in error.problems[0].because


def test_missing_shards_are_named(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG), 4)
    for number in (2, 4):
        (tmp_path / f"model-{number:05d}-of-00004.safetensors").unlink()
    error = refused(tmp_path)
    assert codes(error) == ["IC127"]
    assert "2 of 4" in str(error) and "model-00002-of-00004.safetensors" in str(error)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert codes(refused(tmp_path)) == ["IC127"]


def test_all_damaged_shards_are_reported_at_once(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG), 3)
    for number in (1, 3):
        path = tmp_path / f"model-{number:05d}-of-00003.safetensors"
        path.write_bytes(path.read_bytes()[:-7])
    assert codes(refused(tmp_path)) == ["IC125", "IC125"]


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": {"w": "../secret.safetensors"}}',
        '{"weight_map": {"w": 3}}',
        '{"weight_map": {"w": "model.bin"}}',
    ],
)
def test_a_damaged_index(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert codes(refused(tmp_path)) == ["IC126"]


def test_an_index_that_places_a_tensor_elsewhere(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG), 2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.norm.weight"] = "model-00001-of-00002.safetensors"
    index["weight_map"]["lm_head.weight"] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    assert set(codes(refused(tmp_path))) == {"IC126"}


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    save_model(tmp_path, CONFIG, random_tensors(CONFIG), 2)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(
        (tmp_path / "model-00001-of-00002.safetensors").read_bytes()
    )
    assert set(codes(refused(tmp_path))) == {"IC126"}


def test_a_file_that_shrinks_under_the_reader_is_refused_not_fatal(tmp_path: Path) -> None:
    save_model(tmp_path, config_of(), random_tensors(CONFIG))
    checkpoint = Checkpoint.open(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(InferCompileError, match="IC125"):
        checkpoint.read("model.embed_tokens.weight")
    path.unlink()
    with pytest.raises(InferCompileError, match="IC137"):
        checkpoint.read("model.embed_tokens.weight")
