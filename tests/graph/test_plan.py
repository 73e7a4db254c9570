import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import FileFormatError, InputError, PlanError
from prunekit.graph import ChannelGroup, PruningPlan
from prunekit.graph.structure import shrunk_norm_groups

EXAMPLES = settings(max_examples=60, deadline=None)


@st.composite
def scored_groups(draw, whole=None):
    """A channel group and scores with many ties."""
    count, per_row = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    whole = draw(st.booleans()) if whole is None else whole
    group = ChannelGroup("g", count * per_row, count, whole, per_row if whole else count, ())
    scores = draw(st.lists(st.integers(0, 3), min_size=group.size, max_size=group.size))
    return group, np.array(scores, dtype=np.float64)


@EXAMPLES
@given(scored_groups())
def test_every_legal_width_is_met_in_rising_order_and_narrower_choices_lie_inside_wider_ones(case):
    group, scores = case
    wider = np.arange(group.size)
    assert group.widths[0] == group.size
    for width in group.widths:
        kept = group.select(scores, int(width))
        assert len(kept) == width
        assert (np.diff(kept) > 0).all()
        assert kept[0] >= 0
        assert kept[-1] < group.size
        assert np.isin(kept, wider).all()
        wider = kept


@EXAMPLES
@given(scored_groups(whole=False))
def test_even_groups_lose_the_same_number_from_every_row_and_its_lowest_scores(case):
    group, scores = case
    blocks = np.arange(group.size).reshape(group.rows, -1)
    for width in group.widths:
        kept = group.select(scores, int(width))
        for block in blocks:
            stay, gone = np.intersect1d(block, kept), np.setdiff1d(block, kept)
            assert len(stay) == width // group.rows
            if len(gone):
                assert scores[stay].min() >= scores[gone].max()


@EXAMPLES
@given(scored_groups(whole=True))
def test_whole_groups_lose_the_rows_of_least_total_score(case):
    group, scores = case
    blocks = np.arange(group.size).reshape(group.rows, -1)
    for width in group.widths:
        inside = np.isin(blocks, group.select(scores, int(width)))
        assert (inside.all(1) | ~inside.any(1)).all()
        totals = scores.reshape(group.rows, -1).sum(1)
        if not inside.all():
            assert totals[inside.all(1)].min() >= totals[~inside.any(1)].max()


def test_equal_scores_keep_the_lower_channels():
    group = ChannelGroup("g", 8, 2, False, 2, ())
    np.testing.assert_array_equal(group.select(np.zeros(8), 4), [0, 1, 4, 5])
    group = ChannelGroup("g", 8, 4, True, 2, ())
    np.testing.assert_array_equal(group.select(np.zeros(8), 4), [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("width", "scores"), [(3, np.zeros(8)), (0, np.zeros(8)), (10, np.zeros(8)), (-2, np.zeros(8)), (4, np.zeros(7))]
)
def test_illegal_widths_and_scores_of_another_shape_are_refused(width, scores):
    with pytest.raises(InputError, match="8 channels in steps of 2"):
        ChannelGroup("g", 8, 2, False, 2, ()).select(scores, width)


@EXAMPLES
@given(st.sampled_from([1, 2, 4, 8, 32]), st.integers(1, 12), st.integers(1, 400))
def test_shrunk_norms_always_divide_their_channels(num_groups, per_group, left):
    channels = num_groups * per_group
    groups = shrunk_norm_groups(num_groups, channels, left, "whole")
    assert left % groups == 0
    if left % per_group == 0:
        assert left // groups == per_group
    assert shrunk_norm_groups(num_groups, channels, left, "even") == num_groups


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_plans_survive_json_and_fit_their_graph(bench, seed):
    tiny = bench("unet", "whole" if seed % 2 else "even")
    plan = tiny.random_plan(seed)
    plan.check(tiny.graph)
    again = PruningPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    np.testing.assert_array_equal(again.widths(tiny.graph), plan.widths(tiny.graph))


def test_groups_at_full_width_are_not_in_the_plan(bench):
    tiny = bench("unet")
    assert tiny.plan(tiny.graph.full_widths).kept == {}
    widths = tiny.graph.full_widths.copy()
    widths[3] -= tiny.graph.groups[3].step
    assert list(tiny.plan(widths).kept) == [tiny.graph.groups[3].name]


HEADS = "mid_block.attentions.0.to_q"  # 16 channels, 4 heads


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        ({"nowhere": (0, 1)}, "'nowhere'"),
        ({"conv_in": ()}, "rising numbers in 0 … 7"),
        ({"conv_in": (0, 2, 1, 3)}, "rising numbers"),
        ({"conv_in": (0, 0, 1, 2)}, "rising numbers"),
        ({"conv_in": (-1, 0, 1, 2)}, "rising numbers"),
        ({"conv_in": (0, 1, 2, 8)}, "rising numbers"),
        ({"conv_in": (0, 1, 2)}, "minus a multiple of 4"),
        ({HEADS: tuple(range(6))}, "minus a multiple of 4"),
        ({HEADS: (0, 1, 2, 4)}, "cuts through a head"),
    ],
)
def test_plans_that_do_not_fit_are_refused_with_the_reason(bench, kept, reason):
    graph = bench("unet").graph
    with pytest.raises(PlanError, match=reason):
        PruningPlan(kept, graph.fingerprint).check(graph)


