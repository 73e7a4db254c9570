"""What comparisons claim: no more than their errors, their losses and their features support."""

import copy

import numpy as np
import pytest
from comparison_manifest import make_curriculum, make_multistage
from evidence_manifest import make_evidence

from prunekit.report.curriculum_page import curriculum_claim, write_curriculum_report
from prunekit.report.evidence import Evidence, evidence_claim, gap
from prunekit.report.evidence_page import write_evidence_report
from prunekit.report.learning import LearningCurve, share_column
from prunekit.report.multistage import multistage_claim, write_multistage_report
from prunekit.report.wording import clear, unpaired
from prunekit.results.estimate import Estimate


def curriculum(fids, losses=((0.085, 0.085), (0.085, 0.085)), seeds=2, **look):
    """Two trainings with these final FIDs and losses, one of each a seed."""
    manifest = make_curriculum()
    rows = [row for row in manifest["curriculum"] if row["seed"] < seeds]
    for row in rows:
        place = 0 if row["entry"] == "uniform" else 1
        row["curve"][-1] |= {"fid": fids[place][row["seed"]], "loss": losses[place][row["seed"]], **look}
    return {**manifest, "curriculum": rows}


def test_trainings_that_ended_early_are_not_called_equal(write_run):
    manifest = make_multistage()
    folder = write_run(manifest)
    write_multistage_report(folder)
    assert "at equal training MACs" in (folder / "report" / "multistage.md").read_text()
    assert multistage_claim(manifest).startswith("At equal training MACs ")
    for row in manifest["multistage"]:
        if row["network"] != "unified":
            row["curve"][-1]["training_macs"] /= 2
    manifest["config"]["multistage"]["early_stop"] = {"every": 100, "patience": 3, "improvement": 0.002}
    folder = write_run(manifest)
    write_multistage_report(folder)
    page = (folder / "report" / "multistage.md").read_text()
    assert "equal training MACs" not in page
    assert "Stages were stopped early. Of these MACs they spent: unified 1.00, " in page
    assert multistage_claim(manifest).startswith("With as many training MACs or fewer ")


def test_trainings_that_cost_more_are_not_said_to_have_cost_less(write_run):
    manifest = make_multistage()
    for row in manifest["multistage"]:
        if row["network"] != "unified":
            row["curve"][-1]["training_macs"] *= 1.11
    folder = write_run(manifest)
    write_multistage_report(folder)
    page = (folder / "report" / "multistage.md").read_text()
    assert "equal training MACs" not in page
    assert " with about " in page
    assert "at most" not in page.split("Of these MACs they spent: unified 1.00, ")[0]
    assert multistage_claim(manifest).startswith("With different training MACs ")


def test_differences_are_paired_by_seed():
    """Each seed is better by nearly the same, while the seeds themselves differ by more."""
    claim = curriculum_claim(curriculum([(0.5, 0.9), (0.402, 0.798)]))
    assert (
        "the one alternative is speed, min-snr: FID (features: digits-cnn, n = 512) is 0.600 ± 0.198 against" in claim
    )
    assert "0.700 ± 0.200 of uniform: better, difference −0.100 ± 0.002 over the seeds" in claim
    assert "; it reaches the latter after" in claim


def test_two_seeds_make_little_clear():
    """Ten standard errors of two seeds, whose interval is 12.7 of them wide to each side."""
    claim = curriculum_claim(curriculum([(0.5, 0.9), (0.41, 0.79)]))
    assert "unclear, the difference −0.10 ± 0.01 over the seeds may be chance (95 % interval −0.227 … +0.027)" in claim


def test_seeds_that_differ_are_not_paired():
    manifest = curriculum([(0.5, 0.9), (0.41, 0.79)])
    for row in manifest["curriculum"][2:]:
        row["seed"] += 5
    claim = curriculum_claim(manifest)
    assert "unclear, the difference −0.10 ± 0.28 over the seeds may be chance (95 % interval −1.29 … +1.09)" in claim


