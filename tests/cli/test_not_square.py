"""Networks and images that are not square, from training to sampling."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import TINY, done, typed
from PIL import Image

from prunekit.checkpoint import load_base
from prunekit.cli.console import resolution_of
from prunekit.errors import InputError


def test_a_network_of_8_by_12_is_trained_pruned_and_sampled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    for index in range(8):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pics/{index}.png")
    done("prunekit train --data pics --resolution 8x12 --max-train-steps 1 --train-batch-size 2")
    base = load_base("base.pt")
    assert list(base.spec.config["sample_size"]) == [8, 12]
    assert list(base.data["resolution"]) == [8, 12]
    done("prunekit prune base.pt --group 0 --target 0.9 --proposer uniform --samples 8")
    done("prunekit sample slim/group-0 --count 2 --num-inference-steps 2 --output x.npz")
    assert np.load("x.npz")["images"].shape[1:3] == (8, 12)
    refused = typed("prunekit prune base.pt --group 1 --target 0.9 --data pics --resolution 8")
    assert "are 8×8 and the model's sample_size is 8×12" in refused.err


def test_a_config_says_the_size_of_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pics").mkdir()
    for index in range(4):
        Image.new("L", (40, 30), index).save(f"pics/{index}.png")
    Path("model.json").write_text(json.dumps(TINY | {"sample_size": [8, 16]}))
    done("prunekit train --data pics --config model.json --max-train-steps 1 --train-batch-size 2")
    assert list(load_base("base.pt").data["resolution"]) == [8, 16]


def test_a_typed_resolution_is_a_side_or_two():
    assert (resolution_of("64"), resolution_of("32x48"), resolution_of("32×48"), resolution_of(None)) == (
        64,
        [32, 48],
        [32, 48],
        None,
    )
    for wrong in ("", "x", "1x2x3", "-8", "8.5"):
        with pytest.raises(InputError, match="expected a side in pixels, or height and width as in 32x48"):
            resolution_of(wrong)
