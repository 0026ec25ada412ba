"""lm-eval's local-completions against a server, and its own engine, transformers, on the same checkpoint."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from quickstart_server import MODEL, ROOT, called, serving, tool

ITEMS, CHOICES, CONTEXT, CHOICE = 24, 4, 240, 24
"""Items, choices of each, and the letters of the context and of a choice."""
TASKS = {
    "continuations": {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    },
    "words": {
        "output_type": "multiple_choice",
        "doc_to_choice": [" the", " of", " and", "."],
        "doc_to_target": 0,
        "metric_list": [{"metric": "acc"}],
    },
    "sentences": {
        "output_type": "generate_until",
        "doc_to_target": "",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 24, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@dataclass(frozen=True)
class Scores:
    """What lm-eval found with one engine: log-likelihoods by item and choice, which choices are what it would
    say itself, and greedy texts."""

    accuracy: float
    likelihoods: list[list[float]]
    greedy: list[list[bool]]
    texts: list[str]


def write_tasks(folder: Path) -> None:
    """Which of four texts goes on as the text does, and how it goes on."""
    text = " ".join((ROOT / "specs" / "texts" / "evaluation.txt").read_text(encoding="utf-8").split())
    order = random.Random(5)
    places = [order.randrange(CONTEXT, len(text) - CHOICE) for _ in range(ITEMS * CHOICES)]
    ends = [text.index(" ", place) for place in places]
    items = []
    for index in range(ITEMS):
        answer = index % CHOICES
        end = ends[index * CHOICES + answer]
        own = ends[index * CHOICES : (index + 1) * CHOICES]
        choices = [text[place : place + CHOICE] for place in own]
        items.append({"context": text[end - CONTEXT : end], "choices": choices, "answer": answer})
    data = folder / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "target_delimiter": "",
    }
    for name, task in TASKS.items():
        # JSON is YAML.
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name} | common | task))


def scores(program: str, folder: Path, out: str, model: str, arguments: str, *more: object) -> Scores:
    called(
        *(program, "run", "--model", model, "--model_args", arguments, *more),
        *("--tasks", *TASKS, "--include_path", folder, "--log_samples", "--output_path", folder / out),
        folder=folder,
    )
    (results,) = (folder / out).glob("*/results_*.json")
    found = json.loads(results.read_text())["results"]
    samples = {}
    for name in TASKS:
        (path,) = (folder / out).glob(f"*/samples_{name}_*.jsonl")
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        samples[name] = [line["filtered_resps"] for line in sorted(lines, key=lambda line: line["doc_id"])]
    rated = samples["continuations"] + samples["words"]
    return Scores(
        accuracy=found["continuations"]["acc,none"],
        likelihoods=[[float(value) for value, _ in item] for item in rated],
        greedy=[[str(is_greedy) == "True" for _, is_greedy in item] for item in rated],
        texts=[item[0] for item in samples["sentences"]],
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scores, Scores]]:
    """Of a server of unquantized weights and cache, and of transformers."""
    program, folder = tool("lm-eval", "lm-eval[api,hf]"), tmp_path_factory.mktemp("lm-eval")
    write_tasks(folder)
    with serving(folder, weights="bf16", kv="bf16") as url:
        arguments = f"model=quickstart,base_url={url}/v1/completions,tokenizer={MODEL}"
        arguments += ",tokenizer_backend=huggingface,num_concurrent=4,max_retries=1"
        served = scores(program, folder, "served", "local-completions", arguments)
    arguments = f"pretrained={MODEL},dtype=float32"
    yield served, scores(program, folder, "own", "hf", arguments, "--device", "cpu", "--batch_size", 8)


def test_every_likelihood_is_transformers(both: tuple[Scores, Scores]) -> None:
    served, own = both
    assert len(served.likelihoods) == len(own.likelihoods) == 2 * ITEMS
    for ours, theirs in zip(served.likelihoods, own.likelihoods, strict=True):
        assert ours == pytest.approx(theirs, abs=TOLERANCE)
    assert served.greedy == own.greedy
    assert any(map(any, own.greedy)) and not all(map(all, own.greedy))


def test_the_accuracy_is_the_same_and_better_than_chance(both: tuple[Scores, Scores]) -> None:
    served, own = both
    assert served.accuracy == own.accuracy > 1.5 / CHOICES


def test_greedy_answers_are_transformers(both: tuple[Scores, Scores]) -> None:
    served, own = both
    assert all(map(str.strip, own.texts))
    assert served.texts == own.texts


TOLERANCE = 0.05
"""Nats of a whole choice: the server's cache is bf16, theirs float32."""
