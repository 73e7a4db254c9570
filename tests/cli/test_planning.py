import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit import __version__
from prunekit.allocation import Allocation
from prunekit.groups import TimestepGroups
from prunekit.schedule import NoiseSchedule, sampler_timesteps

SCRIPT = Path(sys.executable).with_name("prunekit")
HEAVY = ("torch", "diffusers", "pandas", "matplotlib", "scipy", "sklearn")


def one_sentence(text):
    lines = text.splitlines()
    return len(lines) == 1 and lines[0].startswith("prunekit: ") and lines[0].endswith(".") and "Traceback" not in text


def processor_seconds(command, folder):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, check=True, capture_output=True)  # noqa: S603 - our own script
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["allocate", "--help"],
        ["allocate", "--budget", "0.8"],
        ["allocate", "--budget", "0.8", "--json", "--sampler", "ddpm"],
        ["allocate", "--budget", "0.8", "--rule", "measured", "--groups", "1", "--journals", "."],
        ["groups", "--groups", "4"],
    ],
)
def test_planning_imports_nothing_heavy(tmp_path, arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['prunekit', *{arguments!r}]\n"
        "from prunekit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    (tmp_path / "search-0.jsonl").write_text(
        '{"round": 0, "macs": 10, "loss": 1}\n{"round": 1, "chosen": "a", "macs": 5, "loss": 2}\n'
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)  # noqa: S603
    assert done.stderr.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.is_file(), reason="prunekit is not installed beside this Python")
@pytest.mark.parametrize("arguments", [["--help"], ["allocate", "--budget", "0.8"]])
def test_planning_answers_at_once(tmp_path, arguments):
    """Against a command of typer that only imports numpy, in turn, as both depend on the machine and its load alike."""
    typed = "import numpy, typer; app = typer.Typer(); app.command()(lambda: None); app([])"
    lines = ([sys.executable, "-c", typed], [SCRIPT, *arguments])
    took = [[processor_seconds(line, tmp_path) for line in lines] for _ in range(5)]
    assert min(command / least for least, command in took) < 2


def test_allocate_writes_what_it_shows(run, tmp_path):
    code, out, err = run("allocate", "--budget", "0.8")
    assert (code, err) == (0, "")
    allocation = Allocation.from_json(json.loads((tmp_path / "allocation.json").read_text()))
    assert [group.mac_ratio for group in allocation.groups] == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.4])
    assert (allocation.sampler, allocation.sampler_steps, allocation.num_timesteps) == ("ddim", 50, 1000)
    for group in allocation.groups:
        assert f"{group.start}–{group.stop - 1}" in out
        assert f"{group.mac_ratio:.4f}" in out
    assert "Feasible budgets with this rule: 0 … 1." in out
    assert out.endswith(
        "Next: prunekit prune BASE\n(BASE is the trained network: a file, a folder or embedded:digits.)\n"
    )
    assert os.listdir(tmp_path) == ["allocation.json"]


def test_json_on_standard_output_is_the_file(run, tmp_path):
    for name, arguments in {"allocation": ["allocate", "--budget", "0.8"], "groups": ["groups"]}.items():
        code, out, err = run(*arguments, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out) == json.loads((tmp_path / f"{name}.json").read_text())


def test_flags_reach_the_allocation(run, tmp_path):
    flags = ["--rule", "snr", "--groups", "3", "--floor", "0.2", "--noise-schedule", "cosine", "--num-timesteps", "400"]
    code, _, err = run(
        "allocate",
        "--budget",
        "0.5",
        *flags,
        "--num-inference-steps",
        "20",
        "--sampler",
        "ddpm",
        "--output",
        "x/a.json",
    )
    assert (code, err) == (0, "")
    data = json.loads((tmp_path / "x" / "a.json").read_text())
    assert (data["rule"], data["num_timesteps"], data["sampler"], data["sampler_steps"]) == ("snr", 400, "ddpm", 20)
    assert len(data["groups"]) == 3
    assert data["feasible"] == [0.2, 1.0]
    snr_db = NoiseSchedule.cosine(400).snr_db
    assert data["groups"][0]["snr_db"] == pytest.approx(snr_db[:134].mean())


