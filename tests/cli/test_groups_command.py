"""``prunekit groups`` by what images or a base show: files, pictures, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import done, listing, typed
from PIL import Image

from prunekit.groups import Grouping
from prunekit.schedule import NoiseSchedule

QUICK = "--samples 4 --nodes 16"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_similarity_writes_groups_that_allocate_takes_and_a_picture():
    said = done(f"prunekit groups --method similarity --data digits --num-groups 3 {QUICK}")
    assert sorted(listing(Path())) == ["groups.json", "groups.png"]
    data = json.loads(Path("groups.json").read_text())
    grouping = Grouping.from_json(data)
    assert (grouping.groups.method, len(grouping.groups), grouping.groups.num_timesteps) == ("similarity", 3, 1000)
    assert grouping.evidence.matrix.shape == (16, 16)
    assert set(grouping.evidence.curves) == {"to_clean", "to_noise"}
    assert grouping.evidence.facts["rule"] == "stages"
    assert f"alpha {grouping.evidence.facts['alpha']:g} (calibrated)" in said.out
    assert f"Cuts: {', '.join(map(str, grouping.groups.cuts))}." in said.out
    with Image.open("groups.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[1] > 1500
    assert pixels.std() > 20
    allocated = done("prunekit allocate --budget 0.8 --json").json
    assert [group["start"] for group in allocated["groups"]] == [0, *grouping.groups.cuts]


@pytest.mark.slow
def test_the_same_seed_makes_the_same_files_and_json_is_the_file():
    line = (
        f"prunekit groups --method similarity --data digits --groups 4 {QUICK} --noise-schedule edm --num-timesteps 300"
    )
    said = done(f"{line} --json")
    first = listing(Path())
    assert said.json == json.loads(Path("groups.json").read_text())
    assert said.json["noise_schedule"]["kind"] == "edm"
    assert done(line).out
    assert listing(Path()) == first
    done(f"{line} --seed 1")
    assert listing(Path()) != first


def test_alpha_eta_and_rule_reach_the_method():
    data = done(
        f"prunekit groups --method similarity --data digits --groups 3 {QUICK} --alpha 0.9 --eta 0.02 --json"
    ).json
    facts = data["evidence"]["facts"]
    assert (facts["alpha"], facts["alpha_from"], facts["eta"]) == (0.9, "given", 0.02)
    data = done(f"prunekit groups --method similarity --data digits --groups 3 {QUICK} --rule dynamic --json").json
    assert data["evidence"]["facts"]["rule"] == "dynamic"


def test_gradient_takes_the_bases_images_and_noise_schedule():
    done(f"prunekit groups --method gradient --base embedded:digits --groups 2 {QUICK}")
    data = json.loads(Path("groups.json").read_text())
    grouping = Grouping.from_json(data)
    assert (grouping.groups.method, len(grouping.groups)) == ("gradient", 2)
    assert NoiseSchedule.from_config(data["noise_schedule"]).num_timesteps == grouping.groups.num_timesteps
    assert np.abs(grouping.evidence.matrix).max() == 1
    assert Path("groups.png").is_file()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--method similarity", "without --data; expected the images"),
        ("--method gradient", "without --base; expected the network"),
        ("--method gradient --data digits", "without --base"),
        ("--method similarity --data nowhere", "nowhere does not exist"),
        ("--method similarity --data digits --alpha 2", "Got alpha 2"),
        ("--method similarity --data digits --eta 0", "Got eta 0"),
        ("--method similarity --data digits --samples 0", "0 samples"),
        ("--method similarity --data digits --nodes 1", "1 nodes"),
        ("--method similarity --data digits --memory 0", "Got 0 bytes of memory"),
        (
            "--method similarity --data digits --alpha 0.9",
            "Got 5 timestep groups with rule stages or alpha; expected 3",
        ),
        ("--method similarity --data digits --groups 3 --rule dynamic --alpha 0.9", "Got alpha with rule dynamic"),
        ("--method similarity --data digits --groups 3 --alpha 0.3 --samples 4 --nodes 8", "Got alpha 0.3"),
        ("--method similarity --data digits --groups 0", "Got 0 timestep groups"),
        ("--method similarity --data digits --config x.json", "x.json does not exist"),
        ("--method similarity --data digits --output .", "expected the name of a file"),
        ("--method similarity --data digits --output g.png", "expected the name of a file"),
        ("--method similarity --base embedded:digits --num-timesteps 500", "without --noise-schedule"),
        ("--prediction-type sample", "Got --prediction-type without --base"),
        ("--method gradient --base embedded:letters", "no embedded base 'letters'"),
        ("--method gradient --base embedded:digits --alpha 0.9", "Got alpha or rule with method gradient"),
        ("--method uniform --data digits", "Got --data with --method uniform"),
        ("--memory 3 --noise-schedule cosine", "Got --memory with --method uniform"),
        ("--cuts 100 --alpha 0.9", "Got --alpha with --cuts"),
        ("--cuts 100 --method similarity --data digits", "Got --data with --cuts"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(line, said):
    result = typed(f"prunekit groups {line}")
    assert (result.code, result.out) == (2, "")
    assert said in result.sentence
    assert listing(Path()) == {}


def test_a_config_without_a_base_is_refused():
    Path("x.json").write_text("{}")
    result = typed("prunekit groups --method similarity --data digits --config x.json")
    assert (result.code, result.out) == (2, "")
    assert "Got --config without --base" in result.sentence


def test_evidence_that_was_tampered_with_is_refused_by_allocate():
    done(f"prunekit groups --method similarity --data digits --groups 3 {QUICK}")
    data = json.loads(Path("groups.json").read_text())
    data["evidence"]["matrix"][0][1] = 7
    Path("groups.json").write_text(json.dumps(data))
    result = typed("prunekit allocate --budget 0.8")
    assert result.code == 2
    assert "evidence" in result.sentence


def test_other_groups_take_the_picture_of_those_before_away_and_no_other() -> None:
    done(f"prunekit groups --method similarity --data digits --num-groups 3 {QUICK}")
    done("prunekit groups --cuts 250,600")
    assert sorted(listing(Path())) == ["groups.json"]
    Path("groups.png").write_bytes(b"mine")
    done("prunekit groups --cuts 250,600")
    assert Path("groups.png").read_bytes() == b"mine"
