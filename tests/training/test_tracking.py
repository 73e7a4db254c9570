"""Losses, learning rates and images go to accelerate's trackers by name, and to trackers of one's own."""

import accelerate.tracking
import pytest
import torch
from accelerate.tracking import GeneralTracker
from tiny_training import OPTIONS, tiny_run

from prunekit.errors import InputError
from prunekit.training import Progress
from prunekit.training.tracking import open_tracking


class Own(GeneralTracker):
    """Keeps all that it is given."""

    name = "own"
    requires_logging_directory = False

    def __init__(self):
        super().__init__(_blank=True)
        self.rows, self.config, self.pictures, self.finished = [], None, {}, False

    @property
    def tracker(self):
        return self.rows

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.rows.append((step, values))

    def log_images(self, values, step=None, **kwargs):
        self.pictures.update(values)

    def finish(self):
        self.finished = True


def test_tensorboard_gets_every_report_and_images(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reported: list[Progress] = []
    tracking = open_tracking("tensorboard", "tiny", tmp_path / "logs", learning_rate=OPTIONS.learning_rate_at)
    result = tiny_run(report=tracking.reporter(reported.append))
    tracking.images("samples", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 3)
    tracking.finish()
    assert len(reported) == len(result.losses)
    events = event_accumulator.EventAccumulator(str(tmp_path / "logs" / "tiny")).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in scalars] == [step for step, _ in result.losses]
    assert [value for _, value in scalars] == pytest.approx([loss for _, loss in result.losses])
    rates = [event.value for event in events.Scalars("lr")]
    assert rates == pytest.approx([OPTIONS.learning_rate_at(step - 1) for step, _ in result.losses])
    assert len(events.Scalars("images_per_second")) == len(reported)
    assert events.Tags()["images"]


def test_a_tracker_of_one_s_own_gets_options_losses_and_images():
    own = Own()
    tracking = open_tracking(own, "tiny", config={"steps": 3, "where": None})
    result = tiny_run(report=tracking.reporter())
    tracking.images("samples", torch.zeros(2, 3, 8, 4, dtype=torch.uint8), 3)
    tracking.finish()
    assert own.config == {"steps": 3, "where": "None"}
    assert [(step, values["loss"]) for step, values in own.rows] == result.losses
    assert own.pictures["samples"].shape == (2, 8, 4, 3)
    assert own.finished


def test_several_trackers_get_the_same(tmp_path):
    first, second = Own(), Own()
    open_tracking([first, second], "tiny").reporter()(Progress(1, 2, 0.5, 10.0))
    assert first.rows == second.rows == [(1, {"loss": 0.5, "images_per_second": 10.0})]


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(InputError, match=r"'tensorbord'.*tensorboard.*wandb"):
        open_tracking("tensorbord", "tiny")


def test_a_tracker_that_is_not_installed_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    for name, package in (("wandb", "wandb"), ("comet_ml", "comet-ml")):
        with pytest.raises(InputError, match=f"pip install {package}`"):
            open_tracking(name, "tiny", tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
