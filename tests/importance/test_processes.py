"""Any number of processes gives the scores of one."""

import numpy as np
import pytest
import torch.multiprocessing as mp
from denoisers import Apart, Denoiser, PositionsFirst, drawn, made, score, score_in_process

from prunekit.importance import CRITERIA, ImportanceMap


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(score_in_process, (str(folder), 2), nprocs=2)
    return folder


def agree(alone, first, second):
    for group in alone.timestep_groups:
        for name, values in alone.of(group.index).items():
            np.testing.assert_array_equal(first.of(group.index)[name], second.of(group.index)[name])
            np.testing.assert_allclose(first.of(group.index)[name], values, rtol=1e-12, atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [drawn, Apart()], ids=["plain", "drawn"])
@pytest.mark.parametrize("by", CRITERIA)
def test_two_processes_give_the_scores_of_one_and_the_same_on_both(folder, by, loss):
    alone = score(made(Denoiser), by, loss, samples=20, batch_size=3)
    agree(alone, *(ImportanceMap.load(folder / f"{by}-{type(loss).__name__}-{rank}.json") for rank in (0, 1)))


@pytest.mark.slow
def test_processes_agree_to_take_samples_one_by_one_even_where_one_of_them_had_none(folder):
    alone = score(made(PositionsFirst), "fisher", Apart(), samples=4, batch_size=4)
    agree(alone, *(ImportanceMap.load(folder / f"fallback-{rank}.json") for rank in (0, 1)))


def test_sharing_without_processes_is_one_process():
    alone, shared = (score(made(Denoiser), distributed=flag) for flag in (False, True))
    assert alone.records() == shared.records()