@pytest.mark.parametrize("budget", ["0.3", "1.2", "-1"])
def test_a_refused_budget_writes_nothing_and_says_the_range(run, tmp_path, budget):
    code, out, err = run("allocate", "--budget", budget, "--rule", "linear")
    assert (code, out) == (2, "")
    assert one_sentence(err)
    assert "expected 0.6 … 1" in err
    assert os.listdir(tmp_path) == []


def test_a_budget_that_is_not_a_number_writes_nothing(run, tmp_path):
    code, out, err = run("allocate", "--budget", "nan")
    assert (code, out) == (2, "")
    assert one_sentence(err)
    assert "Got --budget nan; expected a finite number." in err
    assert os.listdir(tmp_path) == []


def test_a_refused_budget_leaves_the_old_file_alone(run, tmp_path):
    run("allocate", "--budget", "0.8")
    before = (tmp_path / "allocation.json").read_bytes()
    assert run("allocate", "--budget", "0.1", "--rule", "linear")[0] == 2
    assert (tmp_path / "allocation.json").read_bytes() == before


def test_groups_writes_a_partition_with_its_schedule(run, tmp_path):
    code, out, _ = run(
        "groups", "--groups", "3", "--method", "snr", "--noise-schedule", "cosine", "--num-timesteps", "500"
    )
    assert code == 0
    data = json.loads((tmp_path / "groups.json").read_text())
    groups = TimestepGroups.from_json(data)
    assert (len(groups), groups.num_timesteps, groups.method) == (3, 500, "snr")
    assert NoiseSchedule.from_config(data["noise_schedule"]).to_config()["kind"] == "cosine"
    assert f"{groups.cuts[0]}–{groups.cuts[1] - 1}" in out


def test_allocate_picks_up_the_groups_that_stand_here(run, tmp_path):
    run("groups", "--cuts", "50,300", "--noise-schedule", "cosine", "--num-timesteps", "500")
    code, out, _ = run("allocate", "--budget", "0.8", "--json")
    assert code == 0
    data = json.loads(out)
    assert [(group["start"], group["stop"]) for group in data["groups"]] == [(0, 50), (50, 300), (300, 500)]
    assert data["groups"][0]["snr_db"] == pytest.approx(NoiseSchedule.cosine(500).snr_db[:50].mean())
    shares = TimestepGroups.from_cuts(500, [50, 300]).shares(sampler_timesteps(500, 50))
    assert [group["share"] for group in data["groups"]] == shares.tolist()

    (tmp_path / "groups.json").rename(tmp_path / "mine.json")
    assert json.loads(run("allocate", "--budget", "0.8", "--json", "--groups-file", "mine.json")[1]) == data
    assert len(json.loads(run("allocate", "--budget", "0.8", "--json")[1])["groups"]) == 5


def test_a_number_of_groups_is_preferred_to_the_file(run):
    run("groups", "--cuts", "50,300")
    assert len(json.loads(run("allocate", "--budget", "0.8", "--groups", "2", "--json")[1])["groups"]) == 2


def test_groups_without_a_schedule_take_the_flags(run, tmp_path):
    (tmp_path / "groups.json").write_text(json.dumps(TimestepGroups.from_cuts(500, [250]).to_json()))
    data = json.loads(run("allocate", "--budget", "0.8", "--noise-schedule", "cosine", "--json")[1])
    assert data["num_timesteps"] == 500
    assert data["groups"][0]["snr_db"] == pytest.approx(NoiseSchedule.cosine(500).snr_db[:250].mean())


@pytest.mark.parametrize("flags", [["--noise-schedule", "linear"], ["--num-timesteps", "1000"]])
def test_flags_that_contradict_the_groups_file_are_refused(run, tmp_path, flags):
    run("groups", "--noise-schedule", "cosine", "--num-timesteps", "500")
    code, _, err = run("allocate", "--budget", "0.8", *flags)
    assert code == 2
    assert "groups.json was cut for a cosine noise schedule of 500 timesteps" in err
    assert not (tmp_path / "allocation.json").exists()
    assert run("allocate", "--budget", "0.8", "--noise-schedule", "cosine", "--num-timesteps", "500")[0] == 0


