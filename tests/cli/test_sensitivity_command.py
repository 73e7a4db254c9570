"""``prunekit sensitivity``: its file and picture, and ``allocate`` with it."""

import json
from pathlib import Path

import pytest
from command_line import done, typed

from prunekit.allocation import Sensitivity

LINE = "prunekit sensitivity embedded:digits --num-inference-steps 3 --count 2"


def journal(path: Path, losses: tuple[float, ...]) -> None:
    """A search's journal with falling losses at rising MACs."""
    macs = done("prunekit cost embedded:digits --json").json["macs"]
    rows = [{"round": 0, "steps": [0], "macs": macs, "loss": losses[-1]}]
    for number, loss in enumerate(losses[:-1]):
        at = int(macs * (0.5 + 0.5 * number / (len(losses) - 1)))
        rows.append({"round": 1 + number, "steps": [1], "macs": at, "loss": loss, "chosen": "measured"})
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def two_journals(losses: tuple[float, ...]) -> None:
    """Journals of two timestep groups in the folder ``frontiers`` of the working directory."""
    for index in range(2):
        journal(Path("frontiers") / f"search-{index}.jsonl", losses)


def test_a_file_and_a_picture_are_written_and_the_next_command_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = done(LINE).out
    assert "Sensitivity in pixels: 3 steps of ddim, 2 samples" in told
    assert "Written to sensitivity.json and sensitivity.png" in told
    assert "prunekit prune embedded:digits --target 0.3 --output frontiers" in told
    found = Sensitivity.from_json(json.loads(Path("sensitivity.json").read_text()))
    assert (found.sampler, found.steps, found.count, found.checked_size) == ("ddim", 3, 2, 0.004)
    assert sum(group.evaluations for group in found.groups) == 3
    assert Path("sensitivity.png").read_bytes().startswith(b"\x89PNG")
    again = done(f"{LINE} --json --no-check-linearity").json
    assert again["checked_size"] is None
    values = [group["amplification"] for group in again["groups"]]
    assert values == [group.amplification for group in found.groups]
    assert again["model"]["weights_sha256"] == found.weights_sha256


