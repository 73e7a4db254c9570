"""The published size of Diff-Pruning's CIFAR-10 model, made by this package's engine and counted by torch-pruning."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import diff_pruning

        return diff_pruning.measure()


@pytest.mark.slow
def test_the_published_parameters_and_macs_are_met_to_the_last_digit(figures):
    assert figures["published"] == {"params_millions": 19.851, "gmacs": 3.392}
    theirs = figures["pruned"]["torch_pruning"]
    assert (theirs["params"], theirs["macs"]) == (19_851_157, 3_391_878_598)
    assert round(theirs["params"] / 1e6, 3) == 19.851
    assert round(theirs["macs"] / 1e9, 3) == 3.392
    assert round(figures["base"]["torch_pruning"]["macs"] / 1e9, 1) == 6.1


@pytest.mark.slow
def test_a_ratio_of_0_30_is_0_25_where_norm_groups_round_it(figures):
    assert figures["ratio"] == 0.30
    assert figures["removed"] == {
        "tied to a group norm": {"channel_groups": 40, "removed": 0.25},
        "elsewhere": {"channel_groups": 10, "removed": 77 / 256},
    }


@pytest.mark.slow
@pytest.mark.parametrize("which", ["base", "pruned"])
def test_torch_prunings_count_is_ours_less_attention_and_more_biases_and_norms(figures, which):
    ours, theirs = figures[which], figures[which]["torch_pruning"]
    kinds, operators = theirs["macs_by_layer"], ours["macs_by_operator"]
    assert sum(kinds.values()) == theirs["macs"]
    biases = kinds["Conv2d"] + kinds["Linear"] - operators["convolution"] - operators["linear"]
    assert 0 < biases < 0.001 * ours["macs"]
    assert theirs["macs"] == ours["macs"] - operators["scaled_dot_product_attention"] + biases + kinds["GroupNorm"]


@pytest.mark.slow
def test_the_closed_form_says_the_same(figures):
    assert figures["closed_form"] == {"macs": figures["pruned"]["macs"], "params": figures["pruned"]["params"]}
    assert figures["pruned"]["macs"] == 3_501_645_156
