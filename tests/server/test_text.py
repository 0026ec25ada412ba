"""Tokens to text: whole characters only, stop strings, chat templates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toy_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Raw
from tokenizers import decoders, models

from infer_compile.runtime.chat import ChatTemplate, TemplateRefusal
from infer_compile.runtime.errors import InferCompileError
from infer_compile.runtime.stops import StopStrings
from infer_compile.runtime.tokenizer import MOST_UNFINISHED, Detokenizer, Tokenizer

EMPTY = np.zeros(0, np.int32)


def pieces(tokenizer: Tokenizer, ids: list[int], prompt: np.ndarray = EMPTY) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(id) for id in ids), detokenizer.flush()]


def test_a_character_of_several_tokens_comes_whole(tokenizer: Tokenizer) -> None:
    ids = list("aé😀b".encode())
    assert pieces(tokenizer, ids) == ["a", "", "é", "", "", "", "😀", "b", ""]


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_the_pieces_make_up_the_text(tokenizer: Tokenizer, text: str) -> None:
    assert "".join(pieces(tokenizer, list(text.encode()))) == text


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_come_out_as_valid_text_with_every_whole_character(
    tokenizer: Tokenizer, data: bytes
) -> None:
    text = "".join(pieces(tokenizer, list(data)))
    text.encode()
    assert [character for character in data.decode(errors="ignore") if character not in text] == []


def test_endless_broken_bytes_are_not_held_back_for_ever(tokenizer: Tokenizer) -> None:
    given_out = pieces(tokenizer, [0x80] * 100)
    assert max(map(len, given_out)) <= MOST_UNFINISHED
    assert "".join(given_out).count("\N{REPLACEMENT CHARACTER}") == 100


def test_an_unfinished_character_ends_as_a_replacement(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, [97, 0xC3]) == ["a", "", "\N{REPLACEMENT CHARACTER}"]


def test_special_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, [97, toy_model.END, 98]) == ["a", "", "b", ""]


def test_a_decoder_that_drops_leading_spaces_keeps_those_inside_an_answer(tmp_path: Path) -> None:
    """As SentencePiece models have it: a text's first token loses its space, an answer's must not."""
    words = {"\u2581Hello": 0, "\u2581world": 1, "!": 2}
    raw = Raw(models.BPE(vocab=words, merges=[]))
    raw.decoder = decoders.Metaspace()
    raw.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert "".join(pieces(tokenizer, [1, 1, 2], np.array([0], np.int32))) == " world world!"


@given(
    text=st.text("abc", max_size=30),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(1, 4), max_size=40),
)
def test_text_goes_through_up_to_the_first_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    filtered, rest, out, stopped = StopStrings(stops), text, "", False
    shown = ""
    for cut in [*cuts, *[1] * 30]:
        piece, rest = rest[:cut], rest[cut:]
        shown += piece
        given_out, stopped = filtered.push(piece)
        out += given_out
        if stopped:
            break
    found = [shown.index(stop) for stop in stops if stop in shown]
    assert stopped == bool(found)
    assert out + ("" if stopped else filtered.flush()) == (shown[: min(found)] if found else text)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert [stops.push(piece)[0] for piece in ("a E", "x\n", "EN", "d")] == ["a ", "Ex", "\n", "ENd"]


def test_the_template_sees_messages_and_special_tokens(model_dir: Path, tokenizer: Tokenizer) -> None:
    text = ChatTemplate(model_dir, tokenizer).render([{"role": "user", "content": "hi"}])
    assert text == "<|begin|><|user|>hi<|end|><|assistant|>"
    assert tokenizer.encode(text, special=False).tolist() == [256, 258, *b"hi", 257, 259]


def test_the_template_can_refuse(model_dir: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    with pytest.raises(TemplateRefusal, match="the system message comes first"):
        ChatTemplate(model_dir, tokenizer).render(messages)


OFFERED = """
{%- for message in messages -%}
    {%- if message.role == 'skip' -%}{%- continue -%}{%- endif -%}
    {%- generation -%}
    {{ message | tojson }}
    {%- endgeneration -%}
{%- endfor -%}
{%- if tools is not none -%}tools{%- endif -%}
{{ strftime_now('%Y') | length }}{{ eos_token }}
"""


def test_templates_get_what_transformers_offers(tmp_path: Path) -> None:
    folder = toy_model.write(tmp_path, None)
    (folder / "chat_template.jinja").write_text(OFFERED)
    template = ChatTemplate(folder, Tokenizer(folder))
    messages = [{"role": "skip", "content": ""}, {"role": "user", "content": "<é>"}]
    assert template.render(messages) == '{"role": "user", "content": "<é>"}4<|end|>'


def test_a_named_template_is_found(tmp_path: Path) -> None:
    folder = toy_model.write(tmp_path)
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert ChatTemplate(folder, Tokenizer(folder)).render([]) == "yes"


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_templates_run_sandboxed(tmp_path: Path, template: str) -> None:
    folder = toy_model.write(tmp_path, template)
    with pytest.raises(TemplateRefusal):
        ChatTemplate(folder, Tokenizer(folder)).render([{"role": "user", "content": "x"}])


def test_broken_files_are_coded_errors(tmp_path: Path) -> None:
    with pytest.raises(InferCompileError, match="IC503"):
        Tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InferCompileError, match="IC503"):
        Tokenizer(tmp_path)
    folder = toy_model.write(tmp_path / "broken", "{% if %}")
    with pytest.raises(InferCompileError, match="IC504"):
        ChatTemplate(folder, Tokenizer(folder))
    folder = toy_model.write(tmp_path / "none", None)
    assert not ChatTemplate.exists(folder, Tokenizer(folder))
    with pytest.raises(InferCompileError, match="IC504"):
        ChatTemplate(folder, Tokenizer(folder))


def test_every_end_of_text_is_known(tmp_path: Path) -> None:
    folder = toy_model.write(tmp_path)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    assert Tokenizer(folder).end_ids == {7, 8, 9, toy_model.END}


def test_every_token_has_a_text_and_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.token(97) == ("a", b"a")
    assert [tokenizer.token(byte)[1] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert tokenizer.token(0xC3)[0] == "bytes:\\xc3"
    assert tokenizer.token(toy_model.END) == ("<|end|>", b"<|end|>")
