"""Commands that trace a network tell on standard error what is being done, once that takes long."""

import pytest
from command_line import TINY, done
from diffusers import UNet2DModel

STEPS = ["following UNet2DModel through", "trying all channel groups"]


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    UNet2DModel.from_config(TINY).save_pretrained("model")


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    "line",
    [
        "prunekit importance model --criterion magnitude --output scores.npz",
        "prunekit prune embedded:digits --group 3 --target 0.8 --samples 16 --proposer oneshot",
    ],
)
def test_steps_are_told(line, monkeypatch):
    monkeypatch.setattr("prunekit.graph.deadline._PATIENCE", 0.0)
    told = done(line)
    lines = [one.removeprefix("prunekit: ").split(" (")[0] for one in told.err.splitlines()]
    assert [one for one in lines if one in STEPS] == STEPS
    assert not any(step in told.out for step in STEPS)
