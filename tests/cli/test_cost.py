"""Costs of a base: the JSON contract, the tables, and what other counters say."""

import sys

import pytest
from command_line import done, typed

from prunekit.checkpoint import save_base
from prunekit.steps.bases import open_base

MACS = 11_491_328


@pytest.fixture(scope="module")
def base():
    return open_base("embedded:digits").model


@pytest.fixture(scope="module")
def data():
    return done("prunekit cost embedded:digits --json").json


@pytest.fixture(scope="module")
def lines():
    return done("prunekit cost embedded:digits --depth 1").out.splitlines()


def between(lines, first, *, until):
    """Rows of the table under a title, split at runs of blanks."""
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next(i for i, line in enumerate(lines[start + 1 :], start + 1) if line.startswith(until))
    return [line.split() for line in lines[start + 3 : end]]


def test_json_has_the_promised_keys(data, base):
    assert {"macs", "params", "by_module", "uncounted"} <= set(data)
    assert data["params"] == sum(parameter.numel() for parameter in base.parameters())
    assert data["flops"] == 2 * data["macs"] == 2 * MACS
    assert data["by_module"][""] == data["macs"] == sum(data["by_operator"].values())
    children = [name for name, _ in base.named_children()]
    assert sum(data["by_module"].get(name, 0) for name in children) == data["macs"]
    assert sum(data["params_by_module"].get(name, 0) for name in children) == data["params"]
    assert data["unknown"] == []


def test_json_says_what_other_counters_leave_out_and_add(data):
    attention = {"scaled_dot_product_attention": data["by_operator"]["scaled_dot_product_attention"]}
    fvcore, thop = data["other_counters"]["fvcore"], data["other_counters"]["thop"]
    assert thop["omits"] == fvcore["omits"] == attention
    assert thop["adds"] == {}
    for other in (fvcore, thop):
        assert other["figure"] == data["macs"] - sum(other["omits"].values()) + sum(other["adds"].values())
    assert all(row["module"].split(".")[-2] == "attentions" for row in thop["differences"])
    assert (fvcore["params"], data["params"] - thop["params"]) == (data["params"], 2080)


def test_a_checkpoint_costs_as_the_embedded_base(data, tmp_path):
    save_base(open_base("embedded:digits"), tmp_path / "base.pt")
    assert done(f"prunekit cost {tmp_path}/base.pt --json").json == data


def test_tables_add_up_to_the_total(lines):
    assert lines[0].startswith("embedded:digits: 11,491,328 MACs (22,982,656 FLOPs = 2·MACs)")
    modules = between(lines, "By module", until="By operator")
    operators = between(lines, "By operator", until="fvcore")
    assert sum(int(row[2].replace(",", "")) for row in modules) == MACS
    assert sum(int(row[1].replace(",", "")) for row in operators) == MACS
    assert sum(int(row[1].replace(",", "")) for row in modules) == 463_249
    for rows in (modules, operators):
        assert sum(float(row[-2]) for row in rows) == pytest.approx(100, abs=0.5)
    assert lines[-2].startswith("Not counted (no multiply-accumulates by convention): add ×34, silu ×26")


def test_differences_of_other_counters_are_explained_and_placed(lines, data):
    others = data["other_counters"]
    assert "fvcore: 11,552,256 MACs (+0.53 % of ours), 463,249 parameters" in lines
    assert "thop: 11,393,024 MACs (−0.86 % of ours), 461,169 parameters" in lines
    assert "  +156,160 group_norm: norms, no multiply-accumulates by our convention" in lines
    assert "  −98,304 scaled_dot_product_attention: the products of fused attention, which it does not see" in lines
    placed = between(lines, "Where they differ", until="Not counted")
    assert "torch-pruning: 11,488,912 MACs (−0.02 % of ours), 463,249 parameters" in lines
    for column, name in ((-3, "fvcore"), (-2, "thop"), (-1, "torch-pruning")):
        cells = [row[column].replace("=", "0").replace("−", "-").replace(",", "") for row in placed]
        assert sum(map(int, cells)) == others[name]["figure"] - MACS
    assert ["mid_block", "scaled_dot_product_attention", "−24,576", "−24,576", "−24,576"] in placed


def test_without_comparison_there_is_none():
    out = done("prunekit cost embedded:digits --no-compare").out
    assert "fvcore" not in out
    assert "mid_block.attentions" in out
    assert "other_counters" not in done("prunekit cost embedded:digits --no-compare --json").json


def test_a_counter_that_fails_is_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "thop", None)
    lines = done("prunekit cost embedded:digits --depth 1").out.splitlines()
    assert any(line.startswith("fvcore: 11,552,256 MACs") for line in lines)
    (failed,) = [line for line in lines if line.startswith("thop")]
    assert failed.startswith("thop: failed (ModuleNotFoundError")
    assert lines[-2].startswith("Not counted")


def test_a_depth_below_one_is_refused():
    assert "--depth 0; expected at least 1" in typed("prunekit cost embedded:digits --depth 0").sentence