@pytest.mark.slow
def test_allocate_weighs_losses_by_the_file_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("prunekit groups --groups 2 --base embedded:digits")
    done(f"{LINE} --no-check-linearity")
    two_journals((0.4, 0.3, 0.2, 0.1))
    assert "--rule measured --journals frontiers --sensitivity sensitivity.json" in done(f"{LINE} --overwrite").out
    line = "prunekit allocate --budget 0.75 --rule measured --journals frontiers --num-inference-steps 3"
    plain = done(f"{line} --json").json
    weighed = done(f"{line} --sensitivity sensitivity.json --json --base embedded:digits").json
    assert "sensitivity" not in plain
    assert weighed["sensitivity"]["format"] == "prunekit-sensitivity/1"
    changes = [one["change"] for one in weighed["comparison"].values() if one is not None and one["change"] is not None]
    assert weighed["comparison"]["measured"]["change"] == min(changes)
    told = done(f"{line} --sensitivity sensitivity.json").out
    assert "Losses are weighed by the sensitivity, measured in pixels." in told
    assert "Change: expected mean square change of the sample in pixels" in told
    assert (
        done("prunekit sensitivity embedded:digits --num-inference-steps 3 --count 1 --json").json["groups"][0]["se"]
        is None
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--size 0", "Got noise of size 0; expected more than 0 and at most 1."),
        ("--count 0", "Got 0 samples"),
        ("--in latents", "Got the measure latents for a network of pictures; expected pixels or features."),
        ("--features fashion-cnn", "Got --features fashion-cnn with --in auto; expected --in features."),
        ("--in features --features nonsense", "Unknown feature extractor 'nonsense'"),
        ("--sampler nonsense", "Unknown sampler 'nonsense'"),
        ("--guidance-scale 3", "Got --guidance-scale for a model that is no pipeline"),
        ("--output here.txt", "expected a file name that ends with .json"),
        ("--class 3", "Got class 3; expected no class, since the model takes none."),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    result = typed(f"{LINE} {words}")
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_other_groups_and_other_weights_are_refused_by_allocate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done(f"{LINE} --no-check-linearity")
    line = "prunekit allocate --budget 0.75 --rule measured --num-inference-steps 3 --sensitivity sensitivity.json"
    assert "Got --sensitivity without --journals; expected both" in typed(line).sentence
    two_journals((0.4, 0.1))
    result = typed(f"{line} --journals frontiers --groups 2")
    assert "measured for the timestep groups 0–199, 200–399" in result.sentence
    data = json.loads(Path("sensitivity.json").read_text())
    weights, data["model"]["weights_sha256"] = data["model"]["weights_sha256"], "f" * 64
    Path("sensitivity.json").write_text(json.dumps(data))
    result = typed(f"{line} --journals frontiers --groups 2 --base embedded:digits")
    assert "was measured with other weights than those of the base" in result.sentence
    data["model"]["weights_sha256"] = weights
    data["noise_schedule"] = {"kind": "cosine", "num_timesteps": 1000}
    Path("sensitivity.json").write_text(json.dumps(data))
    result = typed(f"{line} --journals frontiers --groups 2 --base embedded:digits")
    assert "measured with another noise schedule than the base's" in result.sentence
    Path("sensitivity.json").write_text("{}")
    assert "sensitivity.json" in typed(f"{line} --journals frontiers --groups 2").sentence
    assert "sensitivity.json exists and is no earlier sensitivity" in typed(LINE).sentence


@pytest.mark.slow
def test_what_is_negligible_is_not_told_by_the_sensitivity_of_another_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("prunekit groups --groups 2 --base embedded:digits")
    done(f"{LINE} --no-check-linearity")
    two_journals((0.4, 0.1))
    line = "prunekit allocate --budget 0.75 --rule measured --num-inference-steps 3 --journals frontiers"
    done(f"{line} --sensitivity sensitivity.json --base embedded:digits")
    plan = json.loads(Path("allocation.json").read_text())
    plan["sensitivity"]["model"]["weights_sha256"] = "f" * 64
    Path("allocation.json").write_text(json.dumps(plan))
    prune = "prunekit prune embedded:digits --allocation allocation.json --samples 4 --rounds 1"
    assert "measured with other weights than those of the base" in typed(f"{prune} --negligible 0.5").sentence
    done(prune)


@pytest.mark.slow
def test_journals_of_another_base_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two_journals((0.4, 0.1))
    line = "prunekit allocate --budget 0.75 --rule measured --groups 2 --journals frontiers --base embedded:fashion"
    assert "frontiers was searched in a base of 11,491,328 MACs and --base has" in typed(line).sentence
    assert not Path("allocation.json").exists()


@pytest.mark.slow
def test_features_are_those_that_know_the_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = done(f"{LINE} --in features --json").json
    assert found["measured_in"] == "features"
    assert found["features"]["name"] == "digits-cnn"


@pytest.mark.slow
def test_a_pipeline_is_measured_through_itself_in_pictures_and_latents(tmp_path, monkeypatch):
    from tiny_pipelines import saved_pipeline

    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    saved_pipeline("sd", tmp_path / "made").rename("pipeline")
    Path("prompts.txt").write_text("a cat\na dog\n")
    line = "prunekit sensitivity pipeline --prompts prompts.txt --num-inference-steps 2 --count 2 --guidance-scale 4"
    found = done(f"{line} --json").json
    assert (found["measured_in"], found["sampler"], found["guidance_scale"]) == ("pixels", "pipeline", 4.0)
    assert sum(group["evaluations"] for group in found["groups"]) == 2
    assert done(f"{line} --in latents --sampler ddim --json").json["measured_in"] == "latents"
    assert "name the extractor by --features" in typed(f"{line} --in features").sentence


def test_groups_are_cut_where_the_sensitivity_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("prunekit groups --groups 5 --base embedded:digits --output fine.json")
    done(
        "prunekit sensitivity embedded:digits --groups-file fine.json --num-inference-steps 10 --count 2 --no-check-linearity"
    )
    made = done("prunekit groups --groups 2 --sensitivity sensitivity.json --base embedded:digits --json").json
    assert made["method"] == "sensitivity"
    assert made["groups"][1]["start"] in (200, 400, 600, 800)
    assert made["evidence"]["facts"]["measured_groups"] == 5
    for words, said in (
        ("--method snr", "Got --sensitivity with --method snr; expected one of the two."),
        ("--cuts 300", "Got --sensitivity with --cuts"),
        ("--groups 9", "Got 9 groups to make of the 5"),
        ("--eta 0.1", "Got --eta with --sensitivity"),
    ):
        result = typed(f"prunekit groups --sensitivity sensitivity.json --overwrite {words}")
        assert (result.code, result.out) == (2, "")
        assert said in result.err
    assert "fine.json" in typed("prunekit groups --sensitivity fine.json --overwrite").sentence
