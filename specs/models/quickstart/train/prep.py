"""Step 2: clean the text, train the byte-level BPE tokenizer (4,096), write the token files ``plain.bin``,
``recall.bin`` and ``held.bin`` and the held-out text ``held.txt``.

Usage: prep.py ROOT
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from words import BEGIN, END, PAIRS, write_tokens

SPECIAL = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
VOCABULARY = 4096
RECORDS = 9000


def clean(name: str, text: str) -> str:
    if name.startswith("py:"):
        header = text.rfind("»", 0, 3000)
        text = text[header + 1 :] if header > 0 else text
        footer = text.rfind("Table of Contents")
        text = text[:footer] if footer > 0.5 * len(text) else text
        text = re.sub(r"\n{2,}\s*\|\s*\n", "\n", text)
        return re.sub(r"\n{3,}", "\n\n", text).strip()
    if name == "wordnet":
        text = re.sub(r"\n\s{8,}", " ", text)
        return re.sub(r"[ \t]+", " ", text)
    return re.sub(r"[ \t]{2,}", " ", text)


def split(docs: list[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Training and held-out texts: every 25th page, the end of the Jargon File, 2 % of the dictionary."""
    texts = {name: clean(name, text) for name, text in docs if not name.startswith("py:")}
    pages = [clean(name, text) for name, text in docs if name.startswith("py:")]
    train = [page for index, page in enumerate(pages) if index % 25 != 3]
    held = [page for index, page in enumerate(pages) if index % 25 == 3]
    jargon = texts["jargon"]
    cut = int(len(jargon) * 0.96)
    train.append(jargon[:cut])
    held.append(jargon[cut:])
    entries = re.split(r"\n(?=\S)", texts["wordnet"])
    random.Random(0).shuffle(entries)
    entries = entries[:60000]
    cut = int(len(entries) * 0.98)
    train += ["\n".join(entries[first : first + 200]) for first in range(0, cut, 200)]
    held.append("\n".join(entries[cut:]))
    return train, held


def train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def recall(rng: random.Random, count: int, filler: list[str] | None) -> str:
    """Records of five-digit codes, some with unrelated text between them, and questions about them."""
    keys = rng.sample(PAIRS, count)
    codes = [str(rng.randrange(10000, 99999)) for _ in keys]
    lines = []
    for (adjective, noun), code in zip(keys, codes, strict=True):
        lines.append(f"The code of the {adjective} {noun} is {code}.")
        if filler and rng.random() < 0.6:
            text = rng.choice(filler)
            first = rng.randrange(max(1, len(text) - 400))
            lines.append(text[first : first + rng.randrange(50, 300)].replace("\n", " "))
    for _ in range(min(count, 6)):
        index = rng.randrange(count)
        adjective, noun = keys[index]
        lines.append(f"Question: what is the code of the {adjective} {noun}? Answer: {codes[index]}.")
    return "\n".join(lines)


def main(root: Path) -> None:
    docs = [(name, text) for name, text in json.loads((root / "docs.json").read_text(encoding="utf-8"))]
    train, held = split(docs)
    tokenizer = train_tokenizer(train)
    tokenizer.save(str(root / "tokenizer.json"))

    def encode(texts: list[str]) -> list[int]:
        return [token for text in texts for token in (BEGIN, *tokenizer.encode(text).ids, END)]

    rng = random.Random(1)
    records = [
        recall(rng, rng.randrange(2, 14), train[:400] if rng.random() < 0.7 else None) for _ in range(RECORDS)
    ]
    for name, texts in (("plain", train), ("recall", records), ("held", held)):
        ids = encode(texts)
        write_tokens(root / f"{name}.bin", ids)
        print(name, len(ids), "tokens")
    (root / "held.txt").write_text("\n\n".join(held), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
