"""How often another choice of a drafter is what is drawn where its first is not.

    python benchmarks/speculation_siblings.py [--positions N]

The quickstart's model and its draft, both unquantized, in PyTorch on the processor. ``draft``: both read the
held-out text; at each of its positions the chance that the model draws the draft's first, second, ... choice
is its own probability of it (at temperature 0: 1 or 0). ``ngram``: the model writes on from passages of that
text, and the lookup of the runtime drafts along; a step for which it finds nothing is a miss.

Printed for each is how often the first choice is right, and of its misses the share that is among the next
1, 2, ... choices. In catalog/speculation.yaml are those of ``draft`` at temperature 0, as most published
figures are, and of ``ngram`` at 0.5: at 0 so small a model repeats itself more than larger ones do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infer_compile.catalog.resources import folder
from infer_compile.runtime.speculation.draft import ABSENT
from infer_compile.runtime.speculation.ngram import Ngram
from infer_compile.runtime.speculation.proposer import Ask

CHOICES = 5
TEMPERATURES = (0.0, 0.5, 1.0)
PASSAGE, ANSWER = 128, 192


def chances(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return torch.softmax(logits / temperature, -1)


def by_draft(model, draft, tokens: torch.Tensor, temperature: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Chance that each choice of the draft is drawn, over the positions of ``tokens`` [passages, length]."""
    found = []
    for passage in tokens:
        own = chances(model(passage[None]).logits[0].float(), temperature)
        choices = draft(passage[None]).logits[0].topk(CHOICES).indices
        found.append(own.gather(1, choices))
    return torch.cat(found).mean(0).numpy()


def by_lookup(model, tokens: torch.Tensor, temperature: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    """The same for the first token that lookup drafts; where it drafts nothing it is wrong."""
    settings = {"do_sample": temperature > 0} | ({"temperature": temperature} if temperature else {})
    texts = model.generate(tokens, max_new_tokens=ANSWER, min_new_tokens=ANSWER, top_k=0, **settings)
    hits = np.zeros(CHOICES)
    tried = 0
    for text in texts.numpy().astype(np.int32):
        ngram = Ngram()
        for end in range(PASSAGE, len(text)):
            (drafted,) = ngram.propose([Ask(0, text[:end], 1, CHOICES)])
            choices = [*drafted.chain, *drafted.siblings[:1][drafted.siblings[:1] != ABSENT]]
            hits[: len(choices)] += np.array(choices, np.int32) == text[end]
            tried += 1
    return hits / tried


def row(method: str, temperature: float, found: np.ndarray) -> str:
    shares = " ".join(f"{share:.2f}" for share in np.cumsum(found[1:]) / (1 - found[0]))
    return f"| {method} | {temperature:g} | {found[0]:.2f} | {shares} |"


def rows(positions: int) -> Iterator[str]:
    place = folder("specs") / "models" / "quickstart"
    model, draft = (
        AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32) for each in (place, place / "draft")
    )
    tokenizer = AutoTokenizer.from_pretrained(place)
    text = (folder("specs") / "texts" / "evaluation.txt").read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
    starts = np.linspace(0, len(ids) - PASSAGE, max(1, positions // PASSAGE)).astype(int)
    tokens = torch.stack([ids[start : start + PASSAGE] for start in starts])
    for temperature in TEMPERATURES:
        yield row("draft", temperature, by_draft(model, draft, tokens, temperature))
    for temperature in TEMPERATURES:
        yield row("ngram", temperature, by_lookup(model, tokens, temperature))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--positions", type=int, default=2048)
    options = parser.parse_args()
    torch.manual_seed(0)
    print("| drafts | temperature | first | of its misses among the next 1, 2, 3, 4 |")
    print("|---|---|---|---|")
    with torch.inference_mode():
        for line in rows(options.positions):
            print(line, flush=True)


if __name__ == "__main__":
    main()
