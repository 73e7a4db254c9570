"""Recipes that cut by images or gradients: the groups stage, its files, seeds and ledger, and when it runs again."""

import pytest
from micro_recipe import micro

from prunekit._json import read_json
from prunekit.errors import InputError
from prunekit.groups import Grouping
from prunekit.recipe import GroupOptions
from prunekit.steps.cutting import method_of

QUICK = {"groups__count": 2, "groups__samples": 4, "groups__nodes": 8}
ONLY = {"prune": None, "finetune": None, "evaluation": None}


@pytest.mark.slow_but("similarity")
@pytest.mark.parametrize("method", ["similarity", "gradient"])
def test_a_recipe_cuts_by_what_it_has(execute, tmp_path, quick, method):
    recipe = micro(groups__method=method, **QUICK, **ONLY)
    assert execute(recipe, tmp_path).made == ["base", "groups", "allocate"]
    grouping = Grouping.from_json(read_json(tmp_path / "groups.json"))
    assert grouping.groups.method == method
    assert (tmp_path / "groups.png").is_file()
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["seeds"]["groups"] == 0
    spent = [row for row in manifest["ledger"] if row["stage"] == "groups"]
    macs = 3 * 32 * manifest["base"]["macs"]
    assert [(row["kind"], row["samples"], row["macs"]) for row in spent] == (
        [("grouping", 32, macs)] if method == "gradient" else []
    )
    assert execute(recipe, tmp_path).made == []
    assert execute(micro(groups__method=method, groups__seed=1, **QUICK, **ONLY), tmp_path).made == [
        "groups",
        "allocate",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"alpha": 0.9}, "Got alpha or rule with method uniform"),
        ({"rule": "dynamic", "method": "snr"}, "Got alpha or rule with method snr"),
        ({"method": "similarity", "alpha": 0.9}, "Got 5 timestep groups with rule stages or alpha"),
        ({"method": "similarity", "eta": -1.0}, "Got eta -1"),
        ({"method": "similarity", "alpha": 0.9, "cuts": (3,)}, "with explicit cuts"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_runs(options, said):
    with pytest.raises(InputError, match=said):
        GroupOptions(**options)


def test_a_method_without_what_it_looks_at_is_refused():
    with pytest.raises(InputError, match="similarity got no images"):
        method_of(GroupOptions("similarity"))
    assert method_of(GroupOptions(cuts=(5,))).name == "explicit"
