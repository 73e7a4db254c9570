"""The walk of a practitioner with pictures and a network of their own, from the commands' suggestions alone."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import done
from PIL import Image, ImageDraw

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": [16, 24],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
    "attention_head_dim": 8,
}
SHORT = {
    "groups": "--samples 64 --nodes 10",
    "importance": "--samples 32",
    "prune": "--samples 32 --rounds 2",
    "finetune": "--max-train-steps 10 --train-batch-size 16",
    "sample": "--num-inference-steps 5",
    "evaluate": "--count 320 --num-inference-steps 5",
}
"""Options that make a command take seconds."""


def draw_pictures(folder: Path, count: int) -> None:
    """Colour PNGs of 20×18 pixels in a folder for each class: discs, squares and crosses on plain grounds."""
    rng = np.random.default_rng(0)
    for index in range(count):
        kind = ("crosses", "discs", "squares")[index % 3]
        ground, ink = (tuple(int(value) for value in rng.integers(0, 256, 3)) for _ in range(2))
        picture = Image.new("RGB", (20, 18), ground)
        x, y, side = (int(value) for value in rng.integers((2, 2, 5), (9, 8, 10)))
        pen = ImageDraw.Draw(picture)
        if kind == "discs":
            pen.ellipse((x, y, x + side, y + side), ink)
        elif kind == "squares":
            pen.rectangle((x, y, x + side, y + side), ink)
        else:
            pen.line((x, y, x + side, y + side), ink, 2)
            pen.line((x + side, y, x, y + side), ink, 2)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        picture.save(folder / kind / f"{index:04d}.png")


def suggested(out: str) -> str:
    """The command that the last one suggests."""
    (line,) = re.findall(r"^Next: (prunekit \w+.*)$", out, flags=re.MULTILINE)
    return line


@pytest.mark.slow
def test_two_thousand_colour_pictures_and_an_own_network_become_experts_at_0_6(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    draw_pictures(tmp_path / "pictures", 2000)
    (tmp_path / "unet.json").write_text(json.dumps(CONFIG))
    done(
        "prunekit train --data pictures --config unet.json --max-train-steps 60 --train-batch-size 16 --output base.pt"
    )
    done(f"prunekit groups --method similarity --data pictures --groups 5 {SHORT['groups']}")
    allocated = done("prunekit allocate --budget 0.6 --base base.pt")
    line, walked = suggested(allocated.out), list[str]()
    while line and len(walked) < 10:
        name = line.split()[1]
        walked.append(name)
        out = done(f"{line} {SHORT.get(name, '')}").out
        assert max(map(len, out.splitlines())) <= 80, out
        line = suggested(out) if name != "evaluate" else ""
    assert walked[-1] == "evaluate"
    assert {"prune", "finetune", "assemble"} <= {*walked}
    told = json.loads(Path("allocation.json").read_text())
    steps = [round(group["share"] * told["sampler_steps"]) for group in told["groups"]]
    configs = [json.loads(path.read_text()) for path in sorted(Path("slim").glob("group-*/config.json"))]
    spent = sum(count * config["macs"] for count, config in zip(steps, configs, strict=True)) / sum(steps)
    assert 0.59 <= spent / told["base_macs"] <= 0.6
    done("prunekit report .")
    assert (tmp_path / "report" / "index.html").is_file()
    assert done("prunekit").code == 0
