"""Every mistake that a user can make: exit code 2, one sentence on standard error, and nothing written."""

import contextlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY, done, listing, typed

from prunekit.checkpoint import ModelSpec, load_base, save_base
from prunekit.schedule import NoiseSchedule, Parameterization


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good files of a tiny network and bad ones; no mistake may change it."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    with contextlib.chdir(folder):
        done("prunekit train --config tiny.json --max-train-steps 1 --train-batch-size 2")
        done("prunekit allocate --budget 0.8 --groups 3")
        done("prunekit prune base.pt --samples 8 --proposer oneshot")
        done("prunekit assemble slim")
    base = load_base(folder / "base.pt")
    save_base(replace(base, parameterization=Parameterization(base.schedule, "v_prediction")), folder / "v.pt")
    save_base(replace(base, data={}), folder / "unrecorded.pt")
    save_base(replace(base, parameterization=Parameterization(NoiseSchedule.linear(500))), folder / "short.pt")
    save_base(replace(base, parameterization=Parameterization(NoiseSchedule.cosine(1000))), folder / "cosine.pt")
    colour = ModelSpec.from_json(TINY | {"in_channels": 3, "out_channels": 3})
    save_base(replace(base, model=colour.build(), spec=colour), folder / "colour.pt")
    for name in ("garbage.pt", "garbage.safetensors", "garbage.npz", "text.txt"):
        (folder / name).write_bytes(b"not what its name says")
    np.savez(folder / "rgb.npz", images=np.zeros((9, 8, 8, 3), dtype=np.uint8))
    shutil.copytree(folder / "slim", folder / "gap")
    shutil.rmtree(folder / "gap" / "group-1")
    broken = Path(shutil.copytree(folder / "slim" / "group-1", folder / "broken"))
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(bytes(weights))
    (folder / "groups-2000.json").write_text(
        json.dumps(
            {"format": "prunekit-groups/1", "num_timesteps": 2000, "groups": [{"index": 0, "start": 0, "stop": 2000}]}
        )
    )
    (folder / "colour.json").write_text(json.dumps(TINY | {"in_channels": 3}))
    (folder / "strange.json").write_text(json.dumps(TINY | {"_class_name": "os.system"}))
    (folder / "typo.yaml").write_text("name: typo\nbase: {checkpoint: 'embedded:digits'}\nprune:\n  sampels: 3\n")
    (folder / "fine.yaml").write_text("name: fine\nbase: {checkpoint: 'embedded:digits'}\n")
    (folder / "wrong-size.yaml").write_text(
        "name: wrong\nbase: {checkpoint: 'embedded:digits'}\ndata: {source: digits, resolution: 12}\n"
    )
    (folder / "run").mkdir()
    (folder / "run" / "manifest.json").write_text('{"format": "prunekit-manifest/1"}')
    return folder


