"""Timestep groups that keep the whole base: left untrained on request, stored once, and the preset of one specialist."""

import itertools
import json
from dataclasses import replace
from unittest.mock import Mock

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from micro_recipe import micro

from prunekit import make_experts
from prunekit.allocation import allocate, check_leaves_cleanest
from prunekit.data import load_images
from prunekit.errors import BudgetError, InputError
from prunekit.graph import Constraints
from prunekit.graph.surgery import all_tensors
from prunekit.nets import load_experts
from prunekit.recipe import FinetuneOptions, GroupOptions, PruneOptions
from prunekit.runs.experts_run import Run
from prunekit.sampling import SAMPLERS
from prunekit.schedule import NoiseSchedule
from prunekit.search import SearchOptions
from prunekit.slim import load_slim
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, Traces
from prunekit.steps.budgets import evaluations, plan_budget, specialist_groups
from prunekit.training import TrainOptions

TRAIN = {"steps": 2, "batch_size": 8, "warmup_steps": 1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of three groups of which only the noisiest is pruned."""
    folder = tmp_path_factory.mktemp("shared") / "run"
    recipe = micro(
        groups={"count": 3},
        allocation={"budget": 0.8, "rule": "snr", "floor": 0.3},
        finetune={"only_pruned": True, "train": TRAIN},
    )
    Run(recipe, folder).execute()
    return folder


def test_a_group_that_keeps_the_base_has_its_weights_bit_for_bit(finished):
    base = all_tensors(open_base(str(finished / "base.pt")).model)
    for group in (0, 1):
        own = all_tensors(load_slim(finished / "slim" / f"group-{group}").model)
        assert all(torch.equal(own[name], tensor) for name, tensor in base.items())
    assert load_slim(finished / "slim" / "group-2").about["provenance"]["finetuned_steps"] == 2


def test_whole_groups_are_stored_once_and_the_manifest_counts_them_once(finished):
    experts = load_experts(finished / "experts")
    assert experts.networks == (0, 0, 2)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["assembled"]["params"] == experts.stored_params < sum(experts.params)
    rows = {row["model"]: row for row in manifest["metrics"]["rows"]}
    assert rows["experts"]["params"] == rows["experts"]["params_resident"] == experts.stored_params
    assert rows["base"]["params"] == manifest["base"]["params"]
    assert all(row["seconds_alone"] > 0 for row in rows.values())


def test_whole_groups_spend_no_training(finished):
    manifest = json.loads((finished / "manifest.json").read_text())
    assert {row["stage"] for row in manifest["ledger"] if "fine-tuning" in row["stage"]} == {"fine-tuning, group 2"}


@pytest.mark.slow
def test_a_deleted_expert_is_made_again(finished):
    (finished / "experts" / "group-2" / "model.safetensors").unlink()
    recipe = micro(
        groups={"count": 3},
        allocation={"budget": 0.8, "rule": "snr", "floor": 0.3},
        finetune={"only_pruned": True, "train": TRAIN},
    )
    Run(recipe, finished).execute()
    assert load_experts(finished / "experts").networks == (0, 0, 2)


@pytest.mark.slow
def test_only_the_named_groups_are_trained_and_the_rest_share_the_base(tmp_path):
    recipe = micro(
        groups={"cuts": [800]},
        allocation={"budget": 1.0, "rule": "uniform"},
        finetune={"groups": [1], "train": TRAIN},
        evaluation=None,
    )
    Run(recipe, tmp_path).execute()
    experts = load_experts(tmp_path / "experts")
    base = all_tensors(open_base(str(tmp_path / "base.pt")).model)
    same = [all(torch.equal(all_tensors(experts.experts[i])[name], t) for name, t in base.items()) for i in range(2)]
    assert same == [True, False]
    assert [load_slim(tmp_path / "slim" / f"group-{i}").is_whole for i in range(2)] == [True, True]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {row["stage"] for row in manifest["ledger"] if "fine-tuning" in row["stage"]} == {"fine-tuning, group 1"}


def test_training_from_scratch_cannot_leave_groups_out():
    with pytest.raises(InputError, match="from_scratch with only_pruned"):
        FinetuneOptions(from_scratch=True, only_pruned=True)
    with pytest.raises(InputError, match="from_scratch with groups"):
        FinetuneOptions(from_scratch=True, groups=(1,))
    for groups in ([], [2]):
        with pytest.raises(ValueError, match="expected one or more of 0 to 1"):
            micro(finetune={"groups": groups})


@given(
    st.floats(0.52, 0.999),
    st.integers(5, 250),
    st.sampled_from(["linear", "cosine"]),
    st.sampled_from(["auto", "linear", "snr"]),
)
def test_one_specialist_meets_any_budget_and_the_base_stays_whole(budget, steps, kind, rule):
    check_leaves_cleanest(rule)
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": 1000})
    assume(budget >= 1 - 0.5 * (steps - 1) / steps)  # few steps cannot be cut so finely
    groups = specialist_groups(schedule, budget, "ddim", steps)
    made = allocate(groups, schedule, budget, evaluations(schedule, "ddim", steps), rule)
    clean, noisy = made.groups
    assert clean.mac_ratio == 1
    assert noisy.mac_ratio >= 0.5 - 1e-9
    assert np.isclose(made.mean_mac_ratio, budget, atol=1e-9)


def all_samplers():
    return [*SAMPLERS, *(name for name in dir(diffusers) if name.endswith("Scheduler"))]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["linear", "rectified_flow"])
def test_the_base_stays_whole_with_every_sampler(kind):
    """Some evaluate the network twice at a timestep, or at fractional timesteps that are near each other."""
    schedule, taken = NoiseSchedule.from_config({"kind": kind, "num_timesteps": 100}), set()
    for sampler, steps in itertools.product(all_samplers(), (2, 25)):
        try:
            times = np.floor(evaluations(schedule, sampler, steps))
        except InputError:  # it is not for this schedule, or takes other numbers of steps
            continue
        least = 1 - 0.5 * np.count_nonzero(times > times.min()) / len(times)
        taken.add(sampler)
        for budget in (0.6, 0.9):
            if budget < least - 1e-9:
                with pytest.raises(BudgetError) as refused:
                    specialist_groups(schedule, budget, sampler, steps)
                assert refused.value.feasible[0] == pytest.approx(least)
                continue
            groups = specialist_groups(schedule, budget, sampler, steps)
            made = plan_budget(groups, schedule, budget, sampler=sampler, steps=steps)
            clean, noisy = (group.mac_ratio for group in made.groups)
            assert (clean, noisy >= 0.5 - 1e-9) == (1, True), (sampler, steps, budget, noisy)
            assert made.mean_mac_ratio == pytest.approx(budget, abs=1e-9)
    assert {"euler", "heun", "dpm-solver", "unipc"} <= taken


@pytest.mark.parametrize("budget", [0.3, 0.5, 1.0])
def test_a_budget_that_one_specialist_cannot_meet_is_refused_with_the_range(budget):
    with pytest.raises(BudgetError, match=r"expected 0.51 … 0.9999"):
        specialist_groups(NoiseSchedule.linear(1000), budget)


@pytest.mark.slow
def test_a_recipe_makes_the_base_and_one_specialist(tmp_path):
    recipe = micro(
        groups={"experts": "noisy"},
        allocation={"budget": 0.8, "rule": "auto", "steps": 50},
        finetune={"train": TRAIN},
        evaluation=None,
    )
    Run(recipe, tmp_path / "run").execute()
    experts = load_experts(tmp_path / "run" / "experts")
    assert [(group.start, group.stop) for group in experts.groups] == [(0, 591), (591, 1000)]
    base = open_base(str(tmp_path / "run" / "base.pt"))
    assert experts.params[0] == sum(parameter.numel() for parameter in base.model.parameters())
    assert "finetuned_steps" not in experts.slims[0].about["provenance"]


@pytest.mark.parametrize("rule", ["uniform", "measured"])
def test_a_rule_that_would_prune_the_base_beside_a_specialist_is_refused(rule):
    said = f"Got rule {rule} with experts noisy; expected auto, linear or snr"
    with pytest.raises(ValueError, match=said):
        micro(groups={"experts": "noisy"}, allocation={"budget": 0.8, "rule": rule, "steps": 50})
    with pytest.raises(InputError, match=said):
        make_experts(open_base("embedded:digits"), load_images("digits"), experts="noisy", rule=rule)


def test_one_specialist_excludes_other_ways_to_cut():
    with pytest.raises(InputError, match="experts noisy"):
        GroupOptions(method="snr", experts="noisy")


def test_one_call_makes_the_base_and_one_specialist():
    images = load_images("digits")
    pruning = PruneOptions(criterion="magnitude", search=SearchOptions(proposer="uniform"), repair="none")
    tuning = FinetuneOptions(train=TrainOptions(**TRAIN))
    base = open_base("embedded:digits")
    made = make_experts(base, images, experts="noisy", pruning=pruning, finetuning=tuning)
    assert made.macs[0] == plan_budget(made.groups, base.schedule, 0.8).for_model(made.macs[0]).groups[0].target_macs
    assert made.stored_params < 2 * made.params[0]


def test_a_base_is_traced_once_for_all_who_open_its_file_with_the_same_options(finished, monkeypatch):
    traced = Mock(side_effect=Bench.of)
    monkeypatch.setattr(Bench, "of", traced)
    traces, bases = Traces(), [open_base(str(finished / "base.pt")) for _ in range(2)]
    options = PruneOptions(samples=4)
    first, second = (traces.bench(base, options) for base in bases)
    assert traced.call_count == 1
    assert (second.base, second.graph, second.cost, second.macs) == (bases[1], first.graph, first.cost, first.macs)
    traces.bench(bases[0], replace(options, norm_mode="whole"))
    held = traces.bench(bases[0], replace(options, constraints=Constraints(keep=("conv_in",))))
    assert traced.call_count == 3
    assert held.graph is not first.graph
    for _ in range(2):
        traces.bench(replace(bases[0], sha256=""), options)  # a network in memory may be any
    assert traced.call_count == 5