def test_within_the_error_nothing_is_reached():
    claim = curriculum_claim(curriculum([(0.5, 0.5), (0.3, 0.6)]))
    assert "unclear, the difference −0.05 ± 0.15 over the seeds may be chance (95 % interval −1.96 … +1.86)." in claim
    assert "reach" not in claim


def test_one_seed_claims_nothing():
    claim = curriculum_claim(curriculum([(0.5,), (0.3,)], [(0.085,), (0.085,)], seeds=1))
    assert claim.endswith("unclear, since one seed gives no error of the difference −0.20.")
    assert "reach" not in claim


def test_a_loss_that_says_something_else_is_said():
    claim = curriculum_claim(curriculum([(0.5, 0.5), (0.3, 0.31)], [(0.085, 0.085), (0.087, 0.0871)]))
    assert claim.index("better, difference −0.20") < claim.index("held-out loss is") < claim.index("worse, difference")


def test_a_far_worse_loss_leads():
    claim = curriculum_claim(curriculum([(0.5, 0.5), (0.3, 0.31)], [(0.085, 0.085), (0.17, 0.171)]))
    assert "by FID only, and its higher loss contradicts that, so no gain is claimed: held-out loss is 0.17" in claim


@pytest.mark.parametrize(
    ("look", "said"),
    [
        ({"count": 16}, "is not part of this claim: 16 generated images are too few; with fewer than 320"),
        ({"features": {"name": "fashion-cnn"}}, "it is not known that fashion-cnn suits these pictures"),
        ({"features": None, "no_features": "unknown pictures."}, "No FID was measured: unknown pictures."),
    ],
)
def test_without_trustworthy_fid_the_loss_decides(look, said):
    losses = [(0.085, 0.085), (0.08, 0.0801)]
    manifest = curriculum([(0.5, 0.5), (0.3, 0.31)], losses, **look)
    if "features" in look and look["features"] is None:
        for row in manifest["curriculum"]:
            for one in row["curve"]:
                one |= {**look, "fid": None}
    claim = curriculum_claim(manifest)
    assert "held-out loss is 0.08005 ± 0.00005 against 0.08500 ± 0.00000 of uniform: better" in claim
    assert said in claim
    assert "FID 0.3" not in claim


def test_networks_for_stages_without_fid_have_a_page(write_run):
    manifest = make_multistage()
    for row in manifest["multistage"]:
        for look in row["curve"]:
            look |= {"fid": None, "features": None, "no_features": "unknown pictures."}
    assert "No FID was measured: unknown pictures." in multistage_claim(manifest)
    report = write_multistage_report(write_run(manifest)).parent
    assert {path.name for path in report.glob("pareto_*")} == {"pareto_loss.png"}
    page = (report / "index.html").read_text()
    assert "share to its FID" not in page
    assert "nan" not in page.lower().split()


def test_ways_to_train_without_fid_have_a_page(write_run):
    manifest = make_curriculum()
    for row in manifest["curriculum"]:
        for look in row["curve"]:
            look |= {"fid": None, "features": None, "no_features": "unknown pictures."}
    page = write_curriculum_report(write_run(manifest)).read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert page.count("No FID was measured: unknown pictures.") >= 2


# experts beside baselines


def evidence(fid=2.1, change=-0.01, seeds=(0, 1, 2), **metrics):
    """The headline with these FIDs around a mean, and a loss that differs from the base's by a share of it."""
    manifest = make_evidence(seeds)
    base = next(row for row in manifest["evidence"] if row["entry"] == "base")
    for row in manifest["evidence"]:
        if row["entry"] == "experts 0.8":
            row |= {"fid": fid + 0.01 * row["seed"], "loss": base["loss"] * (1 + change + 0.0001 * row["seed"])}
    manifest["metrics"] |= metrics
    return manifest


def test_experts_whose_loss_agrees_are_claimed_by_fid_alone():
    assert "loss" not in evidence_claim(evidence())


