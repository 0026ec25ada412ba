"""What is known of speculative decoding: data with sources, in speculation.yaml.

How many drafted tokens a model accepts is a property of the drafter and the text; what drafting costs
follows from the drafter's shape. Both are here, by method and by kind of text, never by the name of a model;
names say only which drafter exists for which model.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .figure import Basis, Figure, Frozen

Method = Literal["draft", "ngram", "lookahead", "eagle3", "medusa", "mtp"]
Kind = Literal["general", "chat", "code", "reasoning", "documents"]
"""Of the text that is written. ``documents``: summaries of, and answers from, a document in the prompt.
``general``: all of them, each counted alike."""

DEPTH = 8
"""Drafted tokens that rates are given for."""

Rate = Annotated[float, Field(ge=0, le=1)]
Rates = Annotated[tuple[Rate, ...], Field(min_length=DEPTH, max_length=DEPTH)]


class Acceptance(Frozen):
    """How often the drafted token at each position is accepted, given that those before it were.

    ``low`` and ``high`` are curves that a tenth of the ``series`` (one model, drafter and data set each) lie
    below and above.
    """

    method: Method
    kind: Kind
    low: Rates
    expected: Rates
    high: Rates
    series: int
    basis: Basis
    source: str


class Siblings(Frozen):
    """Where the drafted token at a position is not what is drawn there, how often one of the next 1, 2, ...
    choices of the drafter is."""

    method: Method
    shares: tuple[Rate, ...]
    basis: Basis
    source: str


class Overhead(Frozen):
    """What speculation takes beside the products: once a step, and for each pass of the drafter or each
    sequence that text is looked up for."""

    step_us: Figure
    pass_us: Figure
    lookup_us: Figure


class Pair(Frozen):
    """A smaller model of the catalog that drafts for others: same tokenizer, same family."""

    draft: str
    targets: tuple[str, ...]
    basis: Basis
    source: str


class DecoderLayer(Frozen):
    """The one decoder layer of an EAGLE-3 drafter, where it is not shaped as the layers of its model."""

    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    basis: Basis
    source: str


class Checkpoint(Frozen):
    """A published drafter. ``model`` is an id of the catalog, ``made_for`` the repository that it was trained
    on: it accepts less with another of the same geometry."""

    model: str
    id: str
    made_for: str
    layer: DecoderLayer | None = None
    source: str


class Eagle3(Frozen):
    """One decoder layer over the token's embedding and the hidden state side by side (``inputs`` vectors),
    a matrix that fuses ``fused`` hidden states of the model into one, a head of a reduced ``vocabulary``."""

    vocabulary: Figure
    inputs: Figure
    fused: Figure
    checkpoints: tuple[Checkpoint, ...]


class MedusaCheckpoint(Frozen):
    model: str
    id: str
    made_for: str
    heads: int
    source: str


class Medusa(Frozen):
    """``heads`` that each predict one position from the last hidden state: a square matrix, then logits."""

    checkpoints: tuple[MedusaCheckpoint, ...]


class Absent(Frozen):
    """Configs of ``architecture`` announce layers whose weights are not published."""

    architecture: str
    source: str


class Predicting(Frozen):
    """What the config of ``architecture`` does not tell of its predicting layers: how many there are, or that
    they are shaped as the model's ``dense`` layers and have no experts."""

    architecture: str
    layers: int = 0
    dense: bool = False
    source: str


class Mtp(Frozen):
    """Layers of the checkpoint itself that predict further tokens: a matrix that joins ``inputs`` vectors,
    one layer of the model with its experts, the model's own head. ``fields`` of config.json tell how many."""

    fields: tuple[str, ...]
    inputs: Figure
    told: tuple[Predicting, ...]
    absent: tuple[Absent, ...]
    basis: Basis
    source: str

    def of(self, architecture: str) -> Predicting | None:
        """What is known of the predicting layers of ``architecture`` beside its config."""
        return next((one for one in self.told if one.architecture == architecture), None)


class Lookahead(Frozen):
    """N-grams of ``level`` tokens from a window of guesses of the model itself, of so many columns: a step
    carries the window and ``guesses`` n-grams, and accepts one less than ``level`` tokens at most."""

    level: int
    columns: int
    guesses: int
    basis: Basis
    source: str

    @property
    def depth(self) -> int:
        return self.level - 1

    @property
    def window(self) -> int:
        """Tokens of the window; the last accepted one heads the first column."""
        return self.columns * self.depth - 1


class SpeculationFacts(Frozen):
    schema_version: Literal[1]
    acceptance: tuple[Acceptance, ...]
    siblings: tuple[Siblings, ...]
    overhead: Overhead
    pairs: tuple[Pair, ...]
    eagle3: Eagle3
    medusa: Medusa
    mtp: Mtp
    lookahead: tuple[Lookahead, ...]
    """Shapes of windows; the first is the one whose acceptance was measured."""

    @model_validator(mode="after")
    def _each_method_in_general(self) -> SpeculationFacts:
        given = [(one.method, one.kind) for one in self.acceptance]
        if len(set(given)) != len(given):
            raise ValueError("a method and kind is given twice")
        lacking = {method for method, _ in given} - {method for method, kind in given if kind == "general"}
        if lacking:
            raise ValueError(f"without figures for text in general: {', '.join(sorted(lacking))}")
        return self

    def beside(self, method: Method) -> Siblings | None:
        """What other choices of a method's drafters are worth; None where nothing is known of them."""
        return next((one for one in self.siblings if one.method == method), None)

    def of(self, method: Method, kind: Kind = "general") -> Acceptance:
        """The acceptance of ``method`` on text of ``kind``, or in general where that kind has no figures of
        its own; raises KeyError where nothing is known of the method."""
        found = {one.kind: one for one in self.acceptance if one.method == method}
        if not found:
            raise KeyError(method)
        return found.get(kind, found["general"])
