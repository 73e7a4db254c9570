"""What other people's pruners leave undone on diffusers' networks, so that they can be compared with."""

from typing import Any

from torch import nn

from prunekit.graph.families import refresh

__all__ = ["head_widths", "mend"]


def head_widths(model: nn.Module) -> dict[str, int]:
    """Width of a head of every attention by name; 0 where there is a single head."""
    attentions: dict[str, Any] = {n: m for n, m in model.named_modules() if type(m).__name__ == "Attention"}
    return {name: int(m.to_q.out_features) // int(m.heads) if m.heads > 1 else 0 for name, m in attentions.items()}


def mend(model: nn.Module, widths_of_heads: dict[str, int]) -> nn.Module:
    """Set numbers that diffusers' modules keep beside their tensors, and assert on, to what the tensors say; in place."""
    for name, module in model.named_modules():
        known: Any = module
        if type(module).__name__ in ("Upsample2D", "Downsample2D") and hasattr(known.conv, "in_channels"):
            known.channels, known.out_channels = known.conv.in_channels, known.conv.out_channels
        if widths_of_heads.get(name):
            known.heads = max(int(known.to_q.out_features) // widths_of_heads[name], 1)
    refresh(model)
    return model
