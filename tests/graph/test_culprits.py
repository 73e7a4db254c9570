"""Smallest failing sets, several at a time."""

from hypothesis import given
from hypothesis import strategies as st

from prunekit.graph.culprits import smallest_sets


@st.composite
def suspects(draw):
    """Disjoint sets, each with parts that fail whenever all of their members are there."""
    sets = []
    for place in range(draw(st.integers(1, 5))):
        members = [(place, i) for i in range(draw(st.integers(1, 12)))]
        causes = draw(st.lists(st.sets(st.sampled_from(members), min_size=1), min_size=1, max_size=3))
        sets.append((members, causes))
    return sets


@given(suspects())
def test_each_set_found_fails_and_no_part_of_it_does(sets):
    passes = []

    def failing(asked):
        passes.append(asked)
        return {place for place, some in asked.items() if any(cause <= set(some) for cause in sets[place][1])}

    found = smallest_sets([members for members, _ in sets], failing)
    for least, (members, causes) in zip(found, sets, strict=True):
        assert set(least) <= set(members)
        if len(members) == 1:
            continue
        assert any(cause <= set(least) for cause in causes)
        for member in least:
            assert not any(cause <= set(least) - {member} for cause in causes)


@given(suspects())
def test_a_pass_answers_for_all_sets(sets):
    def passes(places):
        asked_for = []

        def failing(asked):
            asked_for.append(asked)
            return {
                index for index, some in asked.items() if any(cause <= set(some) for cause in sets[places[index]][1])
            }

        smallest_sets([sets[place][0] for place in places], failing)
        return len(asked_for)

    assert passes(range(len(sets))) == max(passes([place]) for place in range(len(sets)))
