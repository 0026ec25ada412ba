"""Step 3: dictionary questions and recall questions in the chat format, as ``chat.bin``.

Usage: chat.py ROOT
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer
from words import PAIRS, write_tokens

TOKENS = 6_000_000
QUESTIONS = (
    "What is {article}{word}?",
    "Define {word}.",
    'What does "{word}" mean?',
    "Explain the word {word}.",
    "Tell me what {word} means.",
)


def definitions(wordnet: str) -> list[tuple[str, str, str]]:
    """(word, part of speech, first gloss) of every entry with a short gloss."""
    text = re.sub(r"[ \t]+", " ", re.sub(r"\n\s{8,}", " ", wordnet))
    found = []
    for entry in re.split(r"\n(?=\S)", text):
        lines = entry.split("\n")
        word = lines[0].strip()
        if len(word) < 3 or not re.fullmatch(r"[a-z][a-z \-']+", word):
            continue
        for line in lines[1:]:
            match = re.match(r"\s*(?:(n|v|adj|adv)\s)?\s*1?:\s*(.+)", line)
            if match:
                gloss = re.sub(r"\[ant:.*", "", re.sub(r"\[syn:.*", "", match[2]))
                gloss = re.sub(r"[{}]", "", gloss).split(";")[0].strip()
                if 8 < len(gloss) < 160:
                    found.append((word, match[1] or "", gloss))
                break
    return found


def turn(question: str, answer: str) -> str:
    return f"<|user|>{question}<|end|><|assistant|>{answer}<|end|>"


def dictionary_chat(rng: random.Random, entries: list[tuple[str, str, str]]) -> str:
    text = "<|begin|>"
    for _ in range(rng.randrange(1, 4)):
        word, part, gloss = rng.choice(entries)
        article = "" if part != "n" else "an " if word[0] in "aeiou" else "a "
        answer = f"{article.capitalize()}{word} is {gloss}." if part == "n" else f"It means {gloss}."
        text += turn(rng.choice(QUESTIONS).format(article=article, word=word), answer)
    return text


def recall_chat(rng: random.Random) -> str:
    count = rng.randrange(2, 16)
    keys = rng.sample(PAIRS, count)
    codes = [str(rng.randrange(10000, 99999)) for _ in keys]
    facts = [f"The code of the {a} {n} is {code}." for (a, n), code in zip(keys, codes, strict=True)]
    index = rng.randrange(count)
    name = " ".join(keys[index])
    question = f"Remember these records. {' '.join(facts)} What is the code of the {name}?"
    text = "<|begin|>" + turn(question, f"{codes[index]}.")
    for _ in range(rng.randrange(0, 4)):
        index = rng.randrange(count)
        text += turn(f"And the code of the {' '.join(keys[index])}?", f"{codes[index]}.")
    return text


def main(root: Path) -> None:
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    docs = dict(json.loads((root / "docs.json").read_text(encoding="utf-8")))
    entries = definitions(docs["wordnet"])
    rng = random.Random(3)
    ids: list[int] = []
    while len(ids) <= TOKENS:
        ids += tokenizer.encode(dictionary_chat(rng, entries) if rng.random() < 0.6 else recall_chat(rng)).ids
    write_tokens(root / "chat.bin", ids)
    print(len(entries), "definitions,", len(ids), "tokens")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