MISTAKES = {
    # a model that is not there, or no model
    "prunekit cost nowhere.pt": r"nowhere\.pt does not exist.*prunekit train",
    "prunekit sample nowhere": "nowhere does not exist",
    "prunekit importance nowhere.pt": r"nowhere\.pt does not exist",
    "prunekit prune nowhere.pt --group 3": r"nowhere\.pt does not exist",
    "prunekit evaluate experts --base nowhere.pt": r"nowhere\.pt does not exist",
    "prunekit finetune slim/group-9": "slim/group-9 does not exist",
    "prunekit assemble nowhere": "prunekit prune",
    "prunekit cost embedded:cats": "embedded:digits",
    "prunekit cost garbage.pt": r"garbage\.pt is no readable checkpoint",
    "prunekit prune garbage.pt --group 3": r"garbage\.pt is no readable checkpoint",
    "prunekit importance garbage.safetensors": r"garbage\.safetensors is no readable safetensors",
    "prunekit cost text.txt": r"text\.txt",
    "prunekit finetune broken": "SHA-256",
    "prunekit sample broken": "SHA-256",
    "prunekit finetune run": r"run has no slim models group-0, group-1, …, and is none; prune first with",
    "prunekit assemble gap": r"do not cover the timesteps",
    # groups, allocations, targets
    "prunekit prune base.pt --group 5": r"no timestep group 5; expected 0 … 2",
    "prunekit prune base.pt --group -1": r"no timestep group -1",
    "prunekit prune base.pt --allocation nowhere.json": r"nowhere\.json does not exist",
    "prunekit prune base.pt --target 0 --group 1": "Got --target 0",
    "prunekit prune base.pt --target 1.5 --group 1": r"Got --target 1\.5",
    "prunekit prune base.pt --target 0.001 --group 1 --samples 8": r"MACs \(0\.1239\); give a --target of at least 0\.1239",
    "prunekit prune base.pt --samples 0": "at least 1",
    "prunekit prune base.pt --rounds 0": "rounds",
    "prunekit importance base.pt --groups-file groups-2000.json": "2000 timesteps",
    "prunekit importance base.pt --groups-file nowhere.json": r"nowhere\.json",
    "prunekit importance base.pt --samples 8 --output slim": "slim is a folder",
    # images
    "prunekit importance base.pt --data nowhere": "nowhere does not exist",
    "prunekit prune base.pt --group 1 --data text.txt": r"text\.txt is not a kind that is read",
    "prunekit prune base.pt --group 1 --data garbage.npz": r"garbage\.npz is no readable",
    "prunekit finetune slim/group-1 --data rgb.npz": "3 channels",
    "prunekit evaluate experts --data rgb.npz": "3 channels",
    "prunekit evaluate experts --data digits --resolution 10": "10×10",
    "prunekit evaluate experts --resolution 8": "--resolution without --data",
    "prunekit importance base.pt --resolution 8": "--resolution without --data",
    "prunekit importance unrecorded.pt": "by --data",
    # training
    "prunekit train --max-train-steps 1 --train-batch-size 2": r"base\.pt exists already.*--overwrite",
    "prunekit train --output x.pt --data nowhere": "nowhere does not exist",
    "prunekit train --output x.pt --data digits --resolution 1": "--resolution 1",
    "prunekit train --output x.pt --max-train-steps 0": "steps 0",
    "prunekit train --output x.pt --learning-rate -1": "learning_rate",
    "prunekit train --output x.pt --prediction-type noise": "--prediction-type.*noise.*epsilon",
    "prunekit train --output x.pt --mixed-precision fp7": "fp7.*no.*fp16.*bf16",
    "prunekit train --output x.pt --config nowhere.json": r"nowhere\.json",
    "prunekit train --output x.pt --config strange.json": "Unknown architecture 'os.system'",
    "prunekit train --output x.pt --config colour.json": "in_channels is 3",
    "prunekit train --output x.pt --max-train-steps 9 --train-batch-size 4 --learning-rate 1e30": "loss is .* at step",
    "prunekit finetune slim/group-1 --overlap -500": "start < stop",
    "prunekit finetune slim/group-1 --output slim/group-0 --max-train-steps 1": r"slim/group-0 has the slim model of .*--output",
    "prunekit finetune slim/group-1 --resume-from-checkpoint sometimes": "sometimes; expected latest.*no",
    "prunekit finetune slim/group-1 --loss-weight snr": r"'snr' \(did you mean min-snr\?\); expected one of none, min-snr",
    "prunekit finetune slim/group-1 --teacher base.pt --distillation-weight 2": "--distillation-weight 2",
    "prunekit finetune slim/group-1 --teacher embedded:digits": "give its own base",
    "prunekit finetune slim/group-1 --gradient-accumulation-steps 0": "gradient_accumulation_steps 0",
    # sampling and measuring
    "prunekit sample experts --count 1000000000": r"Got --count 1000000000; expected at most 1,048,576",
    "prunekit evaluate experts --loss-samples 10000000000": "--loss-samples 10000000000; expected at most",
    "prunekit prune base.pt --rounds 99999999": "--rounds 99999999; expected at most",
    "prunekit train --output x.pt --max-train-steps 99999999999": "--max-train-steps 99999999999; expected at most 1,000,000,000",
    "prunekit sample experts --sampler nonsense": "Unknown sampler 'nonsense'.*ddim",
    "prunekit sample experts --count 0": "--count 0",
    "prunekit sample experts --num-inference-steps 0": "0 sampling steps",
    "prunekit sample experts --num-inference-steps 1001": "1001 sampling steps",
    "prunekit sample experts --num-inference-steps 2 --sampler pndm": "(?i)pndm",
    "prunekit evaluate experts --sampler nonsense": "Unknown sampler",
    "prunekit evaluate experts --count 1": "--count 1",
    "prunekit evaluate experts --seeds 0": "--seeds 0",
    "prunekit evaluate experts --features inception": "Unknown feature extractor 'inception'.*digits-cnn.*inception-v3",
    "prunekit evaluate experts --features own.safetensors": r"own\.safetensors does not exist; .* download",
    "prunekit evaluate experts --inception-weights nowhere.pth": r"nowhere\.pth does not exist; .*download .*https://github\.com",
    "prunekit evaluate experts --inception-weights base.pt": r"base\.pt has no finite tensor Conv2d_1a_3x3",
    "prunekit evaluate experts --features auto --features digits-cnn --inception-weights a.pth": "expected one of them",
    "prunekit evaluate experts --clip nowhere": "nowhere is neither a folder nor .*hf download",
    "prunekit evaluate experts --base v.pt": r"v\.pt .* by v_prediction",
    "prunekit consistency base.pt nowhere.pt --output new": r"nowhere\.pt does not exist",
    "prunekit consistency base.pt garbage.pt --output new": r"garbage\.pt is no readable checkpoint",
    "prunekit consistency base.pt colour.pt --output new": r"colour\.pt of \(3, 8, 8\)",
    "prunekit consistency base.pt short.pt --output new": "1000 and 500 timesteps",
    "prunekit consistency base.pt cosine.pt --output new": "differ by up to .* in log SNR",
    "prunekit consistency base.pt experts --output new --count 1": "1 pairs",
    "prunekit consistency base.pt experts --output new --seed -1": "'--seed'",
    "prunekit consistency base.pt experts --output new --sampler nonsense": "Unknown sampler",
    "prunekit consistency base.pt experts --output new --num-inference-steps 1001": "1001 sampling steps",
    "prunekit consistency base.pt experts --output slim": "slim exists and holds no earlier comparison",
    "prunekit consistency base.pt experts --output text.txt": r"text\.txt exists and holds no earlier comparison",
    "prunekit consistency base.pt experts --output .": "holds no earlier comparison",
    "prunekit consistency base.pt experts --output text.txt/new": r"text\.txt is no folder",
    # recipes and reports
    "prunekit run nowhere.yaml": r"nowhere\.yaml does not exist",
    "prunekit run typo.yaml": r"typo\.yaml, line 4: prune\.sampels",
    "prunekit run text.txt": r"text\.txt",
    "prunekit run fine.yaml --executor slurm": "expected a machine with SLURM's srun",
    "prunekit run fine.yaml --executor-option partition=gpu": "without --executor",
    "prunekit report nowhere": "does not exist",
    "prunekit run fine.yaml --executor local --executor-option foo=1": r"do not fit local \(.*foo.*\); mend",
    "prunekit report run": "manifest.json cannot be read",
    "prunekit report text.txt": r"text\.txt is a file; expected the folder of a run",
}


