"""What it costs to hold an answer to a grammar: processor time for each token, on a vocabulary of 32,000.

    python benchmarks/grammar_masks.py

The vocabulary is trained on the sources of Python's own library. Two texts go through each grammar: a natural
answer, token by token, and a random walk over what the masks allow. Times are of the thread alone (so that
other programs do not count), of taking in a token and finding the next mask.
"""

from __future__ import annotations

import json
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from infer_compile.runtime.grammar import Grammars, Kind, schema_text

VOCABULARY = 32_000
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "email": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string"},
                "city": {"enum": ["Paris", "Rome", "Oslo"]},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "city", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "email", "tags", "address"],
    "additionalProperties": False,
}
PERSON = {
    "name": "Ada Lovelace of London",
    "age": 36,
    "email": "ada@example.org",
    "tags": ["mathematics", "poetical science", "engines"],
    "address": {"street": "12 St James's Square, near the corner", "city": "Oslo", "zip": "12345"},
}
ANY = {"items": [{"a": 1.5, "text": "the quick brown fox jumps", "ok": True, "n": None} for _ in range(4)]}
CASES: dict[str, tuple[Kind, str, str]] = {
    "json_schema": ("json", schema_text(SCHEMA), json.dumps(PERSON)),
    "json_object": ("json", '{"type":"object"}', json.dumps(ANY, indent=1)),
    "regex": ("regex", r"[A-Za-z ]+, [0-9]{4}-[0-9]{2}-[0-9]{2}", "The quick brown fox, 2024-05-17"),
    "choice": ("choice", '["yes","no","perhaps"]', "perhaps"),
    "grammar": ("grammar", 'root ::= item+\nitem ::= "- " [^\\n]+ "\\n"', "- one thing and another\n" * 4),
}
STEPS = 500
END = 1


def tokenizer(folder: Path) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*/*.py"))[:1000]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(
        (path.read_text(encoding="utf-8", errors="replace") for path in sources), trainer
    )
    made.save(str(folder / "tokenizer.json"))
    return made


def told(times: Iterable[float]) -> str:
    micro = np.array(list(times)) * 1e6
    return f"mean {micro.mean():5.0f}  median {np.median(micro):4.0f}  p99 {np.percentile(micro, 99):6.0f}"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = tokenizer(Path(scratch))
        grammars = Grammars(Path(scratch), made.get_vocab_size(), frozenset({END}))
    print(f"vocabulary {made.get_vocab_size()}, microseconds of processor time for each token")
    for name, (kind, text, answer) in CASES.items():
        began = time.thread_time()
        grammar = grammars.compile(kind, text)
        compiled = time.thread_time() - began
        walks: dict[str, list[float]] = {"answer": [], "random walk": []}
        for _ in range(10):
            matcher = grammar.matcher()
            for token in made.encode(answer).ids:
                began = time.thread_time()
                matcher.push(token)
                walks["answer"].append(time.thread_time() - began)
        random, matcher = np.random.default_rng(0), grammar.matcher()
        for _ in range(STEPS):
            allowed = np.flatnonzero(np.unpackbits(matcher.mask.view(np.uint8), bitorder="little"))
            token = int(random.choice(allowed))
            if token == END:
                matcher = grammar.matcher()
                continue
            began = time.thread_time()
            matcher.push(token)
            walks["random walk"].append(time.thread_time() - began)
        print(f"{name} (compiled in {compiled * 1e3:.1f} ms)")
        for walk, times in walks.items():
            print(f"  {walk:12} {told(times)}")


if __name__ == "__main__":
    main()
