"""A spec's lock: what it holds, and what `check` says once something has changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import planning
import pytest
import yaml
from click.testing import CliRunner, Result
from fake_hub import COMMIT
from locking import SPEC, write_spec

from infer_compile.build import lock as locks
from infer_compile.build.resolve import plan_of, resolve
from infer_compile.catalog.source import ModelSource, known_commit
from infer_compile.cli.main import main
from infer_compile.probe.machine import to_yaml
from infer_compile.quantize.shard import arrange, encode_header
from infer_compile.runtime.errors import Exit

LOCK = Path("chat.lock.yaml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, *arguments: object) -> Result:
    return CliRunner().invoke(main, [command, *map(str, arguments)])


def locked(**workload: Any) -> Path:
    """A spec that has just been locked."""
    spec = write_spec(**workload)
    found = run("lock", spec)
    assert (found.exit_code, found.stderr) == (Exit.DONE, "")
    return spec


def rewritten(path: Path, *keys: str, value: Any) -> None:
    """Give one key of a YAML file another value."""
    fields = inner = yaml.safe_load(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(yaml.safe_dump(fields))


def codes(result: Result) -> list[str]:
    return [line[6:11] for line in result.stderr.splitlines() if line.startswith("error[")]


class TestLock:
    def test_it_is_written_once_and_holds(self, here: Path) -> None:
        spec = write_spec()
        first = run("lock", spec)
        digest = plan_of(resolve(spec)).digest[:12]
        assert first.stdout == f"chat.lock.yaml: written (plan {digest})\n"
        text, stamp = LOCK.read_bytes(), LOCK.stat().st_mtime_ns
        assert run("lock", spec).stdout == f"chat.lock.yaml: nothing has changed (plan {digest})\n"
        assert (LOCK.read_bytes(), LOCK.stat().st_mtime_ns) == (text, stamp)
        checked = run("check", spec)
        assert (checked.exit_code, checked.stderr) == (Exit.DONE, "")
        assert checked.stdout == f"chat.yaml: as locked (plan {digest})\n"

    def test_another_folder_gives_the_same_bytes_and_no_path_is_in_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = []
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            monkeypatch.chdir(tmp_path / name)
            locked()
            texts.append(LOCK.read_text())
            # From elsewhere it is the same.
            monkeypatch.chdir(tmp_path)
            assert run("check", f"{name}/{SPEC}").exit_code == Exit.DONE
        assert texts[0] == texts[1]
        assert str(tmp_path) not in texts[0] and str(Path.home()) not in texts[0]

    def test_its_keys_are_sorted(self, here: Path) -> None:
        locked()

        def ordered(value: Any) -> bool:
            if isinstance(value, list):
                return all(map(ordered, value))
            if not isinstance(value, dict):
                return True
            return list(value) == sorted(value) and all(map(ordered, value.values()))

        assert ordered(yaml.safe_load(LOCK.read_text()))
        assert LOCK.read_text().startswith("# Written by `infer-compile lock`")

    def test_what_it_says_in_clear(self, here: Path) -> None:
        spec = locked()
        plan = plan_of(resolve(spec))
        fields = yaml.safe_load(LOCK.read_text())
        assert fields["spec"]["says"]["workload"]["concurrency"] == 4
        assert "slo" not in fields["spec"]["says"], "defaults belong to the version, not to the spec"
        (target,) = fields["targets"]
        assert target["id"] == "round-cpu"
        assert target["figures"]["bandwidth_gbs"] == 1.0 and target["figures"]["measured"] is True
        assert fields["digest"] == plan.digest
        told = fields["plan"]
        assert told["weights"]["format"] == plan.weights.format
        assert told["predicted"]["itl_ms"] == plan.predicted.itl_ms
        assert told["kv"]["layers"] == "tq3 x 6"
        assert told["limits"] == plan.limits.model_dump()
        assert not {"reasons", "alternatives", "rejected", "sources"} & (
            told.keys() | told["predicted"].keys()
        )

    def test_it_survives_being_read(self, here: Path) -> None:
        spec = locked()
        resolved = resolve(spec)
        assert locks.read(LOCK, spec) == locks.lock(resolved, plan_of(resolved))

    @pytest.mark.parametrize(
        ("spec", "lock"),
        [("a.yaml", "a.lock.yaml"), ("x/b.yml", "x/b.lock.yaml"), ("c.prod.yaml", "c.prod.lock.yaml")],
    )
    def test_its_place(self, spec: str, lock: str) -> None:
        assert locks.lock_path(Path(spec)) == Path(lock)

    def test_another_place(self, here: Path) -> None:
        spec = write_spec()
        assert run("lock", spec, "-o", "there.yaml").exit_code == Exit.DONE
        assert not LOCK.exists()
        assert run("check", spec, "--lock", "there.yaml").exit_code == Exit.DONE
        found = run("check", write_spec(concurrency=2), "--lock", "there.yaml")
        assert found.exit_code == Exit.MISMATCH
        assert "infer-compile lock chat.yaml -o there.yaml, and commit there.yaml" in found.stderr

    def test_it_does_not_overwrite_the_spec(self, here: Path) -> None:
        spec = write_spec()
        text = spec.read_text()
        found = run("lock", spec, "-o", f"./{spec}")
        assert found.exit_code == Exit.USAGE and codes(found) == ["IC030"]
        assert spec.read_text() == text

    def test_where_it_cannot_be_written(self, here: Path) -> None:
        found = run("lock", write_spec(), "-o", "absent/x.yaml")
        assert found.exit_code == Exit.FAILED and codes(found) == ["IC230"]

    def test_a_hub_model_that_is_not_pinned(self, here: Path) -> None:
        spec = hub_spec()
        found = run("lock", spec)
        assert found.exit_code == Exit.DONE
        assert "revision:" in found.stderr
        pinned = hub_spec(revision=COMMIT)
        found = run("lock", pinned)
        assert found.stderr == ""
        assert yaml.safe_load(LOCK.read_text())["model"]["commit"] == COMMIT


def hub_spec(**model: Any) -> Path:
    """A spec with a model that the catalog knows, so that nothing is fetched."""
    spec = write_spec()
    rewritten(spec, "model", value={"source": "hf://meta-llama/Llama-3.2-1B-Instruct", **model})
    rewritten(spec, "quality", value={"max_loss_percent": 50})
    return spec


class TestCommit:
    """What a branch stands for, found without the network."""

    @pytest.fixture
    def cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        return tmp_path / "models--org--small"

    def snapshot(self, cache: Path, branch: str = "main") -> Path:
        folder = cache / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (cache / "refs").mkdir()
        (cache / "refs" / branch).write_text(COMMIT)
        return folder

    def test_of_a_pin(self, cache: Path) -> None:
        assert known_commit(ModelSource("hf://org/small", COMMIT, None, {})) == COMMIT

    def test_of_a_branch_that_was_fetched(self, cache: Path) -> None:
        self.snapshot(cache)
        assert known_commit(ModelSource("hf://org/small", None, None, {})) == COMMIT
        assert known_commit(ModelSource("hf://org/small", "main", None, {})) == COMMIT
        assert known_commit(ModelSource("hf://org/small", "v2", None, {})) is None

    def test_of_what_was_never_fetched(self, cache: Path) -> None:
        assert known_commit(ModelSource("hf://org/small", None, None, {})) is None

    def test_of_a_folder_of_a_hub_cache(self, cache: Path) -> None:
        folder = self.snapshot(cache)
        assert known_commit(ModelSource("model", None, folder, {})) == COMMIT
        link = cache.parent / "link"
        link.symlink_to(folder)
        assert known_commit(ModelSource("model", None, link, {})) == COMMIT

    def test_of_any_other_folder(self, cache: Path) -> None:
        assert known_commit(ModelSource("model", None, cache, {})) is None

    def test_a_cache_that_knows_less_or_more_than_the_lock_is_no_mismatch(
        self, here: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = hub_spec()
        for mine, theirs in ((None, COMMIT), (COMMIT, None)):
            monkeypatch.setattr(locks, "known_commit", lambda _, commit=mine: commit)
            run("lock", spec)
            monkeypatch.setattr(locks, "known_commit", lambda _, commit=theirs: commit)
            assert run("check", spec).exit_code == Exit.DONE
        monkeypatch.setattr(locks, "known_commit", lambda _: "f" * 40)
        run("lock", spec)
        monkeypatch.setattr(locks, "known_commit", lambda _: COMMIT)
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC443"])
        assert f"because: commit {'f' * 40} -> {COMMIT}" in found.stderr


class TestCheck:
    def test_what_says_the_same_is_the_same(self, here: Path) -> None:
        spec = locked()
        text = spec.read_text()
        fields = yaml.safe_load(text)
        spec.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(fields.items())), sort_keys=False))
        assert spec.read_text() != text
        assert run("check", spec).exit_code == Exit.DONE

    def test_another_load(self, here: Path) -> None:
        locked()
        spec = write_spec(concurrency=2)
        line = spec.read_text().splitlines().index("  concurrency: 2") + 1
        found = run("check", spec)
        assert found.exit_code == Exit.MISMATCH
        assert found.stderr == (
            f"error[IC442]: chat.yaml:{line}: the spec has changed since it was locked\n"
            "  because: workload.concurrency 4 -> 2, -50 %\n"
            "error[IC446]: chat.lock.yaml: the spec no longer gives the locked plan\n"
            f"  because: {found.stdout.splitlines()[-1]}\n"
            "  fix: if this is wanted: infer-compile lock chat.yaml, and commit chat.lock.yaml\n"
        )
        assert found.stdout.startswith("chat.lock.yaml against chat.yaml now\n\n")
        assert "  ~ limits.max_sequences 4 -> 2, -50 %, fewer  " in found.stdout
        assert "      because: asked for" in found.stdout
        assert "explanations" not in found.stdout, "the lock has no texts to compare"
        assert run("lock", spec).exit_code == Exit.DONE
        assert run("check", spec).exit_code == Exit.DONE

    def test_a_key_without_bearing_on_the_plan(self, here: Path) -> None:
        spec = locked()
        rewritten(spec, "serving", "port", value=9000)
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC442"])
        assert "fix: if this is wanted: infer-compile lock chat.yaml" in found.stderr

    def test_another_device(self, here: Path) -> None:
        spec = locked()
        Path("machine.yaml").write_text(to_yaml(planning.cpu(bandwidth_gbs=2.0)))
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC444", "IC446"])
        assert "  because: round-cpu.bandwidth_gbs 1 -> 2, +100 %\n" in found.stderr
        assert "this-machine" not in found.stderr

    def test_a_device_whose_sources_alone_changed(self, here: Path) -> None:
        spec = locked()
        Path("machine.yaml").write_text(to_yaml(planning.cpu(sources={"default": "another test"})))
        found = run("check", spec)
        assert found.exit_code == Exit.MISMATCH and codes(found)[0] == "IC444"
        assert "because: round-cpu.digest " in found.stderr

    def test_this_machine_elsewhere(self, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = write_spec()
        rewritten(spec, "target", value="this-machine")
        mine = planning.cpu(id="this-machine", name="a processor")
        monkeypatch.setattr("infer_compile.build.resolve.this_machine", lambda: mine)
        assert run("lock", spec).exit_code == Exit.DONE
        assert run("check", spec).exit_code == Exit.DONE
        theirs = planning.cpu(id="this-machine", name="another", memory_gb=8.0)
        monkeypatch.setattr("infer_compile.build.resolve.this_machine", lambda: theirs)
        found = run("check", spec)
        assert found.exit_code == Exit.MISMATCH and codes(found)[0] == "IC444"
        assert (
            "because: this-machine.memory_gb 4 -> 8, +100 %; this-machine.name a processor -> another\n"
            in (found.stderr)
        )
        assert "infer-compile probe -o machine.yaml, and target: ./machine.yaml" in found.stderr

    def test_another_model_in_the_same_folder(self, here: Path) -> None:
        model = Path("model")
        model.mkdir()
        (model / "config.json").write_text(json.dumps(planning.TINY))
        spec = write_spec()
        rewritten(spec, "model", "source", value="model")
        rewritten(spec, "pin", value={"kv": "bf16"})
        assert run("lock", spec).exit_code == Exit.DONE
        assert yaml.safe_load(LOCK.read_text())["model"]["headers"] is None
        for shape, expected in (((2, 2), ["IC443"]), ((4, 1), ["IC443"]), ((4, 1), [])):
            entries = arrange([("weight", "BF16", shape)])
            (model / "model.safetensors").write_bytes(encode_header(entries, {}) + bytes(8))
            found = run("check", spec)
            assert codes(found) == expected
            assert run("lock", spec).exit_code == Exit.DONE
        (model / "config.json").write_text(json.dumps(planning.TINY | {"num_hidden_layers": 3}))
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC443", "IC446"])
        assert "because: config " in found.stderr

    def test_another_draft_in_the_same_folder(self, here: Path) -> None:
        shutil.copytree(Path(write_spec().parent, "models/quickstart/draft"), "small")
        spec = write_spec()
        assert run("lock", spec).exit_code == Exit.DONE
        assert yaml.safe_load(LOCK.read_text())["draft"] is None
        rewritten(spec, "model", value={"source": "models/quickstart", "draft": "small"})
        rewritten(spec, "pin", "speculation", value={"method": "draft", "tokens": 2})
        assert run("lock", spec).exit_code == Exit.DONE
        draft = yaml.safe_load(LOCK.read_text())["draft"]
        assert draft["source"] == "small" and draft["headers"] and draft["config"]
        assert run("check", spec).exit_code == Exit.DONE
        for name, end in (("model.safetensors", "headers"), ("config.json", "config")):
            path = Path("small", name)
            if name == "config.json":
                path.write_text(json.dumps(json.loads(path.read_text()) | {"unheard_of": 1}))
            else:
                entries = arrange([("weight", "BF16", (2, 2))])
                path.write_bytes(encode_header(entries, {}) + bytes(8))
            found = run("check", spec)
            assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC447"])
            line = spec.read_text().splitlines().index("  draft: small") + 1
            assert f"error[IC447]: chat.yaml:{line}: the model that drafts" in found.stderr
            assert f"because: {end} " in found.stderr
            assert run("lock", spec).exit_code == Exit.DONE

    def test_a_draft_that_the_plan_chose(self, here: Path) -> None:
        spec = hub_spec(revision=COMMIT)
        rewritten(spec, "model", "source", value="hf://meta-llama/Llama-3.1-8B-Instruct")
        rewritten(spec, "pin", value={"speculation": {"method": "draft", "tokens": 2}})
        rewritten(spec, "target", value="h100-sxm")
        assert run("lock", spec).exit_code == Exit.DONE
        fields = yaml.safe_load(LOCK.read_text())
        assert fields["draft"]["source"].lower().endswith(fields["plan"]["speculation"]["draft"])
        assert run("check", spec).exit_code == Exit.DONE

    def test_a_damaged_checkpoint(self, here: Path) -> None:
        spec = write_spec()
        shutil.copytree(Path("models/quickstart"), "model", ignore=shutil.ignore_patterns("train", "draft"))
        rewritten(spec, "model", "source", value="model")
        assert run("lock", spec).exit_code == Exit.DONE
        os.truncate("model/model.safetensors", 1000)
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.FAILED, ["IC125"])

    def test_other_facts(self, here: Path) -> None:
        spec = locked()
        rewritten(LOCK, "facts", "quality", value="0" * 64)
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC445"])
        assert "because: quality 000000000000 -> " in found.stderr

    def test_another_version_alone_is_told_and_no_mismatch(self, here: Path) -> None:
        spec = locked()
        rewritten(LOCK, "tool", value="0.0.1")
        found = run("check", spec)
        assert found.exit_code == Exit.DONE
        assert "; locked by version 0.0.1, this is " in found.stdout
        rewritten(LOCK, "digest", value="0" * 64)
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC446"])
        assert "locked by version 0.0.1" in found.stderr

    def test_a_plan_that_differs_in_its_explanations_alone(self, here: Path) -> None:
        spec = locked()
        rewritten(LOCK, "digest", value="0" * 64)
        found = run("check", spec)
        assert (found.exit_code, codes(found), found.stdout) == (Exit.MISMATCH, ["IC446"], "")
        assert "because: only its explanations differ\n" in found.stderr

    def test_no_lock(self, here: Path) -> None:
        found = run("check", write_spec())
        assert (found.exit_code, found.stdout) == (Exit.MISMATCH, "")
        assert found.stderr == (
            "error[IC440]: chat.lock.yaml: the spec has no lock\n"
            "  fix: infer-compile lock chat.yaml, and commit chat.lock.yaml\n"
        )

    @pytest.mark.parametrize(
        ("text", "because"),
        [
            ("", "is empty"),
            ("schema: [", "is not valid YAML"),
            ("- 1\n", "must be a mapping"),
            ("schema: 1\nschema: 1\n", '"schema" is given twice'),
            ("schema: 1\n", "tool: Field required"),
            ("schema: 2\n", "schema: Input should be 1"),
            ("<<<<<<< HEAD\nschema: 1\n=======\n", "is not valid YAML"),
        ],
    )
    def test_a_lock_that_cannot_be_read(self, here: Path, text: str, because: str) -> None:
        spec = write_spec()
        LOCK.write_text(text)
        found = run("check", spec)
        assert (found.exit_code, codes(found)) == (Exit.MISMATCH, ["IC441"])
        assert because in found.stderr and "infer-compile lock chat.yaml" in found.stderr

    def test_a_lock_that_is_a_folder(self, here: Path) -> None:
        LOCK.mkdir()
        assert codes(run("check", write_spec())) == ["IC441"]

    def test_a_wrong_spec_comes_first(self, here: Path) -> None:
        Path(SPEC).write_text("model: 1\n")
        found = run("check", SPEC)
        assert found.exit_code == Exit.USAGE and "IC440" not in codes(found)

    def test_a_spec_without_a_plan(self, here: Path) -> None:
        spec = locked()
        Path("machine.yaml").write_text(to_yaml(planning.cpu(memory_gb=0.001)))
        for command in ("check", "lock"):
            found = run(command, spec)
            assert (found.exit_code, codes(found)) == (Exit.INFEASIBLE, ["IC201"])

    def test_several_specs(self, here: Path) -> None:
        one, other = locked(), write_spec("other.yaml")
        found = run("check", one, other, "absent.yaml")
        assert found.exit_code == Exit.USAGE
        assert codes(found) == ["IC440", "IC001"]
        assert found.stdout.startswith("chat.yaml: as locked")
        run("lock", other)
        found = run("check", one, other)
        assert found.exit_code == Exit.DONE and len(found.stdout.splitlines()) == 2
        assert codes(run("check", one, other, "--lock", LOCK)) == ["IC030"]

    def test_locks_among_the_specs_are_passed_over(self, here: Path) -> None:
        spec = locked()
        found = run("check", LOCK, spec)
        assert (found.exit_code, len(found.stdout.splitlines())) == (Exit.DONE, 1)
        found = run("check", LOCK)
        assert (found.exit_code, codes(found)) == (Exit.USAGE, ["IC030"])


def test_exit_codes_of_the_program(here: Path) -> None:
    def status(*arguments: str) -> int:
        command = [sys.executable, "-c", "from infer_compile.cli.main import main; main()", *arguments]
        return subprocess.run(command, capture_output=True, timeout=120).returncode

    write_spec()
    assert status("check", SPEC) == 5
    assert status("lock", SPEC) == 0
    assert status("check", SPEC) == 0
    write_spec("other.yaml", concurrency=2)
    assert status("diff", SPEC, "other.yaml") == 5
    assert status("diff", SPEC, SPEC) == 0
