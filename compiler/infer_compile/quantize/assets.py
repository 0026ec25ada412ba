"""The files that go with the weights: tokenizer, chat template, generation settings, and the licence."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from ..runtime.errors import InferCompileError, Problem
from .disk import save

TOKENIZER = "tokenizer.json"
# By name: a folder of the hub may hold anything, and code or pickles must not reach a bundle.
ASSETS = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
    # Most licences ask to travel with what is made from the work.
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.md",
    "NOTICE.txt",
)


def copy_assets(folder: Path, out_dir: Path) -> list[str]:
    """Copy those of ``ASSETS`` that ``folder`` has into ``out_dir``; return their names. Raises OSError."""
    names = [name for name in ASSETS if (folder / name).is_file()]
    for name in names:
        save(out_dir / name, (folder / name).read_bytes())
    return names


def require_same_tokens(draft: Path, model: Path) -> None:
    """Raise IC132 unless both folders' tokenizers have the same tokens under the same numbers; IC134 where
    one has none."""
    for folder in (draft, model):
        require_tokenizer(folder)
    mine, other = (
        Tokenizer.from_file(str(folder / TOKENIZER)).get_vocab(with_added_tokens=True)
        for folder in (draft, model)
    )
    if mine != other:
        stray = next(token for token in sorted({*mine, *other}) if mine.get(token) != other.get(token))
        numbers = [vocabulary.get(stray, "no token") for vocabulary in (mine, other)]
        raise InferCompileError(
            Problem(
                "IC132",
                "the drafting model has another tokenizer than the model",
                str(draft),
                f"{stray!r} is {numbers[0]} there and {numbers[1]} in the model",
                "name a draft of the model's family, or model: {draft: none}",
            )
        )


def require_tokenizer(folder: Path) -> None:
    """Raise IC134 unless ``folder`` has the one tokenizer file that the runtime reads."""
    if not (folder / TOKENIZER).is_file():
        raise InferCompileError(
            Problem(
                "IC134",
                f"the model folder has no {TOKENIZER}",
                str(folder),
                "the server reads the tokenizer from that file alone",
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it",
            )
        )
