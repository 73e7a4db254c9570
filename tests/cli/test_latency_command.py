"""``prunekit latency``: a table of layer times as a file, which ``prune`` plans with on any machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import done, listing, typed

from prunekit.cost import LatencyTable

LINE = "prunekit latency embedded:digits --batch-size 2 --repeats 1"


@pytest.fixture
def quick(monkeypatch):
    """Tables that take a moment, with the options that were asked for; a list of these."""
    of, asked = LatencyTable.of, []

    def quickly(*arguments):
        *network, options = arguments
        asked.append(options)
        return of(*network, replace(options, grid=2, fits=0, checks=1, dtype="float32", compiled=False))

    monkeypatch.setattr(LatencyTable, "of", quickly)
    return asked


@pytest.mark.slow
def test_a_table_is_written_and_used_for_planning_on_another_machine(tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    facts = done(f"{LINE} --json").json
    assert facts["output"] == "latency.json"
    assert facts["batch_size"] == 2
    assert facts["machine"]["device"] == "cpu"
    assert facts["base_seconds"] > 0
    table = json.loads(Path("latency.json").read_text())
    table["machine"] = {"torch": "2.9", "threads": 8, "device": "cuda", "processor": "A GPU"}
    Path("gpu.json").write_text(json.dumps(table))
    prune = "prunekit prune embedded:digits --group 1 --samples 16 --proposer oneshot --shrink both --target 0.9"
    told = done(f"{prune} --target-of latency --latency-table gpu.json").out
    assert "Latency is for batches of 2 in float32 on A GPU" in told
    assert "which is not this machine; its prediction is off by" in told
    assert len(quick) == 1


@pytest.mark.slow
def test_what_is_asked_for_is_measured_and_the_next_command_is_told(tmp_path, monkeypatch, quick):
    monkeypatch.chdir(tmp_path)
    told = done(f"{LINE} --device cpu --dtype bfloat16 --compiled --output there.json").out
    options = quick[0]
    assert (options.device, options.dtype, options.compiled, options.repeats) == ("cpu", "bfloat16", True, 1)
    assert "ms per batch. Written to there.json" in told
    assert "prunekit prune embedded:digits --target 0.8 --target-of latency --latency-table there.json" in told


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--device cuda:99", "Got device 'cuda:99'; expected one that this machine has: cpu"),
        ("--dtype int8", "Got --dtype 'int8'; expected one of float32, bfloat16, float16"),
        ("--batch-size 0", "--batch-size"),
    ],
)
def test_mistakes_in_measuring_get_one_sentence(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    result = typed(f"prunekit latency embedded:digits {words}")
    assert result.code == 2
    assert sentence in result.sentence
    assert listing(tmp_path) == {}


def test_another_file_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("latency.json").write_text("{}")
    assert "latency.json exists and is no earlier table of layer times" in typed(LINE).sentence
