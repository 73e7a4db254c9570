"""Runs track their trainings and samples where the recipe or the user asks for it, and make no stage again for that."""

import pytest

from prunekit.errors import InputError
from prunekit.recipe import Recipe
from prunekit.runs.experts_run import Run

DATA = {
    "name": "tracked",
    "base": {
        "model": {
            "class": "UNet2DModel",
            "config": {
                "sample_size": 8,
                "in_channels": 1,
                "out_channels": 1,
                "layers_per_block": 1,
                "block_out_channels": [8, 16],
                "down_block_types": ["DownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "UpBlock2D"],
                "norm_num_groups": 4,
            },
        },
        "train": {"steps": 2, "batch_size": 4},
    },
}


def test_a_run_is_tracked_in_its_folder_and_kept_without_tracking(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    recipe = Recipe.model_validate(DATA | {"tracking": {"report_to": "tensorboard"}})
    Run(recipe, tmp_path).execute()
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "tracked-base")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2]
    stages = []

    class Observer:
        def stage(self, name, kept):
            stages.append((name, kept))

        def progress(self, *_):
            pass

    Run(Recipe.model_validate(DATA), tmp_path, Observer()).execute()
    assert stages == [("base", True)]


def test_a_recipe_names_local_trackers_only_and_the_user_any(tmp_path):
    with pytest.raises(Exception, match="wandb"):
        Recipe.model_validate(DATA | {"tracking": {"report_to": "wandb"}})
    recipe = Recipe.model_validate(DATA).tracked_by("nothing-known")
    with pytest.raises(InputError, match="nothing-known"):
        Run(recipe, tmp_path).execute()
