import copy
import csv
import json

import pytest

from prunekit.ledger import both_ways, forwards
from prunekit.report import RunResults, summary_rows
from prunekit.report.cost_tables import cost_sentence, kinds_table, ledger_table
from prunekit.report.document import Tile
from prunekit.report.flow_chart import flow_of
from prunekit.report.result_table import result_table, result_tiles
from prunekit.report.table import Table, count, named
from prunekit.report.tables import cost_table, loss_table, metric_table
from prunekit.report.times import predicted_time_sentence, time_sentence


def read_csv(path):
    with path.open(newline="") as handle:
        return list(csv.DictReader(handle))


def numbers(rows, key):
    return [float(row[key]) for row in rows]


def test_cost_table_has_the_manifests_numbers(full_run, manifest):
    rows = read_csv(full_run / "report" / "table.csv")
    base, experts, together = rows[0], rows[1:-1], rows[-1]
    assert (int(base["macs"]), int(base["params"])) == (manifest["base"]["macs"], manifest["base"]["params"])
    for key in ("macs", "params", "target_macs"):
        assert [int(row[key]) for row in experts] == [expert[key] for expert in manifest["experts"]]
    groups = manifest["allocation"]["groups"]
    for column, key in (("snr_db", "snr_db"), ("share", "share"), ("target_ratio", "mac_ratio")):
        assert numbers(experts, column) == [group[key] for group in groups]
    assert numbers(experts, "first_timestep") == [group["start"] for group in groups]
    assert numbers(experts, "last_timestep") == [group["stop"] - 1 for group in groups]
    assert float(together["macs"]) == manifest["assembled"]["mean_macs"]
    assert float(together["mac_ratio"]) == manifest["assembled"]["mean_mac_ratio"]
    assert int(together["params"]) == manifest["assembled"]["params"]
    assert numbers(rows, "flops") == [2 * macs for macs in numbers(rows, "macs")]


def test_markdown_has_the_macs_and_flops(full_run, manifest):
    text = (full_run / "report" / "table.md").read_text()
    for expert in manifest["experts"]:
        assert f"| {expert['macs']:,} | {2 * expert['macs']:,} | {expert['params']:,} |" in text
    assert "FLOPs = 2·MACs" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {11}


@pytest.mark.parametrize("make", [cost_table, loss_table, metric_table])
def test_csv_round_trips(full_run, manifest, make):
    table = make(RunResults.from_manifest(manifest))
    read = read_csv(full_run / "report" / f"{table.name}.csv")
    assert len(read) == len(table.rows)
    for texts, row in zip(read, table.rows, strict=True):
        assert list(texts) == list(row)
        for key, value in row.items():
            assert texts[key] == "" if value is None else type(value)(texts[key]) == value


def test_metrics_show_the_measures_of_which_more_is_better_where_there_are_some(manifest):
    without = metric_table(RunResults.from_manifest(copy.deepcopy(manifest)))
    assert "lower is better" in without.caption
    assert not any(key.startswith(("precision", "recall", "clip_score")) for key in without.rows[0])
    manifest["metrics"]["rows"][0] |= {"precision": {"mean": 0.7, "se": 0.01}, "clip_score": {"mean": 31.5, "se": None}}
    table = metric_table(RunResults.from_manifest(manifest))
    labels = [column.heading for column in table.columns]
    assert labels.index("CLIP score") == labels.index("Precision") + 1
    assert "Recall" not in labels
    first, second = table.rows[:2]
    assert (first["precision_mean"], first["clip_score_mean"], second["precision_mean"]) == (0.7, 31.5, None)
    assert table.caption.endswith("; lower FID and KID and higher precision and CLIP score are better")


def test_large_integers_stay_exact_beside_missing_ones(manifest, tmp_path):
    manifest["base"]["macs"] = 2**60 + 1
    manifest["experts"] = manifest["experts"][:2]
    del manifest["assembled"]
    cost_table(RunResults.from_manifest(manifest)).to_csv(tmp_path / "table.csv")
    assert f",{2**60 + 1}," in (tmp_path / "table.csv").read_text()


def test_ledger_adds_up(manifest):
    table = ledger_table(RunResults.from_manifest(manifest).ledger)
    assert table.rows[-1]["macs"] == sum(entry["macs"] for entry in manifest["ledger"])
    assert all(row["flops"] == 2 * row["macs"] for row in table.rows)