def test_experts_whose_loss_disagrees_are_claimed_with_both():
    claim = evidence_claim(evidence(change=0.01))
    assert claim.index("0.390 ± 0.006 better") < claim.index("the held-out loss of experts 0.8") < claim.index("worse")


def test_experts_whose_loss_is_far_worse_lead_with_the_contradiction():
    claim = evidence_claim(evidence(change=1.0))
    assert "two measures contradict each other, so no gain is claimed: the held-out loss of experts 0.8 is" in claim


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"count": 100}, "is not part of this claim: 100 generated images are too few"),
        ({"features": {"name": "fashion-cnn", "fit": {"distance": 60.0, "limit": 2.5}}}, "suits these pictures"),
    ],
)
def test_experts_are_not_claimed_by_fid_that_says_nothing(metrics, said):
    claim = evidence_claim(evidence(**metrics))
    assert "the held-out loss of experts 0.8 is" in claim
    assert said in claim
    assert "(2.1" not in claim


def test_one_fine_tuning_seed_has_the_error_of_a_paired_bootstrap():
    manifest = evidence(seeds=(0,))
    assert "is not clearly better than the base's, by 0.4000 (one seed, no standard error)" in evidence_claim(manifest)
    for row in manifest["evidence"]:
        if row["entry"] != "base":
            row["fid_difference"] = {"mean": row["fid"] - 2.5, "se": 0.05}
    said = "is 0.40 ± 0.05 better than the base's (experts 0.8 has one seed, whose spread is not in the error) (2.100"
    assert said in evidence_claim(manifest)
    found = Evidence.from_manifest(manifest)
    assert gap(found.entries["experts 0.8"], found.base, "fid").se == pytest.approx(0.05)


def test_the_error_against_the_base_is_at_least_that_of_the_images():
    manifest = evidence()
    for row in manifest["evidence"]:
        row["fid_difference"] = {"mean": 0.0, "se": 0.3}
    assert "not clearly better than the base's, by 0.39 ± 0.30" in evidence_claim(manifest)


@pytest.mark.slow
def test_experts_without_fid_have_a_page(write_run, manifest):
    found = copy.deepcopy(evidence(features=None, no_features="unknown pictures."))
    for row in found["evidence"]:
        row |= {"fid": None, "kid": None}
    claim = evidence_claim(found)
    assert claim.endswith("No FID was measured: unknown pictures.")
    report = write_evidence_report(write_run({**found, "method": manifest})).parent
    assert {path.name for path in report.glob("pareto_*")} == {"pareto_loss.png"}
    text = (report / "evidence.md").read_text()
    assert "pareto_fid" not in text
    assert "held-out loss of experts 0.8" in text
    page = (report / "index.html").read_text().replace("\N{NO-BREAK SPACE}", " ")
    assert "No FID was measured: unknown pictures." in page
    assert "nan" not in page.lower().split()


def test_a_curve_equal_to_the_rivals_is_not_sooner():
    """The rival may reach its final value before its end, where its curve rises later."""
    macs, losses = np.array([[1.0, 2.0, 3.0]]), np.array([[0.3, 0.5, 0.4]])
    rival, equal = (LearningCurve(title, macs, losses, losses) for title in ("rival", "equal"))
    column = share_column("share", [rival, equal], rival, "fids")
    assert [column.text({"place": place}) for place in (0, 1)] == ["0.33 (1.0×)", "0.33 (1.0×)"]


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_of_differences_that_are_chance_one_of_twenty_is_called_clear(seeds):
    draws = np.random.default_rng(0).normal(size=(2000, seeds))
    assert np.mean([clear(Estimate.over(draw)) for draw in draws]) == pytest.approx(0.05, abs=0.015)
    both = zip(draws, np.random.default_rng(1).normal(scale=2, size=(2000, seeds + 1)), strict=True)
    found = np.mean([clear(unpaired(Estimate.over(one), Estimate.over(other))) for one, other in both])
    assert found == pytest.approx(0.05, abs=0.025)
