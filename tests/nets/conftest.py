import copy
from dataclasses import replace

import pytest
from test_experts import GROUPS, slim_models

from prunekit.graph import PruningPlan


@pytest.fixture
def half_whole(bench):
    """Four groups: the first and the third keep the whole base, each with a copy of its own; the others are pruned."""
    tiny = bench("unet", "whole")
    own = slim_models(tiny)
    widths = tiny.graph.full_widths
    macs, params = int(tiny.cost.macs(widths)), int(tiny.cost.params(widths))
    whole = replace(own[0], plan=PruningPlan({}, tiny.graph.fingerprint), sizes={}, macs=macs, params=params)
    for index in (0, 2):
        own[index] = replace(whole, group=GROUPS.groups[index], model=copy.deepcopy(tiny.model))
    return own
