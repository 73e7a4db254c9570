"""Similarity of the optimal denoiser: what it measures, the paper's rule, and the exact partition."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.groups import OptimalDenoiser, Similarity, cut_by_matrix
from prunekit.groups.cut_evidence import Evidence
from prunekit.groups.segmentation import dissimilarity_costs, finely, partition_cost
from prunekit.groups.similarity import calibrated_alpha, measure_similarity, three_stages
from prunekit.schedule import NoiseSchedule

FASHION = Path("/usr/share/datasets/fashion-mnist")
IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
LINEAR = NoiseSchedule.linear(200)


def measured(schedule=LINEAR, **options):
    return Similarity(IMAGES, **{"samples": 12, "nodes": 21, "seed": 0, **options}).measure(schedule)


def test_it_is_the_mean_agreement_of_the_denoiser():
    evidence = measured(samples=3, nodes=5, eta=0.2)
    denoiser, random = OptimalDenoiser(IMAGES), np.random.default_rng(0)
    clean = denoiser.take(random.choice(60, 3, replace=False))
    noise = random.standard_normal(clean.shape)
    signal, spread = LINEAR.signal[evidence.timesteps], LINEAR.noise[evidence.timesteps]
    answers = [denoiser.noise(a * clean + b * noise, a, b) for a, b in zip(signal, spread, strict=True)]
    for i, one in enumerate(answers):
        assert evidence.curves["to_clean"][i] == pytest.approx((np.abs(one - noise) <= 0.2).mean(), abs=1e-6)
        end = (signal[i] * clean + spread[i] * noise - signal[i] * denoiser.mean_image) / spread[i]
        assert evidence.curves["to_noise"][i] == pytest.approx((np.abs(one - end) <= 0.2).mean(), abs=1e-6)
        for j, other in enumerate(answers):
            assert evidence.matrix[i, j] == pytest.approx((np.abs(one - other) <= 0.2).mean(), abs=1e-6)


def test_the_map_is_symmetric_with_ones_on_its_diagonal_and_the_ends_are_like_themselves():
    evidence = measured(NoiseSchedule.edm(200), samples=20)
    assert (np.diagonal(evidence.matrix) == 1).all()
    assert (evidence.matrix == evidence.matrix.T).all()
    assert evidence.matrix.min() >= 0
    assert evidence.curves["to_clean"][0] == 1
    assert evidence.curves["to_noise"][-1] == 1
    assert evidence.curves["to_noise"][0] < 0.5


def test_one_image_makes_every_timestep_alike():
    evidence = Similarity(IMAGES[:1], samples=4, nodes=6).measure(LINEAR)
    assert (evidence.matrix == 1).all()
    assert (evidence.curves["to_clean"] == 1).all()


@given(eta=st.floats(0.001, 1), more=st.floats(1, 5))
@settings(max_examples=15, deadline=None)
def test_a_wider_tolerance_finds_more_alike(eta, more):
    narrow, wide = measured(eta=eta, samples=4), measured(eta=eta * more, samples=4)
    assert (wide.matrix >= narrow.matrix).all()
    assert all((wide.curves[name] >= narrow.curves[name]).all() for name in ("to_clean", "to_noise"))


@pytest.mark.parametrize("kind", ["linear", "cosine", "edm"])
def test_equal_noise_gives_equal_evidence_whatever_the_parametrisation(kind):
    """A schedule and its variance-exploding twin of the same sigmas: only b/a counts."""
    schedule = NoiseSchedule.from_config({"kind": kind, "num_timesteps": 150})
    twin = NoiseSchedule.from_sigmas(schedule.sigma)
    one, other = measured(schedule), measured(twin)
    np.testing.assert_allclose(one.matrix, other.matrix, atol=2e-3)  # sigma is rounded once more: a pixel may tip
    assert Similarity(IMAGES).cut(one, schedule, 4).groups.cuts == Similarity(IMAGES).cut(one, twin, 4).groups.cuts


def test_the_same_seed_is_the_same_evidence_in_any_memory():
    one, again, other = measured(), measured(memory=60_000), measured(seed=1)
    np.testing.assert_allclose(one.matrix, again.matrix, atol=2e-3)
    assert json.dumps(one.to_json()) == json.dumps(measured().to_json())
    assert (one.matrix != other.matrix).any()


def test_three_stages_are_where_the_running_means_fall_below_alpha():
    to_clean = np.array([1.0, 1.0, 1.0, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2])
    to_noise = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.6, 1.0, 1.0, 1.0])
    assert three_stages(to_clean, to_noise, 1.0) == (3, 7)
    assert three_stages(to_clean, to_noise, 0.85) == (4, 6)  # (3 + 0.4)/4 and (3 + 0.6)/4
    assert three_stages(to_clean, to_noise, 0.75) == (4, 6)


def test_an_alpha_without_three_stages_is_refused_with_the_way_out():
    falling, rising = np.linspace(0.9, 0.1, 9), np.linspace(0.1, 0.9, 9)
    with pytest.raises(InputError, match=r"Got alpha 0.95, .*: lower it"):
        three_stages(falling, rising, 0.95)
    with pytest.raises(InputError, match=r"Got alpha 0.4, .*: raise it"):
        three_stages(falling, rising, 0.4)


@given(seed=st.integers(0, 200), alphas=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)))
@settings(max_examples=60, deadline=None)
def test_a_larger_alpha_makes_the_outer_stages_no_larger(seed, alphas):
    random = np.random.default_rng(seed)
    to_clean, to_noise = np.sort(random.uniform(0, 1, 30))[::-1], np.sort(random.uniform(0, 1, 30))
    to_clean[0] = to_noise[-1] = 1.0
    found = []
    for alpha in sorted(alphas):
        try:
            found.append(three_stages(to_clean, to_noise, alpha))
        except InputError:
            return
    assert found[0][0] >= found[1][0]
    assert found[0][1] <= found[1][1]


def test_the_calibrated_alpha_is_the_best_of_the_papers_partitions():
    evidence = measured(NoiseSchedule.edm(200))
    to_clean, to_noise, matrix = (
        finely(part, evidence.timesteps, 200) for part in (*evidence.curves.values(), evidence.matrix)
    )
    costs = dissimilarity_costs(matrix)
    chosen = partition_cost(costs, three_stages(to_clean, to_noise, calibrated_alpha(to_clean, to_noise, costs)))
    for alpha in np.linspace(0.01, 1, 100):
        try:
            cuts = three_stages(to_clean, to_noise, float(alpha))
        except InputError:
            continue
        assert chosen <= partition_cost(costs, cuts) + 1e-6
    with pytest.raises(InputError, match="No alpha leaves three stages"):
        calibrated_alpha(np.ones(5), np.ones(5), np.zeros((6, 6)))


def test_evidence_without_a_map_cannot_be_cut_in_stages():
    schedule = NoiseSchedule.edm(50)
    with pytest.raises(InputError, match="without a map of similarities"):
        Similarity(IMAGES).cut(replace(measured(schedule), matrix=None), schedule, 3)


def test_the_exact_partition_is_no_worse_than_the_papers_rule():
    schedule = NoiseSchedule.edm(200)
    evidence = measured(schedule)
    costs = dissimilarity_costs(finely(evidence.matrix, evidence.timesteps, 200))
    stages = Similarity(IMAGES).cut(evidence, schedule, 3)
    dynamic = Similarity(IMAGES, rule="dynamic").cut(evidence, schedule, 3)
    assert stages.evidence.facts["rule"] == "stages"
    assert dynamic.evidence.facts["rule"] == "dynamic"
    assert partition_cost(costs, dynamic.groups.cuts) <= partition_cost(costs, stages.groups.cuts)


def test_cuts_of_many_timesteps_are_timesteps():
    at = np.array([0, 1999, 3999])
    evidence = Evidence(at, matrix=np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    grouping = cut_by_matrix(evidence, 4000, 2, "gradient")
    (cut,) = grouping.groups.cuts
    assert 2000 < cut < 3999
    assert cut % 4 == 0  # a thousand nodes
    with pytest.raises(InputError, match="need a matrix"):
        cut_by_matrix(Evidence(at), 4000, 2, "gradient")


def test_measuring_draws_again_where_there_are_fewer_images_than_pairs():
    evidence = measure_similarity(OptimalDenoiser(IMAGES[:3]), LINEAR, samples=8, nodes=4)
    assert evidence.facts["images"] == 3


@pytest.mark.parametrize(
    ("options", "count", "said"),
    [
        ({"eta": 0.0}, 3, "eta 0"),
        ({"samples": 0}, 3, "0 samples"),
        ({"nodes": 1}, 3, "1 nodes"),
        ({"seed": -1}, 3, "seed -1"),
        ({"alpha": 0.0}, 3, "Got alpha 0"),
        ({"alpha": 1.5}, 3, "Got alpha 1.5"),
        ({"rule": "kmeans"}, 3, "'kmeans'; expected stages or dynamic"),
        ({"rule": "dynamic", "alpha": 0.9}, 3, "Got alpha with rule dynamic"),
        ({"alpha": 0.9}, 4, "Got 4 timestep groups with rule stages or alpha; expected 3"),
        ({"rule": "stages"}, 2, "expected 3"),
        ({}, 0, "Got 0 timestep groups"),
        ({}, 201, "Got 201 timestep groups"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, count, said):
    with pytest.raises(InputError, match=said):
        Similarity(IMAGES, **options)(LINEAR, count)


@pytest.mark.fashion
@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_sixty_thousand_images_stay_within_the_memory():
    from prunekit.data import load_images

    images = load_images(str(FASHION)).train.images.numpy()
    tracemalloc.start()
    try:
        evidence = Similarity(images, samples=4, nodes=9, memory=64 * 2**20).measure(NoiseSchedule.edm(1000))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert evidence.facts["images"] == 60_000
    assert peak <= 64 * 2**20
    assert evidence.curves["to_clean"][:3].tolist() == [1.0] * 3
    assert evidence.curves["to_noise"][-1] == 1
