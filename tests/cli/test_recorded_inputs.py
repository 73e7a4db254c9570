"""Files that one command wrote and another reads belong together, or are refused; none is replaced by its own reader."""

import json
from pathlib import Path

import pytest
from command_line import done, typed

PRUNE = "prunekit prune embedded:digits --proposer uniform --criterion magnitude --repair none --samples 8"
ALLOCATE = "prunekit allocate --budget 0.8 --rule measured"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sensitivity(of_groups=None, **changes):
    """Write a sensitivity of two groups, as the command does."""
    part = {"error": 1e-6, "se": 0.1, "linearity": None}
    groups = [
        {"index": 0, "start": 0, "stop": 500, "evaluations": 25, "amplification": 0.1, **part},
        {"index": 1, "start": 500, "stop": 1000, "evaluations": 25, "amplification": 0.4, **part},
    ]
    model = {"name": "digits", "architecture": "UNet2DModel", "prediction_type": "epsilon", "weights_sha256": "f" * 64}
    data = {
        "format": "prunekit-sensitivity/1",
        "prunekit": "0.1.0",
        "model": model,
        "noise_schedule": {"kind": "linear", "num_timesteps": 1000},
        "num_timesteps": 1000,
        "sampler": "ddim",
        "steps": 50,
        "guidance_scale": 1.0,
        "measured_in": "pixels",
        "features": None,
        "count": 2,
        "seed": 0,
        "size": 0.002,
        "checked_size": None,
        "clamped": False,
        "groups": groups,
    }
    for group in groups:
        group.update(of_groups or {})
    Path("sensitivity.json").write_text(json.dumps({**data, **changes}))


