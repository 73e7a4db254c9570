"""The ledger's arithmetic, by hand."""

import pytest

from prunekit.ledger import BASE_TRAINING, LedgerRow, both_ways, forwards, making_macs, spent_on_training, totals


def test_a_training_is_passes_teacher_and_moving_average_apart():
    """Ten steps of four images through a network of 7 MACs and 3 parameters, taught by one of 11 MACs."""
    training, teacher, ema = spent_on_training("fine-tuning", 40, 7, 3, 4, teacher_macs=11)
    assert training.to_json() == {
        "stage": "fine-tuning",
        "kind": "training",
        "samples": 40,
        "forward_macs": 280,
        "backward_macs": 560,
        "macs": 840,
    }
    assert (teacher.kind, teacher.samples, teacher.macs, teacher.backward) == ("teacher", 40, 440, 0)
    assert (ema.kind, ema.samples, ema.macs) == ("ema", 0, 30)
    assert [row.kind for row in spent_on_training("fine-tuning", 40, 7, 3, 4)] == ["training", "ema"]


def test_making_leaves_averages_and_evaluation_out():
    rows = [
        both_ways(BASE_TRAINING, "training", 2, 5),
        forwards(BASE_TRAINING, "ema", 0, 1000),
        both_ways("importance", "importance", 1, 5),
        forwards("search, group 0", "search", 3, 9),
        forwards("evaluation", "sampling", 3, 1000),
        forwards("evaluation", "evaluation", 3, 1000),
    ]
    assert making_macs(rows) == (30, 24)
    sums = totals([*rows, *rows])
    assert list(sums) == ["training", "importance", "search", "ema", "evaluation", "sampling"]
    assert sums["training"] == LedgerRow("total", "training", 4, 60, 20)


@pytest.mark.parametrize(
    ("stage", "kind"),
    [
        ("base training", "training"),
        ("fine-tuning, group 3", "training"),
        ("groups", "grouping"),
        ("importance", "importance"),
        ("search, group 0", "search"),
        ("frontier, group 4", "search"),
    ],
)
def test_rows_of_older_manifests_are_read(stage, kind):
    row = LedgerRow.from_json({"stage": stage, "samples": 3, "macs": 9})
    assert (row.kind, row.samples, row.macs, row.forward, row.backward) == (kind, 3, 9, None, None)
    known = totals([row, both_ways(stage, row.kind, 1, 1)])[row.kind]
    assert (known.macs, known.forward) == (12, None)


def test_rows_survive_json_and_unknown_kinds_do_not():
    row = LedgerRow("search", "search", 4, 12, 8)
    assert LedgerRow.from_json(row.to_json()) == row
    with pytest.raises(ValueError, match="luck"):
        LedgerRow.from_json({**row.to_json(), "kind": "luck"})