def test_totals_by_kind_tell_making_from_measuring(manifest):
    rows = [both_ways("base training", "training", 10, 7), forwards("evaluation", "sampling", 4, 28)]
    manifest["ledger"] = [row.to_json() for row in rows]
    results = RunResults.from_manifest(manifest)
    table = kinds_table(results.ledger)
    assert [(row["making"], row["macs"], row["backward_macs"]) for row in table.rows] == [
        ("yes", 210, 140),
        ("no", 28, 0),
    ]
    assert [row["stage"] for row in ledger_table(results.ledger).rows] == ["base training", "total"]
    assert cost_sentence(results) == ""  # no experts


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (
            {"training": {"macs": 400, "samples": 1}},
            "0.25 of the 400 MACs of the base's training, so base and experts together took 1.25 times as many",
        ),
        ({"training": None}, "; the cost of training the base is not recorded."),
        ({}, "; the cost of training the base is not recorded."),
    ],
)
def test_what_making_cost_is_said_beside_the_bases_training(manifest, base, said):
    rows = [both_ways("fine-tuning, group 0", "training", 10, 3), forwards("search, group 0", "search", 5, 10)]
    manifest["ledger"] = [row.to_json() for row in rows]
    manifest["base"] |= base
    sentence = cost_sentence(RunResults.from_manifest(manifest))
    assert sentence.startswith("Making all experts took 100 MACs, search and scoring included")
    assert said in sentence


def test_summary_rows_are_plain_data(manifest):
    rows = summary_rows(manifest)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["model"] for row in rows[:2]] == ["base", "expert 0"]
    assert len(rows) == 7
    assert rows[1]["timesteps"] == "0–199"
    assert (rows[0]["fid"], rows[-1]["fid"]) == (4.0213, 4.2104)
    assert [row["macs"] for row in rows[1:-1]] == [expert["macs"] for expert in manifest["experts"]]
    change = manifest["losses"][2]["difference"]["mean"] / manifest["losses"][2]["base"]["mean"] * 100
    assert rows[3]["loss_change_percent"] == pytest.approx(change)


def test_a_column_without_a_value_is_left_out():
    rows = ({"a": "x", "b": None, "c": 1}, {"a": "y", "b": None, "c": None})
    table = Table("t", "caption", rows, (named("A", "a"), count("B", "b"), count("C", "c")))
    assert [column.heading for column in table.shown] == ["A", "C"]
    assert "B" not in table.markdown
    assert list(table.frame) == ["a", "b", "c"]  # the CSV has all


def test_the_first_table_has_quality_time_size_and_what_was_spent(manifest):
    manifest["base"]["training"] = {"macs": 10**13, "samples": 1}
    table = result_table(RunResults.from_manifest(manifest))
    headings = [column.heading for column in table.shown]
    assert headings == [
        "Model",
        "FID (features: digits-cnn, n = 1024)",
        "Held-out loss",
        "MACs, of the base's",
        "MACs per step",
        "Seconds per image",
        "Parameters stored",
        "MACs spent to make it",
    ]
    assert [cell.text for cell in table.cells[0]][5:] == ["0.0131", "361 k", "10.0 T"]
    assert table.is_strong(1)
    made = sum(entry["macs"] for entry in manifest["ledger"])
    assert table.rows[1]["spent"] == 10**13 + made
    assert table.cells[1][-1].text.endswith("×)")


def test_time_at_several_batch_sizes_and_what_is_resident_are_shown_where_the_manifest_has_them(manifest):
    manifest["metrics"]["batch_size"] = 64
    for row, seconds in zip(manifest["metrics"]["rows"], (0.02, 0.018), strict=True):
        row |= {"seconds_alone": seconds, "params": 900_000, "params_resident": 500_000}
    table = result_table(RunResults.from_manifest(manifest))
    headings = [column.heading for column in table.shown]
    assert headings[5:9] == [
        "Seconds per image, alone",
        "Seconds per image, 64 at a time",
        "Parameters stored",
        "Parameters resident",
    ]
    assert [cell.text for cell in table.cells[1]][5:9] == ["0.0180", "0.0121", "900 k", "500 k"]