def searched(folder):
    """Slim models at 0.5 for two groups, with journals as greedy writes them."""
    done(f"{PRUNE} --target 0.5 --output {folder}")
    macs = done("prunekit cost embedded:digits --json").json["macs"]
    for index in range(2):
        rows = [{"round": 0, "steps": [0], "macs": macs, "loss": 0.1}]
        rows += [{"round": 1, "steps": [1], "macs": macs // 2, "loss": 0.2, "chosen": "a"}]
        Path(folder, f"search-{index}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_searches_of_other_timestep_groups_are_refused(here):
    done("prunekit groups --groups 2 --base embedded:digits")
    searched("frontiers")
    done(f"{ALLOCATE} --journals frontiers")
    done("prunekit groups --cuts 100 --base embedded:digits --output other.json")
    refused = typed(f"{ALLOCATE} --journals frontiers --groups-file other.json --output refused.json")
    assert refused.code == 2
    assert "frontiers was searched for timesteps 0–499 of 1000 as group 0 and the allocation is for 0–99" in refused.err
    assert not Path("refused.json").exists()
    config = Path("frontiers/group-0/config.json")
    data = json.loads(config.read_text())
    data["provenance"]["base_sha256"] = "f" * 64
    config.write_text(json.dumps(data))
    refused = typed(f"{ALLOCATE} --journals frontiers --base embedded:digits")
    assert "was searched in another base than --base" in refused.err


def test_groups_that_are_newer_than_the_allocation_are_not_passed_over(here):
    done("prunekit groups --groups 2 --base embedded:digits")
    done("prunekit allocate --budget 0.8 --base embedded:digits")
    done(f"{PRUNE} --target 0.5 --output same")
    done("prunekit groups --cuts 100 --base embedded:digits")
    refused = typed(f"{PRUNE} --target 0.5 --output refused")
    assert refused.code == 2
    assert "groups.json is newer than allocation.json and has other timestep groups" in refused.err
    assert not Path("refused").exists()
    done(f"{PRUNE} --target 0.5 --allocation allocation.json --output named")


def test_no_file_that_a_command_reads_is_replaced_even_with_overwrite(here):
    done("prunekit groups --groups 2 --base embedded:digits")
    searched("frontiers")
    sensitivity()
    Path("recoveries.json").write_text("{}")
    reading = f"{ALLOCATE} --journals frontiers --sensitivity sensitivity.json --recoveries recoveries.json --overwrite"
    cutting = "prunekit groups --sensitivity sensitivity.json --groups 2 --overwrite"
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    for line in (
        *(f"{reading} --output {name}" for name in ("sensitivity.json", "recoveries.json", "frontiers/search-0.jsonl")),
        f"{cutting} --output sensitivity.json",
    ):
        refused = typed(line)
        assert refused.code == 2, line
        assert "which this command reads" in refused.err
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before


def test_steps_are_shared_among_the_models_of_that_allocation_alone(here):
    done("prunekit groups --groups 2 --base embedded:digits")
    searched("frontiers")
    sensitivity()
    done(f"{ALLOCATE} --journals frontiers --sensitivity sensitivity.json")
    refused = typed("prunekit finetune frontiers --share-steps allocation.json --max-train-steps 4 --output tuned")
    assert refused.code == 2
    assert "was pruned to 0.5 of the base and allocation.json gives its group" in refused.err
    assert not Path("tuned").exists()


def test_groups_by_sensitivity_have_its_noise_schedule(here):
    sensitivity(noise_schedule={"kind": "cosine", "num_timesteps": 1000})
    done("prunekit groups --sensitivity sensitivity.json --groups 2")
    assert json.loads(Path("groups.json").read_text())["noise_schedule"]["kind"] == "cosine"
    line = "prunekit groups --sensitivity sensitivity.json --groups 2 --output refused.json"
    refused = typed(f"{line} --noise-schedule linear --num-timesteps 1000")
    assert "was measured with another noise schedule than that of the options" in refused.err
    refused = typed(f"{line} --base embedded:digits")
    assert "with other weights than those of the base" in refused.err
    assert not Path("refused.json").exists()


def test_a_sensitivity_without_any_change_of_the_sample_is_refused(here):
    line = "prunekit sensitivity embedded:digits --num-inference-steps 2 --count 1 --no-check-linearity"
    refused = typed(f"{line} --size 1e-30")
    assert refused.code == 2
    assert "Noise of size 1e-30 changes no sample" in refused.err
    assert not Path("sensitivity.json").exists()
    done("prunekit groups --groups 2 --base embedded:digits")
    searched("frontiers")
    for amplification, said in ((0.0, "the noise changed no sample"), (1e300, "amplification")):
        sensitivity(of_groups={"amplification": amplification})
        refused = typed(f"{ALLOCATE} --journals frontiers --sensitivity sensitivity.json")
        assert refused.code == 2
        assert said in refused.err


def test_the_next_line_has_the_sampler_and_steps_of_the_sensitivity(here):
    Path("frontiers").mkdir()
    journal = (
        '{"round": 0, "steps": [0], "macs": 9, "loss": 0.1}\n{"round": -1, "steps": [1], "macs": 4, "loss": 0.2}\n'
    )
    for index in range(5):
        Path(f"frontiers/search-{index}.jsonl").write_text(journal)
    line = "prunekit sensitivity embedded:digits --num-inference-steps 3 --sampler ddpm --count 1 --no-check-linearity"
    told = done(line).out
    assert "--sensitivity sensitivity.json --sampler ddpm --num-inference-steps 3" in told


def test_groups_that_were_cut_for_another_noise_schedule_get_targets_by_the_bases_own(here):
    done("prunekit groups --groups 2 --base embedded:digits")
    expected = done("prunekit allocate --budget 0.8 --base embedded:digits --json").json
    done("prunekit groups --groups 2 --noise-schedule cosine --num-timesteps 1000 --overwrite")
    cut = typed("prunekit allocate --budget 0.8 --base embedded:digits --json --overwrite")
    assert (
        "groups.json was cut for another noise schedule than the base's; the targets follow the base's SNR." in cut.err
    )
    assert cut.json == expected
