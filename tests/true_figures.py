from typing import Any

from torch import nn

from prunekit.cost import count_macs


def figures(model: nn.Module, inputs: Any) -> tuple[int, int]:
    """MACs and parameters, as a slim folder must tell them."""
    counted = count_macs(model, inputs)
    return counted.macs, counted.params