@pytest.mark.slow_cases(
    "evaluate experts --[!b]*",
    "evaluate experts --base*",
    "sample experts --num*",
    "consistency base.pt experts*",
    "prune base.pt --[st]*",
)
@pytest.mark.parametrize(("line", "message"), MISTAKES.items(), ids=[line[9:] for line in MISTAKES])
def test_a_mistake_is_one_sentence_with_exit_code_2(workshop, monkeypatch, line, message):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed(line)
    assert result.code == 2, result
    assert result.out == ""
    assert result.sentence.startswith("prunekit: ")
    assert result.sentence.endswith((".", "?"))
    assert "Traceback" not in result.err
    assert re.search(message, result.sentence), result.sentence
    assert listing(workshop) == before


def test_a_recipe_that_does_not_fit_its_base_starts_nothing(workshop, monkeypatch):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed("prunekit run wrong-size.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.splitlines()[-1].startswith(
        "prunekit: The images of digits are 12×12 and the model's sample_size is 8"
    )
    assert listing(workshop) == before


def test_without_an_allocation_the_command_for_it_is_named(workshop, tmp_path, monkeypatch):
    shutil.copy(workshop / "base.pt", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "prunekit allocate --budget 0.8" in typed("prunekit prune base.pt --group 3").sentence
    assert list(listing(tmp_path)) == ["base.pt"]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("prunekit cost base.pt --frobnicate", "--frobnicate"),
        ("prunekit prune base.pt --criterion wishes", "wishes"),
        ("prunekit prune base.pt --group three", "--group"),
        ("prunekit frobnicate", "frobnicate"),
        ("prunekit prune", "base"),
    ],
)
def test_what_cannot_be_parsed_ends_with_2_too(workshop, monkeypatch, line, named):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed(line)
    assert (result.code, result.out) == (2, "")
    assert named in result.sentence
    assert listing(workshop) == before


def test_what_the_system_refuses_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "groups.json")

    monkeypatch.setattr("prunekit.cli.grouping.write_json", full)
    result = typed("prunekit groups")
    assert (result.code, result.out) == (2, "")
    assert result.sentence.startswith("prunekit: groups.json: No space left on device")
