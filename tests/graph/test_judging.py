"""What counts as rounding, and what as a fault."""

import pytest
import torch
import torch.nn.functional as F

from prunekit.graph.judging import agree, size_of_terms


def cancelling(count=256):
    """Inputs and weights of which the products nearly add up to nothing."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(1, count, generator=generator) for _ in range(2))
    w -= x * (w @ x.T) / (x @ x.T)
    return x, w


def test_sums_that_cancel_are_judged_by_their_terms():
    x, w = cancelling()
    found, expected = F.linear(x, w), F.linear(x.double(), w.double()).float()
    assert not agree(found, expected)
    assert agree(found, expected, size_of_terms("linear", [x, w]))


def test_a_missing_channel_is_a_fault_nonetheless():
    x, w = cancelling()
    least = size_of_terms("linear", [x, w])
    for channel in range(0, 256, 32):
        kept = torch.arange(256) != channel
        assert not agree(F.linear(x[:, kept], w[:, kept]), F.linear(x, w), least)


@pytest.mark.parametrize("name", ["silu", "group_norm", "add"])
def test_functions_that_sum_nothing_get_no_allowance(name):
    assert size_of_terms(name, list(cancelling())) == 0
