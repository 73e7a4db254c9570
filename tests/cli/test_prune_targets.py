"""``prunekit prune`` with targets of parameters and latency, and with widths in multiples."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import done, listing, typed

from prunekit.cost import LatencyTable
from prunekit.cost.latency_model import Rest
from prunekit.slim import load_slim

LINE = "prunekit prune embedded:digits --group 1 --samples 16 --proposer oneshot --json"


@pytest.mark.slow
def test_a_target_of_parameters_in_multiples_by_resolution(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = done(f"{LINE} --target 0.7 --target-of params --width-multiple 8:16,1:8").json
    assert facts["target"] == int(0.7 * facts["base"])
    assert facts["spent"] == facts["params"] <= facts["target"]
    assert 0 <= facts["missed"] == (facts["target"] - facts["spent"]) / facts["base"] < 0.01
    slim = load_slim("slim/group-1")
    said = slim.about["provenance"]
    assert {key: said[key] for key in ("target_of", "target", "spent", "width_multiples")} == {
        "target_of": "params",
        "target": facts["target"],
        "spent": slim.params,
        "width_multiples": {"8": 16, "1": 8},
    }
    assert all(len(kept) % 8 == 0 for kept in slim.plan.kept.values())


@pytest.mark.slow
def test_a_target_of_latency_measures_once_and_keeps_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of, calls = LatencyTable.of, []

    def quick(*arguments):  # with the times of a machine without noise
        *network, options = arguments
        calls.append(options)
        table = of(*network, replace(options, grid=2, repeats=1, fits=0, checks=1))
        times = tuple(replace(one, seconds=1e-7 * np.outer(one.inner, one.outer), blocks=(1, 1)) for one in table.times)
        return replace(table, times=times, rest=Rest(1.0, 0.0, 1e-9))

    monkeypatch.setattr(LatencyTable, "of", quick)
    facts = done(f"{LINE} --target 0.9 --target-of latency --latency-batch-size 4").json
    assert facts["target_macs"] is None
    assert facts["latency"]["batch_size"] == 4
    assert facts["latency"]["error"] <= facts["latency"]["worst_error"]
    assert facts["spent"] <= facts["target"] <= 0.9 * facts["base"] + 1
    table = json.loads(Path("latency.json").read_text())
    assert table["format"] == "prunekit-latency/1"
    assert load_slim("slim/group-1").about["provenance"]["latency"] == facts["latency"]
    assert facts["latency"]["machine"] == table["machine"]
    said = done(f"{LINE} --target 0.9 --target-of latency".replace("--json", "")).out
    assert "Latency is for batches of 4" in said
    assert [options.batch_size for options in calls] == [4]
    other = typed(f"{LINE} --target 0.9 --target-of latency --latency-batch-size 1").sentence
    assert "latency.json has layer times for batches of 4, and --latency-batch-size asks for 1" in other
    Path("latency.json").write_text("{}")
    assert "latency.json has format None" in typed(f"{LINE} --target 0.9 --target-of latency").sentence


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--width-multiple 0", "--width-multiple 0; expected a multiple such as 16"),
        ("--width-multiple x", "--width-multiple x; expected"),
        ("--width-multiple 1:", "--width-multiple 1:; expected"),
        ("--width-multiple 8:8:8", "--width-multiple 8:8:8; expected"),
        ("--width-multiple 8:8,8:16", "--width-multiple 8:8,8:16; expected"),
        ("--target 0.001 --target-of params", "of its 463,249 parameters (0.0331); give a --target of at least 0.0331"),
        (
            "--target 0.3 --floor 0.9",
            "can be pruned to within the floor and width multiples that were asked for, 11,483,984 of its",
        ),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    target = "" if "--target " in words else "--target 0.8"
    result = typed(f"{LINE} {target} {words}")
    assert result.code == 2
    assert sentence in result.sentence.replace("'", "")
    assert listing(tmp_path) == {}


def test_an_unknown_measure_is_refused_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = typed(f"{LINE} --target 0.8 --target-of flops")
    assert result.code == 2
    assert "Got --target-of 'flops'; expected one of macs, params, latency" in result.sentence
