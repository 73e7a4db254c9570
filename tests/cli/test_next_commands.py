"""From groups to experts without a gap: any budget works the first time, and every command names the next one."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import pytest
from command_line import TINY, Typed, done, typed

from prunekit.checkpoint import save_base
from prunekit.groups import TimestepGroup
from prunekit.nets import load_experts
from prunekit.slim import load_slim
from prunekit.steps.bases import open_base
from prunekit.steps.standing import SlimFacts, prune_missing

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
SHORT = {
    "prune": "--samples 8 --proposer oneshot",
    "finetune": "--max-train-steps 2 --train-batch-size 4",
    "evaluate": "--count 4 --seeds 1 --loss-samples 4 --num-inference-steps 2",
    "sample": "--count 2 --num-inference-steps 2",
    "groups": "",
}


def shortened(line: str) -> str:
    """A command with few draws and steps."""
    return f"{line} {SHORT.get(line.split()[1], '')}"


def following(result: Typed) -> str:
    """The command that a command suggests."""
    (line,) = [line for line in result.out.splitlines() if line.startswith("Next: ")]
    return line.removeprefix("Next: ")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, hardly trained."""
    folder = tmp_path_factory.mktemp("base")
    with contextlib.chdir(folder):
        Path("tiny.json").write_text(json.dumps(TINY))
        done("prunekit train --config tiny.json --max-train-steps 1 --train-batch-size 2")
    return folder / "base.pt"


