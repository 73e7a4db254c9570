"""The figures of a run, measured anew, and their publication."""

import copy
import html
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_recipe import STAGES, micro
from torch import Tensor, nn

from prunekit._files import sha256_file, write_json
from prunekit._json import read_json
from prunekit.checkpoint import load_base, save_base
from prunekit.cost import count_macs
from prunekit.data import load_images
from prunekit.errors import FileFormatError, InputError
from prunekit.nets import load_experts
from prunekit.recipe import PruneOptions, Recipe
from prunekit.report import read_run
from prunekit.report.cost_tables import cost_sentence
from prunekit.report.wording import large_text, short_ratio
from prunekit.runs import publishing
from prunekit.runs.experts_run import Run
from prunekit.runs.publishing import publish
from prunekit.steps.bases import open_base
from prunekit.steps.bench import Bench, prune_group, score_groups
from prunekit.steps.budgets import cut_groups, evaluations
from prunekit.steps.sample_quality import measure_losses
from prunekit.steps.setting import Setting
from prunekit.steps.spending import spent_on_search
from prunekit.training import DenoisingObjective, Tally


@pytest.fixture(scope="module")
def manifest(finished: Path) -> dict[str, Any]:
    return read_json(finished / "manifest.json")


def test_experts_meet_their_targets_when_measured_anew(finished, manifest):
    experts, base = load_experts(finished / "experts"), load_base(finished / "base.pt")
    inputs = base.spec.example_inputs()
    full = count_macs(base.model, inputs)
    assert (manifest["base"]["macs"], manifest["base"]["params"]) == (full.macs, full.params)
    assert manifest["base"]["sha256"] == sha256_file(finished / "base.pt")
    for entry, target in zip(manifest["experts"], manifest["allocation"]["groups"], strict=True):
        measured = count_macs(experts.expert(entry["group"]), inputs)
        assert (entry["macs"], entry["params"]) == (measured.macs, measured.params)
        assert entry["target_macs"] == target["target_macs"] == int(target["mac_ratio"] * full.macs + 1e-9)
        assert 0 <= entry["target_macs"] - measured.macs <= 0.01 * full.macs
        kept = {name: after for name, (_, after) in entry["widths"].items()}
        assert any(after < before for before, after in entry["widths"].values())
        assert min(kept.values()) >= 1


def test_the_assembled_means_are_those_of_the_samplers_steps(finished, manifest):
    allocation = manifest["allocation"]
    steps = evaluations(load_base(finished / "base.pt").schedule, allocation["sampler"], allocation["sampler_steps"])
    experts = load_experts(finished / "experts")
    macs = [manifest["experts"][int(t >= 500)]["macs"] for t in steps]
    assert len(macs) == 3
    assert manifest["assembled"]["mean_macs"] == pytest.approx(np.mean(macs), rel=1e-12)
    assert manifest["assembled"]["mean_mac_ratio"] == pytest.approx(np.mean(macs) / manifest["base"]["macs"], rel=1e-12)
    assert manifest["assembled"]["mean_mac_ratio"] <= manifest["config"]["allocation"]["budget"]
    assert manifest["assembled"]["params"] == sum(p.numel() for p in experts.parameters())


def test_the_ledger_adds_up(finished, manifest):
    rows = {(row["stage"], row["kind"]): row for row in manifest["ledger"]}
    assert len(rows) == len(manifest["ledger"]) == 9
    base, experts = manifest["base"]["macs"], manifest["experts"]

    def spent(stage: str, kind: str) -> tuple[int, int, int, int]:
        row = rows[stage, kind]
        assert row["forward_macs"] + row["backward_macs"] == row["macs"]
        return row["samples"], row["forward_macs"], row["backward_macs"], row["macs"]

    assert spent("importance", "importance") == (32, 32 * base, 64 * base, 96 * base)
    for i, expert in enumerate(experts):
        lines = (finished / f"search/group-{i}.jsonl").read_text().splitlines()
        measured = [entry["macs"] for entry in map(json.loads, lines) if "steps" in entry and "chosen" not in entry]
        assert len(measured) > 2
        # 16 draws for every candidate, and for three fits of repairs: the proxy's and the last one's, and that in the expert
        macs = 16 * (sum(measured) + 2 * base + expert["macs"])
        assert spent(f"search, group {i}", "search") == (16 * (len(measured) + 3), macs, 0, macs)
        tuning, macs = f"fine-tuning, group {i}", 32 * expert["macs"]
        assert spent(tuning, "training") == (32, macs, 2 * macs, 3 * macs)
        assert spent(tuning, "ema")[0::3] == (0, 4 * expert["params"])
    own = sum(expert["macs"] for expert in experts)
    macs = 32 * (2 * base + own + own)  # the base, the pruned networks and the experts on both groups
    assert spent("evaluation", "evaluation") == (32 * 2 * 3, macs, 0, macs)
    macs = round(16 * 3 * (base + manifest["assembled"]["mean_macs"]))
    assert spent("evaluation", "sampling") == (16 * 3 * 2, macs, 0, macs)


