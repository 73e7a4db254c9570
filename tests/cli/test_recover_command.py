"""``prunekit recover``, ``allocate --recoveries`` and ``finetune --share-steps``."""

import json
from pathlib import Path

import pytest
from command_line import done, typed

from prunekit.allocation import Allocation, Recoveries, shared_steps

LINE = "prunekit recover embedded:digits frontiers --max-train-steps 3 --train-batch-size 8 --samples 16"
PLAN = "prunekit allocate --budget 0.7 --rule measured --journals frontiers --num-inference-steps 3"


@pytest.fixture(scope="module")
def frontiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slim models of two groups with their journals, and a sensitivity."""
    folder = tmp_path_factory.mktemp("frontiers")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done("prunekit groups --groups 2 --base embedded:digits")
        done("prunekit sensitivity embedded:digits --num-inference-steps 3 --count 2 --no-check-linearity")
        fast = "--samples 16 --rounds 2"
        done(f"prunekit prune embedded:digits --target 0.5 --output frontiers {fast}")
    return folder


@pytest.fixture
def folder(frontiers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, as the working directory."""
    import shutil

    copied = tmp_path / "here"
    shutil.copytree(frontiers, copied)
    monkeypatch.chdir(copied)
    return copied


@pytest.mark.slow
def test_recoveries_correct_an_allocation_and_steps_are_shared_by_it(folder: Path) -> None:
    told = done(LINE).out
    assert "Losses before and after 3 train steps" in told
    assert "--journals frontiers --recoveries recoveries.json --sensitivity sensitivity.json" in told
    found = Recoveries.from_json(json.loads(Path("recoveries.json").read_text()))
    assert found.steps == 3
    for one in found.groups:
        small, whole = one.points
        assert small.macs < whole.macs == found.base_macs
        assert small.before != small.after
        assert whole.before == whole.after  # finetune leaves it alone
    assert not [path for path in folder.iterdir() if path.name.startswith(".recoveries")]
    plan = done(f"{PLAN} --base embedded:digits --recoveries recoveries.json --sensitivity sensitivity.json")
    assert "after a short fine-tuning" in plan.out
    allocation = Allocation.from_json(json.loads(Path("allocation.json").read_text()))
    assert [frontier.recoveries for frontier in allocation.frontiers] == [one.points for one in found.groups]
    assert "before fine-tuning" in done(f"{PLAN} --overwrite --output plain.json").out

    done(
        "prunekit prune embedded:digits --proposer uniform --criterion magnitude --repair none --samples 8 --output slim"
    )
    tuned = "prunekit finetune slim --max-train-steps 4 --train-batch-size 8 --output tuned"
    rows = done(f"{tuned} --share-steps allocation.json --json").json["groups"]
    assert [row["steps"] for row in rows] == list(shared_steps(allocation, 4))
    assert "among which to share" in typed("prunekit finetune slim/group-0 --share-steps allocation.json").sentence
    assert "without a sensitivity" in typed(f"{tuned} --share-steps plain.json").sentence
    done("prunekit allocate --budget 0.7 --groups 3 --output three.json")
    assert "other timestep groups" in typed(f"{tuned} --share-steps three.json").sentence


