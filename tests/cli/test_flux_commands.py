"""The commands of docs/pipelines.md for Flux, on a tiny one: each next line works, and samples are measured as tokens."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import done
from PIL import Image
from tiny_pipelines import saved_pipeline

FEW = {
    "prune": "--samples 8 --proposer oneshot",
    "finetune": "--max-train-steps 2 --train-batch-size 4 --timestep-sampler logit-normal",
    "evaluate": "--count 8 --seeds 1 --loss-samples 16 --num-inference-steps 3",
}


@pytest.mark.slow
def test_each_next_line_for_flux_works_up_to_the_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved_pipeline("flux", tmp_path).rename("flux")
    Path("pictures").mkdir()
    rows = []
    for row in range(30):
        shades = np.random.default_rng(row).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(shades).save(f"pictures/{row}.png")
        rows.append(json.dumps({"file_name": f"{row}.png", "text": ["a cat", "some dog"][row % 2]}))
    Path("pictures/metadata.jsonl").write_text("\n".join(rows))
    done("prunekit encode flux pictures --output data --resolution 32")
    line = "prunekit allocate --budget 0.8 --base flux --data data --sampler pipeline --num-inference-steps 28"
    typed = []
    while typed[-1:] != ["evaluate"]:
        typed.append(shlex.split(line)[1])
        told = done(f"{line} {FEW.get(typed[-1], '')}")
        line = next(one for one in told.out.splitlines() if one.startswith("Next: ")).removeprefix("Next: ")
    assert typed == ["allocate", "prune", "finetune", "assemble", "evaluate"]
    groups = json.loads(Path("allocation.json").read_text())["groups"]
    assert groups[4]["share"] > groups[0]["share"]  # the pipeline shifts its steps toward the noise
    found = json.loads(Path("evaluation.json").read_text())
    assert len(found["losses"]) == 5