def test_the_embedded_bases_own_training_is_known(manifest, finished):
    """From its manifest, which is shipped beside it: 6,000 steps of 128."""
    macs = 3 * 768_000 * manifest["base"]["macs"]
    assert manifest["base"]["training"] == {"samples": 768_000, "macs": macs, "known_from": "its own run"}
    made = sum(row["macs"] for row in manifest["ledger"] if row["kind"] in ("importance", "search", "training"))
    sentence = cost_sentence(read_run(finished))
    assert f"took {large_text(made)} MACs, search and scoring included: {short_ratio(made / macs)} of the" in sentence
    assert sentence in html.unescape((finished / "report" / "index.html").read_text()).replace(
        "\N{NO-BREAK SPACE}", " "
    )


@pytest.mark.slow
def test_the_ledger_counts_what_really_goes_through_networks(finished, manifest, monkeypatch):
    """A search and the scores before it, with every pass counted where it happens."""
    recipe, base = micro(), open_base("embedded:digits")
    assert recipe.prune is not None
    bench, images, passes = Bench.of(base), load_images("digits").train, list[tuple[int, int]]()
    original = DenoisingObjective.per_sample

    def counted(self: Any, model: nn.Module, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        macs = count_macs(copy.deepcopy(model).requires_grad_(False), base.spec.example_inputs()).macs
        passes.append((len(timesteps), len(timesteps) * macs))
        return original(self, model, clean, noise, timesteps)

    monkeypatch.setattr(DenoisingObjective, "per_sample", counted)
    groups, tally = cut_groups(base.schedule, 2), Tally()
    scores = score_groups(bench, images, groups, recipe.prune, tally)
    assert (tally.forward, tally.backward) == (sum(samples for samples, _ in passes), 32)
    passes.clear()
    target = manifest["experts"][1]["target_macs"]
    slim, result = prune_group(bench, images, scores, groups[1], target, recipe.prune)
    (row,) = spent_on_search("search", recipe.prune, result, slim, bench.macs)
    assert (row.samples, row.macs) == tuple(map(sum, zip(*passes, strict=True)))


@pytest.mark.parametrize(
    ("criterion", "forward", "backward"), [("magnitude", 0, 0), ("activation", 32, 0), ("taylor", 32, 32)]
)
def test_importance_costs_what_its_criterion_looks_at(criterion, forward, backward):
    base, tally = open_base("embedded:digits"), Tally()
    options = PruneOptions(criterion=criterion, samples=16, batch_size=16)
    score_groups(Bench.of(base), load_images("digits").train, cut_groups(base.schedule, 2), options, tally)
    assert (tally.forward, tally.backward) == (forward, backward)
    assert tally.row("importance", "importance", 5).macs == 5 * (forward + 2 * backward)


def test_losses_are_paired(manifest):
    assert [row["group"] for row in manifest["losses"]] == [0, 1]
    for row in manifest["losses"]:
        assert row["difference"]["mean"] == pytest.approx(row["expert"]["mean"] - row["base"]["mean"], rel=1e-6)
        assert 0 < row["difference"]["se"] < (row["expert"]["se"] ** 2 + row["base"]["se"] ** 2) ** 0.5
        assert row["pruned"]["mean"] != row["expert"]["mean"]


@pytest.mark.parametrize("samples", [2, 32, 300])
def test_as_many_losses_are_drawn_as_the_recipe_says(finished, samples):
    counts: list[int] = []

    class Zero(nn.Module):
        def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
            counts.append(len(noisy))
            return torch.zeros_like(noisy)

    recipe, base = micro(evaluation__loss_samples=samples), load_base(finished / "base.pt")
    assert recipe.allocation is not None
    assert recipe.evaluation is not None
    images = load_images("digits")
    setting = Setting(images, cut_groups(base.schedule, 2), base.parameterization, recipe.allocation, recipe.evaluation)
    rows = measure_losses(setting, {"base": Zero()})
    assert sum(counts) == 2 * samples
    assert [row.base.mean for row in rows] == pytest.approx([1.0, 1.0], abs=0.5)  # the noise's own variance


def test_metrics_say_what_was_compared(finished, manifest):
    metrics = manifest["metrics"]
    assert (metrics["count"], metrics["steps"], metrics["seeds"], metrics["sampler"]) == (16, 3, [0], "ddim")
    assert [row["model"] for row in metrics["rows"]] == ["base", "experts"]
    base, experts = metrics["rows"]
    assert (base["mac_ratio"], base["mean_macs"]) == (1.0, manifest["base"]["macs"])
    assert experts["mac_ratio"] == pytest.approx(manifest["assembled"]["mean_mac_ratio"])
    assert all(row["fid"]["mean"] > 0 and row["fid"]["se"] is None for row in metrics["rows"])
    images = [np.load(finished / f"samples/{name}.npz")["images"] for name in ("base", "experts")]
    assert [(image.shape, image.dtype) for image in images] == [((4, 8, 8, 1), np.uint8)] * 2
    assert not np.array_equal(*images)


def test_the_seed_of_a_base_is_that_of_its_own_training(finished, tmp_path):
    base = load_base(finished / "base.pt")
    save_base(replace(base, provenance={**base.provenance, "seed": 3}), tmp_path / "other.pt")
    Run(micro().with_base(str(tmp_path / "other.pt")).only(), tmp_path / "run").make_all()
    assert read_json(tmp_path / "run" / "manifest.json")["seeds"]["base"] == 3


def test_the_manifest_says_what_made_it(manifest):
    assert manifest["recipe"] == "micro"
    assert Recipe.model_validate(manifest["config"]) == micro()
    assert manifest["seeds"] == {"base": 0, "calibration": 0, "finetune": 0, "sampling": [0]}
    assert (
        manifest["versions"]["torch"] == torch.__version__.split("+")[0]
        or torch.__version__ in manifest["versions"]["torch"]
    )
    assert set(manifest["seconds"]) == set(STAGES)


def test_the_report_is_there(finished):
    page = (finished / "report" / "index.html").read_text()
    assert "micro" in page
    assert (finished / "report" / "table.csv").is_file()


# publishing


def test_results_are_published_without_weights(finished, tmp_path, monkeypatch):
    target = publish(finished, tmp_path / "reports")
    assert target == tmp_path / "reports" / "micro"
    assert {path.name for path in target.iterdir()} == {
        "manifest.json",
        "groups.json",
        "allocation.json",
        "importance.json",
        "samples",
        "report",
    }
    assert (target / "report" / "index.html").is_file()
    assert (target / "manifest.json").read_bytes() == (finished / "manifest.json").read_bytes()
    suffixes = {path.suffix for path in target.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".npz", ".html", ".png", ".csv", ".md"}
    (target / "report" / "seconds.csv").write_text("from an earlier time")
    monkeypatch.setattr(publishing, "report_writer", lambda manifest: lambda folder: folder)
    publish(finished, tmp_path / "reports")
    assert not (target / "report").exists()
    (target / "samples" / "mine.npz").write_text("mine")
    with pytest.raises(InputError, match=r"holds an earlier published run and also samples/mine\.npz"):
        publish(finished, tmp_path / "reports")
    assert (target / "samples" / "mine.npz").read_text() == "mine"


@pytest.mark.parametrize("name", ["../elsewhere", ".hidden", "", "a/b"])
def test_a_manifest_cannot_choose_where_it_is_published(tmp_path, manifest, name):
    write_json(tmp_path / "run" / "manifest.json", manifest | {"recipe": name})
    with pytest.raises(FileFormatError, match="cannot be a folder"):
        publish(tmp_path / "run", tmp_path / "reports")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