def test_a_relative_time_says_how_many_images_were_sampled_together(manifest):
    results = RunResults.from_manifest(manifest)
    assert Tile("0.92", "of the base's time for an image") in result_tiles(results)
    manifest["metrics"]["batch_size"] = 256
    (tile,) = (tile for tile in result_tiles(RunResults.from_manifest(manifest)) if "time" in tile.label)
    assert tile == Tile("0.92", "of the base's time per image, 256 at a time")
    for row, seconds in zip(manifest["metrics"]["rows"], (0.02, 0.0198), strict=True):
        row["seconds_alone"] = seconds
    results = RunResults.from_manifest(manifest)
    label = "of the base's time per image, 256 at a time; 0.99 for one image alone"
    assert Tile("0.92", label) in result_tiles(results)
    said = time_sentence(results)
    assert said.startswith("One image in a batch of 256 took 0.0121 s against the base's 0.0131 s")
    assert "0.92 of the time; an image alone 0.0198 s against 0.0200 s: 0.99." in said


def test_the_flow_says_which_timestep_groups_were_trained(manifest):
    manifest["config"]["finetune"] = {"train": {"steps": 1000}, "only_pruned": True}

    def said(*groups):
        rows = [row for row in manifest["ledger"] if not row["stage"].startswith("fine-tuning")]
        spent = [{"stage": f"fine-tuning, group {one}", "kind": "training", "samples": 1, "macs": 3} for one in groups]
        run = {**manifest, "ledger": [*rows, *spent]}
        (step,) = (step for step in flow_of(RunResults.from_manifest(run)).steps if step.title == "Fine-tuning")
        return step.figures[0]

    experts = manifest["experts"]
    assert said(*range(len(experts))) == "1,000 steps for each group"
    for expert in experts[:3]:
        expert["macs"] = expert["target_macs"] = manifest["base"]["macs"]
    assert said(3, 4) == "1,000 steps for each of the 2 pruned groups"
    assert said(0, 3) == "1,000 steps for each of 2 groups"
    experts[3]["macs"] = experts[3]["target_macs"] = manifest["base"]["macs"]
    assert said(4) == "1,000 steps for the one pruned group"


def test_what_making_took_is_stated_for_experts_whose_base_has_no_recorded_cost(manifest):
    del manifest["metrics"]
    table = result_table(RunResults.from_manifest(manifest))
    assert [row["model"] for row in table.rows] == ["base", "experts"]
    assert table.cells[1][-1].text.endswith(" and the base's")


def test_without_experts_and_metrics_there_is_no_first_table(manifest):
    for part in ("metrics", "assembled"):
        del manifest[part]
    assert result_table(RunResults.from_manifest(manifest)) is None


@pytest.mark.parametrize(("seconds", "advised"), [(0.012, True), (0.0108, False)])
def test_a_page_says_how_saved_macs_become_time(manifest, seconds, advised):
    """The experts keep 0.8 of the MACs; the base takes 0.01312 s."""
    manifest = copy.deepcopy(manifest)
    rows = {row["model"]: row for row in manifest["metrics"]["rows"]}
    rows["experts"] |= {"seconds_per_image": seconds, "mac_ratio": 0.8}
    said = time_sentence(RunResults.from_manifest(manifest))
    assert " of the time." in said
    assert ("width_multiples" in said and "target_of: latency" in said) is advised


def test_a_page_says_what_experts_of_a_target_of_time_take_and_how_far_that_is_off(manifest):
    manifest = copy.deepcopy(manifest)
    assert predicted_time_sentence(RunResults.from_manifest(manifest)) == ""
    for expert, predicted in zip(manifest["experts"], (0.5, 0.75), strict=False):
        expert["time"] = {
            "target": 0.8,
            "predicted": predicted,
            "base": 1.0,
            "batch_size": 16,
            "machine": {"processor": "A GPU", "device": "cuda"},
            "dtype": "bfloat16",
            "compiled": True,
            "error": 0.05,
            "worst_error": 0.125,
        }
    said = predicted_time_sentence(RunResults.from_manifest(manifest))
    assert "0.5 to 0.75 of the base's time for batches of 16 in bfloat16, compiled, on A GPU" in said
    assert said.endswith("The prediction is off by 5.0% in the median of random plans, 12.5% at worst.")