def test_plans_of_another_network_or_norm_mode_are_refused(bench):
    plan = bench("unet").random_plan(1)
    for other in (bench("unet", "whole"), bench("unet-one-head"), bench("mlp")):
        with pytest.raises(PlanError, match="another network or norm mode"):
            plan.check(other.graph)
    with pytest.raises(PlanError, match="absent"):
        PruningPlan().check(bench("unet").graph)


def test_a_plan_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PruningPlan().fingerprint = "other"


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kept": {}},
        {"kept": [], "fingerprint": "a"},
        {"kept": {"a": 1}, "fingerprint": "a"},
        {"kept": {"a": ["x"]}, "fingerprint": "a"},
        {"kept": {"a": [1.5]}, "fingerprint": "a"},
        {"kept": {"a": [None]}, "fingerprint": "a"},
    ],
)
def test_json_that_is_no_plan_is_refused(data):
    with pytest.raises(FileFormatError, match="pruning plan cannot be read"):
        PruningPlan.from_json(data)


def test_widths_in_multiples_by_resolution_are_a_wish_of_the_search_only(bench):
    tiny = bench("unet-normless")
    graph = tiny.graph.with_multiples({1: 4, 8: 3})
    assert graph.fingerprint == tiny.graph.fingerprint
    for group, plain in zip(graph, tiny.graph, strict=True):
        multiple = 3 if group.resolution >= 8 else 4
        assert group.widths[0] == group.size
        assert (group.widths[1:] % multiple == 0).all()
        assert set(group.widths) <= set(plain.widths)
        assert all(group.is_legal(int(width)) for width in plain.widths)
    assert {group.resolution for group in graph} >= {1, 4, 8}


def test_multiples_below_one_are_refused(bench):
    with pytest.raises(InputError, match="at least 1"):
        bench("unet").graph.with_multiples({8: 0})


@pytest.mark.parametrize("share", [0.0, 0.25, 0.6, 1.0])
def test_a_floor_is_a_wish_of_the_search_too_and_no_width_to_choose_from_is_below_it(bench, share):
    tiny = bench("unet")
    graph = tiny.graph.with_floor(share)
    assert graph.fingerprint == tiny.graph.fingerprint
    for group, plain in zip(graph, tiny.graph, strict=True):
        assert list(group.widths) == [width for width in plain.widths if width >= share * group.size]
        assert all(group.is_legal(int(width)) for width in plain.widths)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_floor_that_is_no_share_is_refused(bench, share):
    with pytest.raises(InputError, match="share of every channel group from 0 to 1"):
        bench("unet").graph.with_floor(share)
