"""Where models come from; the hub is a small server here, asked by the real hub library."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from fake_hub import COMMIT, serving
from random_model import CONFIG, random_tensors, save_model

from infer_compile.catalog import hub as subject
from infer_compile.catalog.model import load_card
from infer_compile.catalog.source import ModelSource, fetch, resolve
from infer_compile.quantize.checkpoint import Checkpoint
from infer_compile.runtime.errors import InferCompileError, Problem

KNOWN = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches the real hub or the user's cache."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    reach(monkeypatch, "http://127.0.0.1:9")


def reach(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    save_model(folder, CONFIG, random_tensors(CONFIG), shards=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "merges.txt"):
        (folder / name).write_text("{}")
    for name in ("modeling_x.py", "pytorch_model.bin", "consolidated.safetensors", "README.md"):
        (folder / name).write_text("not to be fetched")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def served(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    with serving({"org/small": repository}, gated=("org/gated",)) as (address, asked):
        reach(monkeypatch, address)
        yield asked


def problem(source: str | ModelSource, revision: str | None = None, base: Path = Path()) -> Problem:
    with pytest.raises(InferCompileError) as caught:
        if isinstance(source, str):
            resolve(source, revision, base)
        else:
            fetch(source)
    (found,) = caught.value.problems
    return found


def on_hub(name: str, revision: str | None = None) -> ModelSource:
    return ModelSource(f"hf://{name}", revision, None, {})


def test_a_folder_is_read_relative_to_the_spec(tmp_path: Path) -> None:
    save_model(tmp_path / "models" / "mine", CONFIG, random_tensors(CONFIG))
    found = resolve("models/mine", None, tmp_path)
    assert found == ModelSource("models/mine", None, tmp_path / "models" / "mine", CONFIG)
    assert fetch(found) is found


def test_a_model_of_the_catalog_needs_no_network() -> None:
    card = load_card(KNOWN)
    assert card is not None
    wanted = ModelSource(f"hf://{KNOWN}", "abc", None, card.config)
    assert resolve(f"hf://{KNOWN}", "abc", Path()) == wanted
    by_name = resolve(card.id, "abc", Path())
    assert by_name.folder is None and by_name.config == card.config
    assert by_name.source == f"hf://{card.hf_id}"


def test_a_folder_goes_before_a_name_of_the_catalog(tmp_path: Path) -> None:
    card = load_card(KNOWN)
    assert card is not None
    save_model(tmp_path / card.id, CONFIG, random_tensors(CONFIG))
    assert resolve(card.id, None, tmp_path).folder == tmp_path / card.id


def test_the_config_of_another_hub_model_is_fetched_with_its_commit(served: list[str]) -> None:
    found = resolve("hf://org/small", None, Path())
    assert found == ModelSource("hf://org/small", COMMIT, None, CONFIG)
    assert set(served) == {"config.json"}


def test_a_hub_model_is_fetched_at_a_commit_without_code_or_pickles(
    served: list[str], repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fetch(on_hub("org/small", "main"))
    assert found.revision == COMMIT and found.config == CONFIG and found.folder is not None
    assert sorted(path.name for path in found.folder.rglob("*")) == [
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert Checkpoint.open(found.folder).names == Checkpoint.open(repository).names
    assert capsys.readouterr().err == ""


def test_weights_of_another_name_are_fetched(served: list[str], repository: Path) -> None:
    for path in repository.glob("model*"):
        path.unlink()
    found = fetch(on_hub("org/small"))
    assert found.folder is not None and (found.folder / "consolidated.safetensors").exists()


def test_what_was_fetched_serves_without_the_hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"org/small": repository}) as (address, _):
        reach(monkeypatch, address)
        online = fetch(on_hub("org/small"))
    reach(monkeypatch, "http://127.0.0.1:9")
    assert fetch(on_hub("org/small")) == online
    assert fetch(on_hub("org/small", COMMIT)) == online


@pytest.mark.parametrize("source", ["nothing/here/at-all", "./nothing", "no-such-model"])
def test_a_name_of_nothing(source: str, tmp_path: Path) -> None:
    assert problem(source, base=tmp_path).code == "IC100"


def test_the_fix_of_an_unknown_name_is_the_nearest_or_the_hub(tmp_path: Path) -> None:
    card = load_card(KNOWN)
    assert card is not None
    assert card.id in problem(card.id + "x", base=tmp_path).fix
    assert "hf://org/name" in problem("org/name", base=tmp_path).fix
    (tmp_path / "file").write_text("")
    assert "is a file" in problem("file", base=tmp_path).because


@pytest.mark.parametrize("source", ["hf://", "hf://name", "hf://org/name/more", "hf://org/name@main"])
def test_a_malformed_hub_name(source: str) -> None:
    assert problem(source).code == "IC101"


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (problem(on_hub("org/small")), problem("hf://org/small")):
        assert found.code == "IC102" and "folder" in found.fix and found.because
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert problem(on_hub("org/small")).code == "IC102"


@pytest.mark.parametrize(
    ("name", "revision", "code"),
    [
        ("org/absent", None, "IC103"),
        ("org/gated", None, "IC104"),
        ("org/small", "no-such-branch", "IC105"),
    ],
)
def test_what_the_hub_refuses(served: list[str], name: str, revision: str | None, code: str) -> None:
    for found in (problem(on_hub(name, revision)), problem(f"hf://{name}", revision)):
        assert found.code == code and found.where == f"hf://{name}" and found.fix


def test_a_repository_without_a_config(served: list[str], repository: Path) -> None:
    (repository / "config.json").unlink()
    assert problem("hf://org/small").code == "IC106"
    assert problem(on_hub("org/small")).code == "IC106"


def test_a_repository_of_pickles(served: list[str], repository: Path) -> None:
    for path in repository.glob("*.safetensors"):
        path.unlink()
    found = problem(on_hub("org/small"))
    assert found.code == "IC108" and "run code" in found.because
    assert not served


def test_a_disk_that_fills_during_the_download(monkeypatch: pytest.MonkeyPatch, served: list[str]) -> None:
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(subject, "snapshot_download", full)
    assert problem(on_hub("org/small")).code == "IC140"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "IC106"),
        ("{", "IC107"),
        ("[1]", "IC107"),
        (b"\xff\xfe\x00", "IC107"),
        (json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}), "IC109"),
    ],
)
def test_a_config_that_cannot_be_used(tmp_path: Path, text: str | bytes | None, code: str) -> None:
    (tmp_path / "m").mkdir()
    if text is not None:
        (tmp_path / "m" / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = problem("m", base=tmp_path)
    assert found.code == code and found.fix and str(tmp_path) not in found.where
