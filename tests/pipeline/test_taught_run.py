"""A recipe whose base teaches its experts."""

import pytest
from micro_recipe import Spy, micro

from prunekit._json import read_json
from prunekit.errors import InputError
from prunekit.recipe import DistillationOptions, FinetuneOptions
from prunekit.runs.experts_run import Run
from prunekit.slim import load_slim
from prunekit.steps.bases import open_base
from prunekit.steps.finetuning import finetune_slim


@pytest.mark.slow
def test_the_base_teaches_and_the_ledger_counts_its_passes(tmp_path):
    taught = {"weight": 0.5, "feature_weight": 0.5, "fade": "linear"}
    data = micro().model_dump()
    recipe = micro(finetune={**data["finetune"], "distillation": taught}, evaluation=None)
    run = Run(recipe, tmp_path, Spy())
    manifest = read_json(run.execute())
    rows = {(row["stage"], row["kind"]): row for row in manifest["ledger"]}
    trained = [stage for stage, kind in rows if kind == "training" and stage.startswith("fine-tuning")]
    assert trained
    for stage in trained:
        teacher = rows[stage, "teacher"]
        assert teacher["samples"] == rows[stage, "training"]["samples"]
        assert teacher["macs"] == teacher["samples"] * manifest["base"]["macs"]
        assert teacher["backward_macs"] == 0
    alone = tmp_path / "alone"
    plain = Run(micro(evaluation=None), alone, Spy())
    assert not any(row["kind"] == "teacher" for row in read_json(plain.execute())["ledger"])
    ours, others = (folder / "slim" / "group-0" / "model.safetensors" for folder in (tmp_path, alone))
    assert ours.read_bytes() != others.read_bytes()

    slim = load_slim(tmp_path / "pruned" / "group-0")
    options = FinetuneOptions(distillation=DistillationOptions())
    for teacher, message in ((None, "needs the base"), (open_base("embedded:digits"), "give its own base")):
        with pytest.raises(InputError, match=message):
            finetune_slim(slim, run.images.train, options, teacher=teacher)
