"""``infer-compile models``: the model cards of the catalog."""

from __future__ import annotations

from typing import Any

import click

from ..catalog.engines import load_engines
from ..catalog.model import ModelCard, card_names, load_card
from ..graph.build import build
from ..planner.support import describe
from ..runtime.errors import Exit, InferCompileError, Problem
from ..spec.unserved import nearest
from .console import print_json, print_table


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def models(name: str | None, as_json: bool) -> None:
    """The models whose geometry is known without a download, or all that is known of NAME.

    NAME is that of the list, or of the Hugging Face hub. A spec can name other models too: a folder, or a
    repository of the hub.
    """
    if name is not None:
        card = _card(name)
        if as_json:
            print_json({"model": _fields(card)})
        else:
            _detail(card)
        return
    cards = [_card(each) for each in card_names()]
    if as_json:
        print_json({"models": [_fields(card) for card in cards]})
        return
    headings = ("name", "parameters", "active", "layers", "context", "served", "hub")
    print_table(
        headings,
        (
            (
                card.id,
                f"{card.parameters_b:g} B",
                f"{card.active_parameters_b:g} B",
                card.text_config["num_hidden_layers"],
                card.text_config["max_position_embeddings"],
                _served(card)[0],
                card.hf_id,
            )
            for card in cards
        ),
        right=headings[1:5],
    )
    click.echo("\nserved: by the native engine; counted: planned, not run; no: listed only.", err=True)


def _card(name: str) -> ModelCard:
    card = load_card(name)
    if card is None:
        close = nearest(name, card_names())
        raise InferCompileError(
            Problem(
                "IC021",
                f'there is no model "{name}" in the catalog',
                because="the catalog knows ids of its own and repositories of the hub",
                fix=f"did you mean {close}?" if close else "infer-compile models lists the names",
            ),
            Exit.USAGE,
        )
    return card


def _served(card: ModelCard) -> tuple[str, str]:
    """Whether this version runs the model, and the reason if it does not."""
    try:
        graph = build(card.config, card.id)
    except InferCompileError as error:
        return "no", error.problems[0].message
    if not graph.native:
        return "counted", graph.native_reason
    native = load_engines().of("native")
    limited = native.architectures.limited.get(graph.architecture)
    if limited and not any(set(one.kinds) & set(native.builds) for one in limited.devices):
        return "counted", f"runs on {describe(limited.devices)}, which no bundle is built for"
    return "yes", ""


def _fields(card: ModelCard) -> dict[str, Any]:
    served, reason = _served(card)
    return {**card.model_dump(mode="json"), "served": served, "reason": reason}


def _detail(card: ModelCard) -> None:
    served, reason = _served(card)
    rows: list[tuple[str, Any]] = [
        ("id", card.id),
        ("hub", ", ".join((card.hf_id, *card.also))),
        ("parameters", f"{card.parameters_b:g} B, {card.active_parameters_b:g} B active ({card.basis})"),
        ("served", f"{served}: {reason}" if reason else served),
        ("source", card.source),
    ]
    if card.note:
        rows.append(("note", card.note))
    rows += [(key, value) for key, value in card.text_config.items() if not isinstance(value, dict | list)]
    print_table(("field", "value"), rows)
