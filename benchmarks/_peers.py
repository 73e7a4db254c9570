"""Fixes for diffusers' networks after other people's pruners, so that these can be compared."""

from typing import Any

from torch import nn

from prunekit.graph.families import refresh

__all__ = ["head_widths", "mend"]


def head_widths(model: nn.Module) -> dict[str, int]:
    """Width of a head for every attention, by name; 0 if there is a single head."""
    attentions: dict[str, Any] = {n: m for n, m in model.named_modules() if type(m).__name__ == "Attention"}
    return {name: int(m.to_q.out_features) // int(m.heads) if m.heads > 1 else 0 for name, m in attentions.items()}


def mend(model: nn.Module, widths_of_heads: dict[str, int]) -> nn.Module:
    """Set the numbers that diffusers' modules store and assert on to the sizes of their tensors, in place."""
    for name, module in model.named_modules():
        known: Any = module
        if type(module).__name__ in ("Upsample2D", "Downsample2D") and hasattr(known.conv, "in_channels"):
            known.channels, known.out_channels = known.conv.in_channels, known.conv.out_channels
        if widths_of_heads.get(name):
            known.heads = max(int(known.to_q.out_features) // widths_of_heads[name], 1)
    refresh(model)
    return model
