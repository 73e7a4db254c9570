"""``prunekit prune`` with the proposers that take options of their own."""

import json
from pathlib import Path

import pytest
from command_line import done, typed

LINE = "prunekit prune embedded:digits --group 3 --target 0.7 --samples 16 --json"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evolution", "tpe"])
def test_trials_are_measured_once_and_repeated_from_the_journal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    line = f"{LINE} --proposer {name} --trials 4 --seed 3 --study shared/study.log"
    facts = done(line).json
    assert facts["spent"] <= facts["target"]
    assert 2 <= facts["measured_candidates"] <= 4
    weights = (tmp_path / "slim/group-3/model.safetensors").read_bytes()
    header, *entries = map(json.loads, (tmp_path / "slim/search-3.jsonl").read_text().splitlines())
    assert header["format"] == "prunekit-search/1"
    assert sum("chosen" not in entry for entry in entries) == facts["measured_candidates"]
    assert done(line).json["macs"] == facts["macs"]
    assert (tmp_path / "slim/group-3/model.safetensors").read_bytes() == weights


@pytest.mark.slow
def test_what_is_negligible_follows_from_the_sensitivity_of_the_same_groups(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done("prunekit sensitivity embedded:digits --num-inference-steps 3 --count 2 --no-check-linearity")
    lone = next(g["index"] for g in json.loads(Path("sensitivity.json").read_text())["groups"] if not g["evaluations"])
    line = f"prunekit prune embedded:digits --group {lone} --target 0.7 --samples 16 --proposer tpe --trials 48 --json"
    plain, weighed = (
        done(f"{line} --negligible 1e-7 --output {name}{own}").json["measured_candidates"]
        for name, own in (("plain", ""), ("weighed", " --sensitivity sensitivity.json"))
    )
    assert (
        weighed == 33 < plain
    )  # two windows of trials and the whole network: no error of this group reaches the sample
    line = f"{line.replace(str(lone), '0', 1)} --negligible 0.1 --sensitivity sensitivity.json --output refused"
    data = json.loads(Path("sensitivity.json").read_text())
    data["model"]["weights_sha256"] = "f" * 64
    Path("sensitivity.json").write_text(json.dumps(data))
    assert "with other weights than those of the base" in typed(line).sentence
    done("prunekit groups --groups 2 --base embedded:digits --overwrite")
    refused = typed(line)
    assert refused.code == 2
    assert "measured for the timestep groups" in refused.err
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--proposer llm", "endpoint"),
        ("--proposer llm --llm-endpoint http://127.0.0.1:9/v1", "together"),
        ("--proposer llm --llm-endpoint file:///etc/passwd --llm-model m", "plain http or https URL"),
        (
            "--proposer llm --llm-endpoint http://h/v1 --llm-model m --llm-key-variable NOT_SET_ANYWHERE",
            "NOT_SET_ANYWHERE",
        ),
        ("--study shared.log", "shared study"),
        ("--proposer tpe --trials 0", "trials"),
        ("--negligible -0.5", "share of the whole network's loss"),
        ("--sensitivity sensitivity.json", "expected both"),
        ("--negligible 0.01 --sensitivity sensitivity.json", "sensitivity.json"),
    ],
)
def test_options_that_do_not_fit_are_the_users_mistake(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    result = typed(f"{LINE} {options}")
    assert result.code == 2
    assert message in result.out + result.err
    assert not (tmp_path / "slim" / "group-3").exists()
