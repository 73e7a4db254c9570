"""What commands suggest for networks of other programs, and for what is there already; nothing that was trained is lost."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TINY, done, listing, typed
from diffusers.models.unets.unet_2d import UNet2DModel
from PIL import Image
from safetensors.torch import save_file

from prunekit.cli.next_steps import (
    after_allocate,
    after_encode,
    after_importance,
    after_latency,
    after_recover,
    after_sensitivity,
)
from prunekit.schedule import NoiseSchedule
from prunekit.steps.budgets import cut_groups

ASKED = "--criterion magnitude --proposer uniform --repair none"
FAST = f"{ASKED} --samples 4"
SHORT = "--max-train-steps 1 --train-batch-size 2"


def following(out: str) -> str:
    """The command that a command suggests."""
    return re.findall(r"^Next: (.*)$", out, re.MULTILINE)[0]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a diffusers network, the same as a bare state dict, and pictures, in which the test stands."""
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet2DModel(**{key: value for key, value in TINY.items() if key != "_class_name"})
    network.save_pretrained("network")
    save_file(network.state_dict(), "own.safetensors")
    Path("own.json").write_text(json.dumps(TINY))
    Path("pictures").mkdir()
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(f"pictures/{index}.png")
    return tmp_path


def test_the_images_that_prune_was_given_are_found_by_later_commands(desk):
    done("prunekit groups --groups 2")
    line = following(done("prunekit allocate --budget 0.8 --base network").out)
    assert line == "prunekit prune network --data IMAGES"
    line = following(done(line.replace("IMAGES", "pictures") + f" {FAST}").out)
    assert line == "prunekit finetune slim"
    line = following(done(f"{line} {SHORT}").out)
    assert line == "prunekit assemble slim"
    line = following(done(line).out)
    assert line.startswith("prunekit evaluate experts --base network")
    done(f"{line} --count 4 --seeds 1 --loss-samples 4 --num-inference-steps 2")
    sample = following(done("prunekit cost experts").out)
    assert sample == "prunekit sample experts"
    done(f"{sample} --count 2 --num-inference-steps 2")
    assert following(done("prunekit cost experts").out) == line


def test_prune_is_suggested_where_there_is_an_allocation_and_with_the_images_that_it_needs(desk):
    assert after_encode(Path("pipe"), Path("data")) == "prunekit allocate --budget 0.8 --base pipe --data data"
    assert after_allocate("pipe", Path("allocation.json"), data="data") == "prunekit prune pipe --data data"
    assert after_latency("network", Path("latency.json")).endswith(" --data IMAGES")
    groups, schedule = cut_groups(NoiseSchedule.linear()), NoiseSchedule.linear()
    for line in (
        after_sensitivity("network", Path("sensitivity.json"), "ddim", 50, groups, schedule),
        after_recover("network", Path("slim"), Path("recoveries.json"), groups, schedule)[0],
    ):
        assert line == "prunekit prune network --target 0.3 --output frontiers --data IMAGES"
    done("prunekit allocate --budget 0.8 --base network")
    assert after_encode(Path("pipe"), Path("data")) == "prunekit prune pipe --data data"
    assert after_importance("network") == "prunekit prune network --data IMAGES"


def test_prune_without_an_allocation_names_the_command_that_makes_it_for_this_base(desk):
    said = typed(f"prunekit prune network --data pictures {FAST}").sentence
    assert "`prunekit allocate --budget 0.8 --base network`" in said  # it takes no images but encoded ones
    Path("pictures/encoded.json").write_text("{}")
    said = typed(
        f"prunekit prune own.safetensors --config own.json --data pictures --allocation a.json {FAST}"
    ).sentence
    again = "prunekit allocate --budget 0.8 --base own.safetensors --config own.json --data pictures --output a.json"
    assert said.startswith("prunekit: a.json does not exist;")
    assert f"`{again}`" in said