@pytest.fixture
def journals(tmp_path):
    """Two groups: the cleaner one loses slowly, the noisier one fast; beside the folder that commands run in."""
    folder = tmp_path.parent / f"{tmp_path.name}-journals"
    folder.mkdir()
    for index, losses in enumerate([(1.0, 1.1, 1.2), (2.0, 4.0, 8.0)]):
        entries = [{"key": "k"}, {"round": 0, "steps": [0], "macs": 1000, "loss": losses[0]}]
        entries += [{"round": i, "chosen": "a", "macs": 1000 - 300 * i, "loss": losses[i]} for i in (1, 2)]
        (folder / f"search-{index}.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


TWO = ["--groups", "2", "--num-inference-steps", "10"]


def test_the_measured_rule_follows_the_journals_and_shows_the_others_beside_it(run, tmp_path, journals):
    code, out, err = run("allocate", "--budget", "0.8", "--rule", "measured", "--journals", journals, *TWO)
    assert (code, err) == (0, "")
    data = json.loads((tmp_path / "allocation.json").read_text())
    assert Allocation.from_json(data).mean_mac_ratio == pytest.approx(0.8, abs=1e-9)
    assert [group["target_macs"] for group in data["groups"]] == [600, 1000]
    assert data["base_macs"] == 1000
    assert data["frontiers"][1] == {"base_macs": 1000, "macs": [400, 700, 1000], "loss": [8.0, 4.0, 2.0]}
    compared = data["comparison"]
    assert compared["linear"]["mac_ratios"] == pytest.approx([1.0, 0.6])
    assert compared["measured"]["loss"] == pytest.approx((1.2 - 0.2 / 3 + 2) / 2)
    assert compared["measured"]["recorded_loss"] == pytest.approx((1.2 + 2) / 2)
    assert compared["linear"]["recorded_loss"] == pytest.approx((1 + 8) / 2)
    (header,) = (line for line in out.splitlines() if line.split()[:1] == ["group"] and "linear" in line)
    assert header.split()[-4:] == ["auto", "linear", "snr", "measured"]
    assert "recorded loss" in out
    assert f"{compared['linear']['loss']:.4f}" in out


def test_what_the_measured_rule_does_not_spend_is_said(run, journals):
    for path in journals.iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        entries = [{**line, "loss": 3 - line["loss"] / 10} if "loss" in line else line for line in lines]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    code, out, _ = run("allocate", "--budget", "0.8", "--rule", "measured", "--journals", journals, *TWO)
    assert code == 0
    assert "Mean over the steps: 0.400000" in out
    assert "Every group has the target with its least loss, so the rest of the budget is not spent." in out


def test_with_journals_any_rule_is_compared_and_a_rule_that_cannot_is_a_dash(run, journals):
    code, out, err = run("allocate", "--budget", "0.6", "--rule", "snr", "--journals", journals, *TWO)
    assert (code, err) == (0, "")
    (mean,) = (line for line in out.splitlines() if line.split()[:1] == ["mean"])
    assert mean.split() == ["mean", "0.6000", "—", "0.6000", "0.6000"]
    code, out, _ = run("allocate", "--budget", "0.6", "--rule", "snr", "--journals", journals, *TWO, "--json")
    assert code == 0
    assert json.loads(out)["comparison"]["linear"] is None
    assert "comparison" not in json.loads(run("allocate", "--budget", "0.8", "--json")[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "0.8", *TWO], "Got 0 recorded frontiers for 2 timestep groups"),
        (["--budget", "0.8", "--journals", "none", *TWO], "none has no journals search-0.jsonl"),
        (["--budget", "0.8", "--journals", "JOURNALS", "--groups", "3"], "search-2.jsonl does not exist"),
        (["--budget", "0.8", "--journals", "JOURNALS", "--groups", "1"], "there are 1 groups"),
        (
            ["--budget", "0.3", "--journals", "JOURNALS", *TWO],
            "expected 0.4 … 1. Choose a budget in that range, or searches down to a smaller target: record",
        ),
    ],
)
def test_a_measured_rule_without_its_measurements_says_how_to_get_them(run, tmp_path, journals, arguments, said):
    arguments = [str(journals) if word == "JOURNALS" else word for word in arguments]
    code, out, err = run("allocate", "--rule", "measured", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "prunekit prune base.pt --target 0.3" in err
    assert one_sentence(err)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["allocate", "--budget", "0.8", "--groups", "0"], "Got 0 timestep groups"),
        (["allocate", "--budget", "0.8", "--groups", "2000"], "Got 2000 timestep groups"),
        (["allocate", "--budget", "0.8", "--num-timesteps", "0"], "Got 0 training timesteps"),
        (["allocate", "--budget", "0.8", "--num-timesteps", "100000000"], "expected an integer in 2 … 1,000,000"),
        (["allocate", "--budget", "0.8", "--num-inference-steps", "0"], "Got 0 sampling steps"),
        (["allocate", "--budget", "0.8", "--num-inference-steps", "1001"], "expected 1 … 1000"),
        (["allocate", "--budget", "0.8", "--rule", "snr", "--floor", "0"], "Got --floor 0"),
        (["allocate", "--budget", "0.8", "--groups-file", "none.json"], "none.json does not exist"),
        (
            ["allocate", "--budget", "0.8", "--groups-file", "x.json", "--groups", "3"],
            "Got both --groups and --groups-file",
        ),
        (["allocate", "--budget", "0.8", "--output", "."], "is a folder; expected the name of a file"),
        (["allocate", "--budget", "0.8", "--experts", "noisy", "--rule", "uniform"], "expected auto, linear or snr"),
        (["groups", "--groups", "-3"], "Got -3 timestep groups"),
        (["groups", "--cuts", "600,250"], "expected rising integers"),
        (["groups", "--cuts", "a,b"], "Got --cuts 'a,b'; expected rising integers"),
        (["groups", "--cuts", ""], "expected rising integers"),
        (["groups", "--cuts", "1_00,500"], "Got --cuts '1_00,500'; expected rising integers"),
        (["groups", "--cuts", "0,1000"], "strictly between 0 and 1000"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(run, tmp_path, arguments, said):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert one_sentence(err)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["allocate"],
        ["allocate", "--budget", "much"],
        ["allocate", "--budget", "0.8", "--num-inference-steps", "2.5"],
        ["allocate", "--budget", "0.8", "--rule", "cubic"],
        ["allocate", "--budget", "0.8", "--noise-schedule", "square"],
        ["allocate", "--budget", "0.8", "--nonsense"],
        ["groups", "--groups", "three"],
        ["groups", "--method", "kmeans"],
        ["nonsense"],
    ],
)
def test_flags_of_a_wrong_type_exit_with_2_and_write_nothing(run, tmp_path, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert one_sentence(err)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not readable JSON"),
        ('{"format": "prunekit-allocation/1"}', "expected 'prunekit-groups/1'"),
        (
            '{"format": "prunekit-groups/1", "num_timesteps": 10, "groups": []}',
            "make the file again with `prunekit groups`",
        ),
        (
            '{"format": "prunekit-groups/1", "num_timesteps": 10, "groups": [{"index": 0, "start": 0, "stop": 10}],'
            ' "noise_schedule": 3}',
            "noise_schedule is 3; expected an object",
        ),
        (
            '{"format": "prunekit-groups/1", "num_timesteps": 100, "groups": [{"index": 0, "start": 0, "stop": 100}],'
            ' "noise_schedule": {"kind": "linear", "num_timesteps": 200}}',
            "cover 100 timesteps and the noise schedule has 200",
        ),
    ],
)
def test_a_broken_groups_file_is_refused(run, tmp_path, content, said):
    (tmp_path / "groups.json").write_text(content)
    code, out, err = run("allocate", "--budget", "1.0")
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["groups.json"]


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"{__version__}\n", "")
