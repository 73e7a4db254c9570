"""Commands find the images that a model was trained on, and its files do not say where these lie."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, done, listing, typed

from prunekit.slim import load_slim

STEP = "--max-train-steps 1 --train-batch-size 2"


@pytest.mark.slow
def test_from_training_to_fine_tuning_without_naming_the_images_again(tmp_path, monkeypatch):
    images, work = tmp_path / "zaphod" / "pics.npz", tmp_path / "work"
    for folder in (images.parent, work):
        folder.mkdir()
    np.savez(images, images=np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8))
    monkeypatch.chdir(work)
    Path("model.json").write_text(json.dumps(TINY))
    done(f"prunekit train --data {images} --config model.json {STEP}")
    done("prunekit prune base.pt --group 0 --target 0.9 --proposer oneshot --samples 8")
    done(f"prunekit finetune slim/group-0 {STEP}")
    about = load_slim("slim/group-0").about["data"]
    assert (about["source"], about["resolution"], len(about["sha256"])) == ("pics.npz", 8, 64)
    files = [path for path in work.rglob("*") if path.is_file() and ".prunekit" not in path.parts]
    assert not [path for path in files if b"zaphod" in path.read_bytes()]
    assert ".prunekit" not in {path.name for path in (work / "slim").rglob("*")}

    shutil.move(images, tmp_path / "moved.npz")
    before = listing(work)
    refused = typed(f"prunekit finetune slim/group-0 {STEP}")
    assert refused.code == 2
    assert "pics.npz with SHA-256" in refused.sentence
    assert refused.sentence.endswith("name them by --data.")
    assert listing(work) == before
    done(f"prunekit finetune slim/group-0 --data {tmp_path}/moved.npz {STEP}")
    done(f"prunekit finetune slim/group-0 {STEP}")  # the new place is known now