def test_a_bare_state_dicts_architecture_goes_along(desk):
    known = "own.safetensors --config own.json"
    assert following(done(f"prunekit cost {known}").out) == f"prunekit allocate --budget 0.8 --base {known}"
    assert (
        following(done(f"prunekit groups --groups 2 --base {known}").out)
        == f"prunekit allocate --budget 0.8 --base {known}"
    )
    assert following(done(f"prunekit allocate --budget 0.8 --base {known}").out) == f"prunekit prune {known}"
    line = following(done(f"prunekit prune {known} --data pictures --group 1 {FAST}").out)
    assert line == f"prunekit prune own.safetensors --group 0 {ASKED} --data pictures --config own.json"
    done(f"{line} {FAST}")
    done(f"prunekit finetune slim --teacher {known} --data pictures {SHORT}")
    done("prunekit assemble slim")
    done(f"prunekit evaluate experts --base {known} --count 4 --seeds 1 --loss-samples 4 --num-inference-steps 2")
    assert "without --teacher" in typed(f"prunekit finetune slim --config own.json {SHORT}").sentence


def test_the_groups_of_a_target_without_files_are_the_default_ones(desk):
    told = done(f"prunekit prune embedded:digits --target 0.9 --group 1 {FAST}").out
    line = following(told)
    assert line == f"prunekit prune embedded:digits --group 0 --group 2 --group 3 --group 4 --target 0.9 {ASKED}"
    assert "slim (1 of 5 groups)" in done("prunekit").out
    assert "0 (timesteps 0 to 199), 2 (timesteps 400 to 599)" in (refused := typed("prunekit assemble slim")).err
    assert "--group 4 --target 0.9" in refused.err
    assert refused.code == 2
    done(f"{line} {FAST}")
    told = done("prunekit assemble slim")
    assert "Not fine-tuned: group 0, 1, 2, 3, 4. `prunekit finetune slim` trains what is left." in told.err


def test_a_fine_tuned_model_is_pruned_away_only_with_permission(desk):
    prune = f"prunekit prune embedded:digits --target 0.9 --group 1 {FAST}"
    done(prune)
    done(f"{prune} --samples 5")  # what only took pruning
    done(f"prunekit finetune slim --data digits {SHORT}")
    before = listing(desk)
    refused = typed(prune)
    assert refused.code == 2
    assert "slim/group-1 was fine-tuned for 1 steps, which pruning would lose" in refused.sentence
    assert listing(desk) == before
    done(f"{prune} --overwrite")
    assert listing(desk) != before


def test_a_key_that_is_not_set_is_refused_before_anything_is_moved(desk, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    done("prunekit prune embedded:digits --target 0.9 --group 4 --samples 4 --rounds 1 --criterion magnitude")
    before = listing(desk)
    endpoint = "--proposer llm --llm-endpoint http://127.0.0.1:9/v1 --llm-model x --llm-key-variable NO_SUCH_KEY"
    refused = typed(f"prunekit prune embedded:digits --target 0.9 --group 4 --samples 4 {endpoint}")
    assert (refused.code, listing(desk)) == (2, before)
    assert "NO_SUCH_KEY holds no API key" in refused.sentence


def test_samples_that_are_there_are_not_suggested_again(desk):
    assert following(done("prunekit export embedded:digits --output digits").out) == "prunekit sample embedded:digits"
    done("prunekit sample embedded:digits --count 2 --num-inference-steps 2")
    assert Path("samples").is_dir()
    again = following(done("prunekit export embedded:digits --output again").out)
    assert again == "prunekit cost embedded:digits"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("prunekit evaluate experts", "`prunekit assemble` made"),
        (
            "prunekit sample slim",
            "put them together with `prunekit assemble slim`, or give one of them, such as slim/group-1",
        ),
        ("prunekit report nope", "nope does not exist; expected the folder of a run"),
        ("prunekit report own.json", "expected"),
        ("prunekit report pictures", "or one in which `prunekit allocate` was typed"),
        ("prunekit run pictures", "Got pictures, a folder; expected a recipe"),
        ("prunekit allocate --budget 0", "expected above 0 and at most 1"),
    ],
)
def test_a_step_too_early_or_a_slip_names_what_is_needed(desk, line, said):
    if "slim" in line:
        done(f"prunekit prune embedded:digits --target 0.9 --group 1 {FAST}")
    refused = typed(line)
    assert refused.code == 2
    assert said in refused.sentence


def test_a_sampler_that_cannot_take_what_the_network_predicts_says_so(desk):
    line = "prunekit sample embedded:digits --prediction-type sample --sampler pndm --count 2 --num-inference-steps 4"
    refused = typed(line)
    assert refused.code == 2
    assert "PNDMScheduler cannot sample from this network" in refused.err
    assert not Path("samples").exists()
