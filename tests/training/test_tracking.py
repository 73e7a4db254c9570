import sys

import pytest
from tiny_training import tiny_run

from prunekit.errors import InputError
from prunekit.training import Progress
from prunekit.training.tracking import with_tensorboard


def test_tensorboard_gets_every_report(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reported: list[Progress] = []
    folder = tmp_path / "logs"
    result = tiny_run(report=with_tensorboard(reported.append, folder))
    assert len(reported) == len(result.losses)
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in scalars] == [step for step, _ in result.losses]
    assert [value for _, value in scalars] == pytest.approx([loss for _, loss in result.losses])
    assert len(events.Scalars("images_per_second")) == len(reported)


def test_without_a_folder_nothing_is_tracked():
    report = [].append
    assert with_tensorboard(report, None) is report


def test_tensorboard_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"prunekit\[tracking\]"):
        with_tensorboard(print, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()
