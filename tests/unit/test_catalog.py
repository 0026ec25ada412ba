"""The catalogs are whole: every device and every model loads, agrees with itself and names its sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from infer_compile.catalog.model import ModelCard, card_names, load_card
from infer_compile.catalog.resources import folder
from infer_compile.catalog.target import Target, load_target, target_names
from infer_compile.graph.build import build
from infer_compile.runtime.errors import Exit, InferCompileError

FIGURES = ("memory_gb", "bandwidth_gbs", "rates.bf16_tflops", "interconnect", "tdp_w", "price")


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    return {name: load_target(name, Path()) for name in target_names()}


@pytest.fixture(scope="module")
def cards() -> dict[str, ModelCard]:
    found = {name: load_card(name) for name in card_names()}
    return {name: card for name, card in found.items() if card is not None}


class TestTargets:
    def test_all_of_them_load_under_their_own_name(self, targets: dict[str, Target]) -> None:
        assert len(targets) >= 114
        assert {name: target.id for name, target in targets.items()} == {name: name for name in targets}
        assert len({target.name for target in targets.values()}) == len(targets)

    def test_every_figure_has_a_source(self, targets: dict[str, Target]) -> None:
        bare = [(name, key) for name, one in targets.items() for key in FIGURES if not one.source(key)]
        assert not bare
        for name, target in targets.items():
            for key in target.sources:
                outer, _, inner = key.partition(".")
                assert outer == "default" or outer in Target.model_fields, (name, key)
                assert not inner or getattr(getattr(target, outer), inner) is not None, (name, key)

    def test_the_recalled_ones_are_marked(self, targets: dict[str, Target]) -> None:
        for name, target in targets.items():
            assert ("verify before relying" in target.note) == (target.confidence == "C"), name
            assert not target.measured

    def test_figures_are_of_the_right_size(self, targets: dict[str, Target]) -> None:
        """Catches a slip of a unit: terabytes for gigabytes, a sparse rate, bits for bytes."""
        for name, target in targets.items():
            assert 5 < target.memory_gb < 1300, name
            assert 10 < target.bandwidth_gbs < 24000, name
            rates = target.rates
            if rates.bf16_tflops:
                # Operations per byte: between a processor without matrix units and the widest of them.
                assert 1 < 1000 * rates.bf16_tflops / target.bandwidth_gbs < 1000, name
                assert 1 <= (rates.fp8_tflops or rates.bf16_tflops) / rates.bf16_tflops < 2.1, name
                assert 1 <= (rates.fp4_tflops or rates.bf16_tflops) / rates.bf16_tflops < 8.2, name
            assert (target.kind == "cpu") == (target.cpu is not None), name

    def test_known_figures(self, targets: dict[str, Target]) -> None:
        h100 = targets["h100-sxm"]
        assert (h100.bandwidth_gbs, h100.rates.bf16_tflops, h100.rates.fp4_tflops) == (3350, 989, None)
        assert h100.interconnect is not None
        assert h100.interconnect.gbs_per_direction == 450
        assert 80e9 < h100.memory_gb * 1e9 < 80 * 2**30
        assert targets["rtx-4090"].interconnect is None
        assert targets["jetson-agx-orin-64gb"].kind == "unified"
        assert targets["b300-sxm"].rates.int8_tops == 153.5

    def test_a_source_falls_back_to_the_group_and_the_default(self, targets: dict[str, Target]) -> None:
        fields = targets["l4"].model_dump() | {
            "sources": {"default": "d", "rates": "r", "rates.int8_tops": "i"}
        }
        target = Target.model_validate_json(Target.model_validate(fields, strict=False).model_dump_json())
        assert target.source("rates.int8_tops") == "i"
        assert target.source("rates.bf16_tflops") == "r"
        assert target.source("memory_gb") == "d"

    def test_names_are_found_in_any_case(self) -> None:
        assert load_target("RTX-4090", Path()).id == "rtx-4090"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "rtx-490",
                'error[IC020]: chat.yaml:4: there is no target "rtx-490"\n  fix: did you mean rtx-4090?',
            ),
            (
                "abacus",
                'error[IC020]: chat.yaml:4: there is no target "abacus"\n'
                "  fix: infer-compile targets lists the names",
            ),
            (
                "./my.yaml",
                'error[IC020]: chat.yaml:4: there is no target file "./my.yaml"\n'
                "  because: looked for specs/my.yaml",
            ),
        ],
    )
    def test_an_unknown_one(self, name: str, message: str) -> None:
        with pytest.raises(InferCompileError) as caught:
            load_target(name, Path("specs"), "chat.yaml:4")
        assert str(caught.value) == message
        assert caught.value.exit == Exit.USAGE

    def test_a_file_of_ones_own(self, tmp_path: Path) -> None:
        text = (folder("targets") / "raspberry-pi-5.yaml").read_text()
        (tmp_path / "mine.yaml").write_text(text.replace("id: raspberry-pi-5", "id: mine"))
        assert load_target("mine.yaml", tmp_path).id == "mine"
        assert load_target(str(tmp_path / "mine.yaml"), Path()).id == "mine"

    def test_a_broken_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        Path("mine.yaml").write_text(
            "id: mine\nname: Mine\nvendor: me\nkind: cpu\nmemory_gb: -1\nbandwith_gbs: 3\n"
            "bandwidth_gbs: 3\nrates: {bf16_tflops: .nan}\nconfidence: D\nsources: {default: me}\n"
        )
        with pytest.raises(InferCompileError) as caught:
            load_target("mine.yaml", Path())
        assert str(caught.value).split("\n") == [
            'error[IC007]: mine.yaml:5: "memory_gb" must be greater than 0, not -1',
            'error[IC004]: mine.yaml:6: unknown key "bandwith_gbs"',
            f"  because: the keys here are {', '.join(Target.model_fields)}",
            "  fix: did you mean bandwidth_gbs?",
            'error[IC006]: mine.yaml:8: "rates.bf16_tflops" must be a finite number, not nan',
            'error[IC008]: mine.yaml:9: "confidence" must be A, B or C, not "D"',
        ]

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "cpu: {architecture: aarch64, isa: portable, cores: 4}\n",
                "",
                r":4: a target of kind cpu needs the section cpu",
            ),
            ("isa: portable", "isa: avx2", r':11: isa "avx2" does not exist on aarch64'),
        ],
        ids=["cpu", "isa"],
    )
    def test_a_file_that_contradicts_itself(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        text = (folder("targets") / "raspberry-pi-5.yaml").read_text()
        assert old in text
        (tmp_path / "mine.yaml").write_text(text.replace(old, new))
        with pytest.raises(InferCompileError, match=message):
            load_target("mine.yaml", tmp_path)


class TestModels:
    def test_all_of_them_load_under_their_own_name(self, cards: dict[str, ModelCard]) -> None:
        assert len(cards) >= 70
        assert {name: card.id for name, card in cards.items()} == {name: name for name in cards}
        repositories = [each.lower() for card in cards.values() for each in (card.hf_id, *card.also)]
        assert len(repositories) == len(set(repositories))
        assert all(card.source and card.basis for card in cards.values())

    def test_a_card_is_found_by_any_of_its_names(self, cards: dict[str, ModelCard]) -> None:
        for card in cards.values():
            for name in (card.id.upper(), card.hf_id.lower(), *card.also):
                assert load_card(name) == card
        assert load_card("nobody/nothing") is None
        assert load_card("") is None

    def test_configs_say_what_a_config_has_to_say(self, cards: dict[str, ModelCard]) -> None:
        for name, card in cards.items():
            text = card.text_config
            assert isinstance(card.config["architectures"], list), name
            for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
                assert isinstance(text[key], int), (name, key)
            assert text["max_position_embeddings"] >= 2048, name
            kinds = text.get("layer_types")
            assert kinds is None or len(kinds) == text["num_hidden_layers"], name
            assert card.active_parameters_b <= card.parameters_b, name

    def test_parameters_of_the_dense_families_are_those_of_the_graph(
        self, cards: dict[str, ModelCard]
    ) -> None:
        dense = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
        known = [card for card in cards.values() if card.config["architectures"][0] in dense]
        assert len(known) >= 30
        for card in known:
            graph = build(card.config, card.id)
            assert graph.native, card.id
            assert graph.parameters / 1e9 == pytest.approx(card.parameters_b, abs=0.0101), card.id
            assert graph.max_context == card.text_config["max_position_embeddings"]

    def test_cards_are_strict(self) -> None:
        card = load_card("llama-3.1-8b")
        assert card is not None
        with pytest.raises(ValidationError):
            ModelCard.model_validate({**card.model_dump(), "colour": "red"})


class TestResources:
    @pytest.mark.parametrize(
        ("name", "file"),
        [
            ("targets", "h100-sxm.yaml"),
            ("specs", "quickstart.yaml"),
            ("kernels", "cpu"),
            ("templates", "engine"),
        ],
    )
    def test_each_folder_is_found(self, name: str, file: str) -> None:
        assert (folder(name) / file).exists()  # type: ignore[arg-type]

    def test_pyproject_lists_every_package(self) -> None:
        """Packages are listed by hand, because four of them lie elsewhere in the checkout."""
        import infer_compile

        package = Path(infer_compile.__file__).parent
        project = package.parents[1] / "pyproject.toml"
        if not project.is_file():
            pytest.skip("not a checkout")
        listed = set(re.findall(r'^    "(infer_compile[\w.]*)",$', project.read_text(), re.MULTILINE))
        found = {
            ".".join(("infer_compile", *path.parent.relative_to(package).parts))
            for path in package.rglob("__init__.py")
        }
        elsewhere = {"kernels": "runtime.kernels", "specs": "specs", "targets": "targets"} | {
            "templates": "templates"
        }
        assert listed == found | {f"infer_compile.{name}" for name in elsewhere.values()}
