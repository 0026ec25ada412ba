"""From a spec's path to model, graph and devices: everything that is wrong is said at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from infer_compile.build.resolve import draftings_of, resolve
from infer_compile.runtime.errors import Exit, InferCompileError

HEAD = "apiVersion: infer-compile/v1\nmodel: {source: hf://meta-llama/Llama-3.1-8B-Instruct%s}\n"


def write(folder: Path, text: str, draft: str = "") -> Path:
    path = folder / "chat.yaml"
    path.write_text(HEAD % draft + text)
    return path


@pytest.mark.parametrize(
    ("target", "places"),
    [
        ("target: h100-sxn\n", [":3"]),
        ("target: {device: h100-sxn, count: 2}\n", [":3"]),
        ("target: [rtx-4090, h100-sxn, a100]\n", [":3", ":3"]),
        ("target: this-machine\n", []),
    ],
)
def test_unknown_devices_are_named_beside_what_else_is_wrong(
    tmp_path: Path, target: str, places: list[str]
) -> None:
    path = write(tmp_path, target + "workload: {concurrency: 0}\nslo: {itl_ms: -1}\n")
    with pytest.raises(InferCompileError) as caught:
        resolve(path)
    assert caught.value.exit == Exit.USAGE
    assert [one.code for one in caught.value.problems] == ["IC007"] * 2 + ["IC020"] * len(places)
    unknown = caught.value.problems[2:]
    assert [one.where.removeprefix(str(path)) for one in unknown] == places
    assert all("did you mean" in one.fix for one in unknown)


def test_drafters_by_what_the_spec_lets_be_used(tmp_path: Path) -> None:
    methods = ("none", "draft", "ngram", "eagle3")

    def found(draft: str) -> set[str | None]:
        path = write(tmp_path, "target: rtx-4090\n", draft)
        return {one.draft for one in draftings_of(resolve(path))(methods, 0)}

    known, one = found(""), found(", draft: llama-3.2-1b")
    assert known > {None, "llama-3.2-1b"}
    assert "llama-3.2-1b" not in found(", draft: none")
    assert one == {None, "llama-3.2-1b"}
