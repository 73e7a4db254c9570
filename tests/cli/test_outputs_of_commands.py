"""No command deletes what prunekit did not write, or what it reads; a full disk is one sentence."""

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Typed, done, listing, typed

HEAVY = pytest.mark.slow


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, typed_once: dict[str, Typed], desk: Path) -> Path:
    """Good inputs beside a user's own files; no refused command may change anything."""
    folder = tmp_path_factory.mktemp("outputs")
    for name in ("base.pt", "allocation.json"):
        shutil.copy(desk / name, folder)
    for name in ("slim", "experts"):
        shutil.copytree(desk / name, folder / name)
    for name in (
        "thesis/notes.txt",
        "project/base.pt",
        "project/stages/train.dvc",
        "pruned/group-0/notes.txt",
        "reports/fine/notes.txt",
        "site/index.html",
        "notes.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("years of work")
    for name in ("importance.json", "evaluation.json", "mine.npz", "mine.png", "mine.onnx", "heat.png"):
        (folder / name).write_text("years of work")
    noted = Path(shutil.copytree(desk / "slim" / "group-3", folder / "noted"))
    (noted / "notes.txt").write_text("mine")
    (folder / "nowhere").symlink_to(folder / "absent")
    (folder / "fine.yaml").write_text("name: fine\nbase: {checkpoint: 'embedded:digits'}\n")
    return folder


ONE_STEP = "--max-train-steps 1 --train-batch-size 2"
FEW = "--count 2 --num-inference-steps 2"
REFUSED = {
    # folders with something else in them
    "assemble slim --output thesis": r"thesis exists and holds no earlier experts, but notes\.txt",
    f"finetune slim/group-3 {ONE_STEP} --output thesis": r"thesis exists and holds no earlier slim model",
    f"finetune slim/group-3 {ONE_STEP} --output experts": r"experts exists and holds no earlier slim model",
    f"finetune noted {ONE_STEP}": r"noted holds an earlier slim model and also notes\.txt",
    "prune embedded:digits --group 0 --target 0.8 --output pruned": r"pruned/group-0 exists and holds no earlier slim model",
    f"consistency base.pt experts {FEW} --output thesis": r"thesis exists and holds no earlier comparison",
    "run fine.yaml --output thesis": r"thesis has notes\.txt in it and holds no earlier run",
    "run fine.yaml --output project": r"project has base\.pt in it and holds no earlier run",
    "run fine.yaml --publish reports": r"reports/fine exists and holds no earlier published run",
    "run fine.yaml --publish site": r"site/index\.html is no page of prunekit's",
    "run fine.yaml --output reports2/fine --publish reports2": r"where the run itself is written to",
    # places that are no folder
    "assemble slim --output nowhere": r"nowhere is a symbolic link to .*absent, which does not exist",
    "assemble slim --output notes.txt": r"notes\.txt exists and holds no earlier experts: it is a file",
    "assemble slim --output .": r"\. exists and holds no earlier experts",
    "assemble slim --output notes.txt/experts": r"notes\.txt is no folder",
    "assemble slim --output /proc/experts": r"/proc",
    # files of something else
    "allocate --budget 0.8 --output notes.txt": r"notes\.txt exists and is no earlier allocation.*--overwrite",
    "groups --output allocation.json": r"allocation\.json exists and is no earlier groups.*--overwrite",
    "importance base.pt --output importance.json": r"importance\.json exists and is no earlier importance map.*--overwrite",
    "importance base.pt --output heat.json": r"heat\.png exists and is no earlier picture of prunekit",
    f"evaluate experts {FEW} --output evaluation.json": r"evaluation\.json exists and is no earlier evaluation.*--overwrite",
    f"sample base.pt {FEW} --output mine.npz": r"mine\.npz exists already.*--overwrite",
    f"sample base.pt {FEW} --output heat.npz": r"heat\.png exists already.*--overwrite",
    "export base.pt --output mine.onnx": r"mine\.onnx exists already.*--overwrite",
    f"train {ONE_STEP} --output notes.txt": r"notes\.txt exists already.*--overwrite",
    f"train {ONE_STEP} --output nowhere": r"nowhere is a symbolic link",
    f"train {ONE_STEP} --output /dev/null --overwrite": r"/dev/null is a device",
    # what the command reads
    "assemble slim --output slim": r"slim exists and holds no earlier experts",
    "assemble slim --output slim/group-0": r"slim/group-0",
    "assemble slim --output slim/group-9": r"slim/group-9",
    "assemble slim --output slim/group-0/experts": r"is inside slim/group-0",
    "assemble experts --output experts": r"experts would replace experts",
    f"finetune slim/group-3 {ONE_STEP} --output slim/group-3/tuned": r"is inside slim/group-3",
    "export base.pt --output base.pt --overwrite": r"base\.pt would replace base\.pt",
    "export slim/group-3 --output slim/group-3/m.onnx": r"is inside slim/group-3",
    f"sample experts {FEW} --output experts/samples.npz": r"is inside experts",
    f"sample experts {FEW} --output experts": r"experts is a folder",
    "allocate --budget 0.8 --groups-file allocation.json --output allocation.json": r"would replace allocation\.json",
}


@pytest.mark.parametrize(("line", "said"), REFUSED.items(), ids=list(REFUSED))
def test_what_prunekit_did_not_write_stays(workshop, monkeypatch, line, said):
    monkeypatch.chdir(workshop)
    before = listing(workshop)
    result = typed(f"prunekit {line}")
    assert (result.code, result.out) == (2, ""), result
    assert re.search(said, result.sentence), result.sentence
    assert listing(workshop) == before


@pytest.mark.slow
def test_an_earlier_output_is_replaced_and_overwrite_replaces_any_file(workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("slim", "experts"):
        shutil.copytree(workshop / name, name)
    Path("disk").mkdir()
    Path("experts").rename("disk/experts")
    Path("experts").symlink_to("disk/experts")
    done("prunekit assemble slim")
    assert Path("experts").is_symlink()
    done("prunekit allocate --budget 0.8")
    first = Path("allocation.json").read_bytes()
    done("prunekit allocate --budget 0.9")
    assert Path("allocation.json").read_bytes() != first
    Path("notes.txt").write_text("mine")
    done("prunekit allocate --budget 0.8 --output notes.txt --overwrite")
    assert Path("notes.txt").read_bytes() == first
    assert not [name for name in listing(tmp_path) if name.endswith(".part")]


@pytest.mark.slow
def test_assembling_puts_a_slim_model_back_that_a_kill_left_aside(workshop, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(workshop / "slim", "slim")
    Path("slim/group-3").rename("slim/.group-3.old.part")
    done("prunekit assemble slim")
    assert Path("slim/group-3/config.json").is_file()
    Path("experts").rename(".experts.old.part")
    done("prunekit cost experts --no-compare --json")
    assert Path("experts").is_dir()


FULL = [
    "allocate --budget 0.8",
    "groups",
    "assemble slim",
    f"sample base.pt {FEW}",
    f"train {ONE_STEP} --output trained.pt",
    f"finetune slim/group-3 {ONE_STEP} --output tuned",
    "run fine.yaml",
    pytest.param("export slim/group-3", marks=HEAVY),
    pytest.param("importance base.pt --samples 4", marks=HEAVY),
    pytest.param("prune base.pt --group 0 --target 0.9 --samples 4 --proposer oneshot --output other", marks=HEAVY),
    pytest.param(f"consistency base.pt base.pt {FEW} --output compared", marks=HEAVY),
    pytest.param("groups --method similarity --data digits --samples 32 --nodes 8", marks=HEAVY),
    pytest.param(f"evaluate slim/group-3 {FEW} --seeds 1 --loss-samples 4", marks=HEAVY),
    pytest.param(f"finetune slim/group-3 {ONE_STEP} --output tuned --logging-dir logs", marks=HEAVY),
]


@pytest.mark.parametrize("line", FULL)
def test_a_disk_that_takes_no_more_is_one_sentence(workshop, tmp_path, monkeypatch, line):
    for name in ("base.pt", "slim", "fine.yaml"):
        (tmp_path / name).symlink_to(workshop / name)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))  # every file ends after 64 bytes
        result = typed(f"prunekit {line}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert result.code == 2, result
    said = [line for line in result.err.splitlines() if line.startswith("prunekit: ") and "File too large" in line]
    assert len(said) == 1, result.err
    assert "make room" in said[0]
    assert "Traceback" not in result.err
    left = {name for name in listing(tmp_path).keys() - before.keys() if "journal" not in name and "search" not in name}
    assert not [name for name in left if name.endswith(".part") or name in ("experts", "tuned/config.json", "base.pt")]


def test_a_full_standard_output_is_one_sentence(tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        line = [sys.executable, "-c", "from prunekit.cli.app import main; main()", "allocate", "--budget", "0.8"]
        ended = subprocess.run(line, check=False, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)  # noqa: S603
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        "prunekit: Standard output, or a file that grows: No space left on device; make room"
    )
    assert len(ended.stderr.splitlines()) == 1


def test_a_report_follows_no_link_out_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report").symlink_to("../other")
    (tmp_path / "run" / "manifest.json").write_text("{}")
    result = typed("prunekit report run")
    assert result.code == 2
    assert "run/report is a symbolic link that leads out of the run's folder" in result.sentence
    assert not list((tmp_path / "other").iterdir())