@pytest.fixture(scope="module")
def pruned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base, three groups at 0.6 and their slim models."""
    folder = tmp_path_factory.mktemp("pruned")
    shutil.copy(base, folder / "base.pt")
    with contextlib.chdir(folder):
        done("prunekit groups --groups 3 --base base.pt")
        done("prunekit allocate --budget 0.7 --base base.pt")
        done(shortened("prunekit prune base.pt"))
    return folder


@pytest.fixture
def desk(pruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test stands."""
    shutil.copytree(pruned, tmp_path / "desk")
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.mark.slow
def test_the_suggestions_lead_from_a_base_to_its_report(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(base, "base.pt")
    line, typed_lines = "prunekit groups --base base.pt", []
    while line.split()[1] not in typed_lines:
        typed_lines.append(line.split()[1])
        line = following(done(shortened(line)))
    assert typed_lines == ["groups", "allocate", "prune", "finetune", "assemble", "evaluate", "report", "sample"]
    assert "Next: " in done("prunekit").out
    assert done("prunekit").out.count("  done  ") == 8
    assert Path("report/index.html").is_file()
    assert "Repeating it" in Path("report/index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_readmes_commands_go_from_groups_to_a_report(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(base, "base.pt")
    (block,) = re.findall(r"^```\n(prunekit groups.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    assert len(lines) == 7
    for line in lines:
        result = done(shortened(line.replace(" --jobs 2", "")))
        assert "Next: prunekit " in result.out
    assert len(load_experts("experts").groups) == 5
    assert json.loads(Path("allocation.json").read_text())["mean_mac_ratio"] == pytest.approx(0.6)


@pytest.mark.parametrize("method", ["uniform", pytest.param("snr", marks=pytest.mark.slow)])
def test_the_smallest_budget_that_is_named_can_be_pruned(
    method: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done(f"prunekit groups --groups 3 --method {method} --base {base}")
    refused = typed(f"prunekit allocate --budget 0.0001 --base {base}")
    (least,) = re.findall(r"expected (0\.\d+) … 1", refused.err)
    for budget in (least, "0.9"):
        done(f"prunekit allocate --budget {budget} --base {base}")
        facts = done(shortened(f"prunekit prune {base} --output slim-{budget}") + " --json").json["groups"]
        plan = json.loads(Path("allocation.json").read_text())
        assert all(fact["macs"] <= fact["target_macs"] for fact in facts)
        assert plan["mean_mac_ratio"] == pytest.approx(float(budget), abs=1e-6)


def test_every_group_is_checked_before_the_first_search(desk: Path) -> None:
    shutil.rmtree("slim")
    done("prunekit allocate --budget 0.4 --rule snr --floor 0.02")
    plan = json.loads(Path("allocation.json").read_text())
    floor = json.loads((desk / "allocation.json").read_text()).get("network_floor")
    assert floor is None
    low = [group["index"] for group in plan["groups"] if group["mac_ratio"] < 0.08]
    assert low
    result = typed(shortened("prunekit prune base.pt"))
    assert result.code == 2
    assert all(f"{index} (" in result.sentence for index in low)
    assert "before" not in result.out
    assert not Path("slim").exists()
    (again,) = re.findall(r"`(prunekit allocate [^`]*)`", result.sentence)
    done(again)
    done(shortened("prunekit prune base.pt"))
    assert "is below what this network can be pruned to" in typed("prunekit prune base.pt --group 0 --target 0.001").err


def test_a_folder_is_fine_tuned_where_it_needs_it(desk: Path) -> None:
    whole = load_slim("slim/group-0")
    assert not whole.plan.kept
    before = Path("slim/group-0/model.safetensors").read_bytes()
    rows = done(shortened("prunekit finetune slim") + " --json").json["groups"]
    assert [row["state"] for row in rows] == ["whole", "fine-tuned", "fine-tuned"]
    assert Path("slim/group-0/model.safetensors").read_bytes() == before
    again = done(shortened("prunekit finetune slim") + " --json").json["groups"]
    assert [(row["state"], row["loss"]) for row in again] == [("whole", None), ("before", None), ("before", None)]
    every = done(shortened("prunekit finetune slim --all") + " --json").json["groups"]
    assert [row["state"] for row in every] == ["fine-tuned", "before", "before"]
    assert Path("slim/group-0/model.safetensors").read_bytes() != before


def test_another_output_gets_all_groups_and_follows_a_new_pruning(desk: Path) -> None:
    done(shortened("prunekit finetune slim --output tuned"))
    assert sorted(path.name for path in Path("tuned").iterdir()) == ["group-0", "group-1", "group-2"]
    assert done("prunekit assemble tuned --json").json["groups"] == 3
    rows = done(shortened("prunekit finetune slim --output tuned") + " --json").json["groups"]
    assert [row["state"] for row in rows] == ["whole", "before", "before"]
    done("prunekit prune base.pt --group 2 --target 0.3 --samples 8 --proposer oneshot")
    rows = done(shortened("prunekit finetune slim --output tuned") + " --json").json["groups"]
    assert [row["state"] for row in rows] == ["whole", "before", "fine-tuned"]


@pytest.mark.slow
def test_groups_trained_at_the_same_time_are_those_trained_one_by_one(desk: Path) -> None:
    shutil.copytree("slim", "alone")
    one = done(shortened("prunekit finetune alone") + " --json").json["groups"]
    together = done(shortened("prunekit finetune slim --jobs 2") + " --json").json["groups"]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in together])
    assert not list(Path("slim").glob(".*"))
    for index in range(3):
        paths = [Path(folder) / f"group-{index}" / "model.safetensors" for folder in ("alone", "slim")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_missing_groups_are_named_with_the_command_that_makes_them(desk: Path) -> None:
    shutil.rmtree("slim/group-1")
    result = typed("prunekit assemble slim")
    assert result.code == 2
    assert "1 of 3 groups is missing, 1 (timesteps 334 to 666)" in result.sentence
    (again,) = re.findall(r"`(prunekit prune [^`]*)`", result.sentence)
    assert again == "prunekit prune base.pt --group 1 --proposer oneshot"
    assert following(done(f"{again} --samples 8")) == "prunekit finetune slim"
    done("prunekit assemble slim")


def test_the_flow_shows_what_is_done(desk: Path) -> None:
    shutil.rmtree("slim/group-2")
    shown = done("prunekit").out
    assert re.search(r"done  allocate .* 0\.7, rule auto", shown)
    assert re.search(r"part  prune .*slim \(2 of 3 groups\)", shown)
    assert shown.splitlines()[-2] == "Next: prunekit prune base.pt --group 2 --proposer oneshot"


def test_the_flow_prunes_a_missing_group_to_the_target_of_the_others(desk: Path) -> None:
    shutil.rmtree("slim")
    Path("allocation.json").unlink()
    done("prunekit prune base.pt --target 0.6 --samples 4 --proposer uniform --repair none")
    shutil.rmtree("slim/group-1")
    again = following(done("prunekit"))
    assert again == "prunekit prune base.pt --group 1 --target 0.6 --proposer uniform --repair none"
    assert following(done(f"{again} --samples 4")) == "prunekit finetune slim"


def test_a_missing_group_of_a_language_models_search_needs_its_endpoint(tmp_path: Path) -> None:
    made = {"proposer": "llm", "target_of": "params", "target": 333, "base": 1000}
    slims = [SlimFacts(tmp_path / "group-0", TimestepGroup(0, 0, 500), 1000, whole=False, tuned=0, provenance=made)]
    line = prune_missing(slims, [1], tmp_path, base="base.pt", target_of=None)
    wanted = "--target 0.333 --output {} --target-of params --proposer llm --llm-endpoint URL --llm-model MODEL"
    assert line == f"prunekit prune base.pt --group 1 {wanted.format(tmp_path)}"


def test_an_empty_folder_begins_with_a_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert following(done("prunekit")) == "prunekit train --data digits --output base.pt"


def test_a_report_of_single_commands_needs_an_allocation_and_a_base(desk: Path) -> None:
    done("prunekit report .")
    page = Path("report/index.html").read_text(encoding="utf-8")
    assert "prunekit prune BASE" in page
    shutil.rmtree("slim")
    Path("base.pt").rename("../elsewhere.pt")
    assert "neither its base nor slim models of it" in typed("prunekit report .").sentence


def test_a_report_of_steps_minds_only_links_where_it_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    save_base(open_base("embedded:digits"), place / "base.pt")
    done("prunekit allocate --budget 0.8 --base base.pt")
    (place / "my-images").symlink_to(tmp_path / "elsewhere")
    done("prunekit report .")
    assert (place / "report" / "index.html").is_file()
    shutil.rmtree(place / "report")
    (place / "report").symlink_to(tmp_path / "elsewhere")
    assert "leads out of the run's folder" in typed("prunekit report .").sentence
    assert not list((tmp_path / "elsewhere").iterdir())
