"""Which layers see how far back: ``sliding_window`` and the fields that say where it holds."""

from __future__ import annotations

from .fields import Fields

KINDS = ("full_attention", "sliding_attention")


def window(fields: Fields, default: int | None) -> int | None:
    """``sliding_window``; null means none, and absent means ``default``."""
    if "sliding_window" in fields.config and not fields.has("sliding_window"):
        return None
    return fields.integer("sliding_window", default) if default or fields.has("sliding_window") else None


def by_layer(fields: Fields, implied: tuple[int | None, ...], size: int | None) -> tuple[int | None, ...]:
    """The window of each layer: what ``layer_types`` says where it is given, else ``implied``."""
    kinds = fields.names("layer_types")
    if kinds is None:
        return implied
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        fields.wrong("layer_types", f"a list of {' or '.join(KINDS)}")
        return implied
    if len(kinds) != len(implied):
        fields.contradiction(
            f"layer_types has {len(kinds)} entries and num_hidden_layers is {len(implied)}",
            "each layer has one kind",
        )
        return implied
    if size is None and KINDS[1] in kinds:
        fields.contradiction(
            "layer_types names sliding_attention and no sliding window is in use",
            "sliding_window is null, or use_sliding_window is false",
            "give sliding_window, or make these layers full_attention",
        )
    return tuple(size if kind == KINDS[1] else None for kind in kinds)
