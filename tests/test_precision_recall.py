"""Precision and recall against the paper's equations, written plainly."""

import numpy as np
import pytest
import torch

from prunekit.errors import InputError
from prunekit.precision_recall import precision_recall


def plainly(points, centres, neighbours):
    """arXiv:1904.06991, eq. 1 and 2: the fraction of points in a ball around a centre up to its k-th neighbour."""
    hits = 0
    for point in points:
        for index, centre in enumerate(centres):
            others = np.delete(centres, index, axis=0)
            radius = np.sort(np.linalg.norm(others - centre, axis=1))[neighbours - 1]
            if np.linalg.norm(point - centre) <= radius:
                hits += 1
                break
    return hits / len(points)


@pytest.mark.parametrize("neighbours", [1, 3, 5])
def test_both_are_the_papers_equations(neighbours):
    draw = np.random.default_rng(neighbours)
    real, fake = draw.normal(size=(40, 3)), draw.normal(0.8, 0.7, size=(40, 3))
    found = precision_recall(torch.from_numpy(real), torch.from_numpy(fake), neighbours)
    assert found == pytest.approx((plainly(fake, real, neighbours), plainly(real, fake, neighbours)))
    assert 0 < min(found) < max(found) < 1


def test_a_part_of_the_real_pictures_is_precise_and_lacks_recall():
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(60, 4, generator=draw), torch.randn(60, 4, generator=draw) + 50
    real, mode = torch.stack([left, right], 1).flatten(0, 1), torch.randn(120, 4, generator=draw)
    precision, recall = precision_recall(real, mode)
    assert precision > 0.8
    assert recall <= 0.5
    assert precision_recall(mode, real) == (recall, precision)


def test_equal_sets_have_all_of_both_and_far_sets_nothing():
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert precision_recall(features, features) == (1.0, 1.0)
    assert precision_recall(features, features + 100) == (0.0, 0.0)


def test_of_the_larger_set_as_many_are_taken_evenly():
    features = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    few = features[[0, 4, 8]]
    assert precision_recall(features, few, 1) == precision_recall(few, few, 1) == (1.0, 1.0)


def test_fewer_pictures_than_neighbours_take_all_of_them():
    assert precision_recall(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [3.0]])) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("real", "fake", "neighbours"), [((1, 2), (5, 2), 3), ((5, 2), (5, 3), 3), ((5,), (5,), 3), ((5, 2), (5, 2), 0)]
)
def test_features_that_do_not_fit_are_refused(real, fake, neighbours):
    with pytest.raises(InputError, match="expected"):
        precision_recall(torch.zeros(real), torch.zeros(fake), neighbours)