def test_slim_models_without_frontiers_lead_to_frontiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Group 0 keeps the base, so its search measures nothing, and the base is not measured twice."""
    monkeypatch.chdir(tmp_path)
    done("prunekit allocate --base embedded:digits --groups 2 --budget 0.8 --rule linear --floor 0.6")
    done("prunekit prune embedded:digits --proposer uniform --criterion magnitude --repair none")
    short = "--max-train-steps 1 --train-batch-size 4 --samples 4"
    told = done(f"prunekit recover embedded:digits slim {short}").out
    found = Recoveries.from_json(json.loads(Path("recoveries.json").read_text()))
    assert [len(one.points) for one in found.groups] == [1, 2]
    known = "--journals frontiers --recoveries recoveries.json --groups 2"
    allocate = f"allocate --budget 0.8 --base embedded:digits --rule measured {known}"
    record = "prunekit prune embedded:digits --target 0.3 --output frontiers"
    assert f"Next: {record} && prunekit {allocate}" in told
    done(f"{record} --samples 4 --rounds 2")
    assert "after a short fine-tuning" in done(f"prunekit {allocate}").out
    again = done(f"prunekit recover embedded:digits slim {short} --overwrite").out
    assert f"Next: prunekit {allocate}" in again


@pytest.mark.slow
def test_all_networks_are_trained_on_demand_and_json_is_the_file(folder: Path) -> None:
    found = done(f"{LINE} --all --json").json
    assert found["output"] == "recoveries.json"
    assert json.loads(Path("recoveries.json").read_text()) == {k: v for k, v in found.items() if k != "output"}
    points = [point for group in found["groups"] for point in group["points"]]
    assert all(point["before"] != point["after"] for point in points)
    assert done(f"{LINE} --all --json").json == found  # replaced by an equal one


@pytest.mark.slow
def test_an_interrupted_command_goes_on_with_the_next_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prunekit.runs import group_recoveries

    whole = done(f"{LINE} --json").json
    Path("recoveries.json").unlink()
    real, calls = group_recoveries.recover, list[int]()

    def stops(slim, *arguments):
        calls.append(slim.macs)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(slim, *arguments)

    monkeypatch.setattr(group_recoveries, "recover", stops)
    stopped = typed(LINE)
    assert stopped.code == 130
    assert "trainings that ended are kept beside recoveries.json: 1" in stopped.err
    assert not Path("recoveries.json").exists()
    calls.clear()
    monkeypatch.setattr(
        group_recoveries, "recover", lambda slim, *rest: (calls.append(slim.macs), real(slim, *rest))[1]
    )
    assert done(f"{LINE} --json").json == whole
    assert len(calls) == 3
    assert not [path for path in folder.iterdir() if path.name.startswith(".recoveries")]


@pytest.mark.slow
def test_bad_input_is_one_sentence(folder: Path) -> None:
    for words, sentence in (
        ("prunekit recover embedded:digits nowhere", "nowhere does not exist"),
        ("prunekit recover nowhere frontiers", "nowhere does not exist"),
        ("prunekit recover embedded:digits frontiers --max-train-steps 0", "Got steps 0; expected at least 1."),
        ("prunekit recover embedded:digits frontiers --samples 0", "Got --samples 0; expected at least 1."),
        ("prunekit recover embedded:fashion frontiers", "give their own base"),
        ("prunekit recover embedded:digits frontiers --output r.txt", "ends with .json"),
        ("prunekit recover embedded:digits frontiers --output frontiers/r.json", "inside frontiers"),
        (f"{PLAN} --recoveries groups.json", "groups.json"),
        ("prunekit allocate --budget 0.7 --recoveries groups.json", "Got --recoveries without --journals"),
    ):
        result = typed(words)
        assert (result.code, result.out) == (2, ""), words
        assert sentence in result.err
    broken = Path("frontiers/group-0/config.json")
    whole = broken.read_text()
    broken.write_text("{")
    for words in ("prunekit recover embedded:digits frontiers", f"{PLAN} --base embedded:digits"):
        assert "frontiers/group-0" in typed(words).sentence
    broken.write_text(whole)
    assert not Path("recoveries.json").exists()
    done(LINE)
    found = json.loads(Path("recoveries.json").read_text())
    for change, sentence in (
        ({"base_macs": 5}, "MACs and the base 5"),
        ({"base_macs": found["base_macs"] + 1}, "expected one base"),
        ({"base_sha256": "f" * 64}, "is of another base than --base"),
        ({"groups": found["groups"][:1]}, "expected the same"),
        ({"steps": "x"}, "steps"),
    ):
        Path("recoveries.json").write_text(json.dumps(found | change))
        result = typed(f"{PLAN} --base embedded:digits --recoveries recoveries.json")
        assert (result.code, result.out) == (2, "")
        assert sentence in result.err
    done("prunekit finetune frontiers --max-train-steps 2 --train-batch-size 8 --output tuned")
    assert (
        "was fine-tuned for 2 steps; expected networks as" in typed("prunekit recover embedded:digits tuned").sentence
    )
    Path("other").mkdir()
    Path("recoveries.json").write_text(json.dumps(found))
    assert "has no slim models" in typed("prunekit recover embedded:digits frontiers other").sentence
