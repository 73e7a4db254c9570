"""README and its two tables in docs/ are right: the Python runs, the commands exist, the figures are in the manifests."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from networks import UNET_CONFIG
from PIL import Image
from true_figures import figures
from typer.testing import CliRunner

from prunekit._json import read_json
from prunekit.checkpoint import ModelSpec
from prunekit.cli.app import MODULES, app
from prunekit.cost import count_macs
from prunekit.graph import PruningPlan, trace
from prunekit.groups import make_groups
from prunekit.nets import save_experts
from prunekit.recipe import FinetuneOptions, PruneOptions, load_recipe
from prunekit.report import kind_of
from prunekit.report.document import Code, Fold
from prunekit.report.provenance import again
from prunekit.results.reading_manifests import read_manifest
from prunekit.schedule import NoiseSchedule
from prunekit.search import SearchOptions
from prunekit.slim import SlimModel
from prunekit.training import TrainOptions

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS, COMMANDS_PAGE, EXPERTS = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("results", "commands", "experts")
)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = re.findall(r"^\| `prunekit ([a-z]+)", COMMANDS_PAGE, flags=re.MULTILINE)
RUNS = sorted(path.parent for path in (ROOT / "reports").glob("*/manifest.json"))


def tiny_spec() -> ModelSpec:
    return ModelSpec("UNet2DModel", UNET_CONFIG)


@pytest.mark.slow
def test_the_python_example_is_five_lines_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / "my-images" / f"{index}.png")
    model = tiny_spec().build()
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 5
    names: dict[str, Any] = {
        "model": model,
        "example_inputs": tiny_spec().example_inputs(),
        "pipeline": DDPMPipeline(model, DDPMScheduler()),
        "pruning": PruneOptions(samples=8, batch_size=8, search=SearchOptions(rounds=1, shortlist=2)),
        "finetuning": FinetuneOptions(train=TrainOptions(steps=2, batch_size=4)),
    }
    quick = BLOCKS[0].replace("budget=0.8", "budget=0.8, pruning=pruning, finetuning=finetuning")
    exec(compile(quick, "README.md", "exec"), names)  # noqa: S102 - the example is the test
    assert names["pruned"].macs <= 0.6 * count_macs(model, names["example_inputs"]).macs
    assert len(names["pipeline"].unet.groups) == 5
    assert (tmp_path / "slim" / "config.json").is_file()


def test_the_pipeline_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, spec = NoiseSchedule.linear(), tiny_spec()
    about = {"noise_schedule": schedule.to_config(), "prediction_type": "epsilon"}
    groups, slims = make_groups(schedule, 2), []
    for group in groups:
        model = spec.build()
        plan = PruningPlan({}, trace(model, spec.example_inputs()).fingerprint)
        slims.append(SlimModel(model, spec, plan, {}, group, 1000, *figures(model, spec.example_inputs()), about))
    save_experts(slims, groups, tmp_path / "experts")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", EXPERTS, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example.replace("steps=50", "steps=2"), "experts.md", "exec"), names)  # noqa: S102 - see above
    assert [image.size for image in names["images"]] == [(8, 8)] * 4


def test_readme_is_short_and_has_one_example_one_picture_and_one_table() -> None:
    assert len(README.splitlines()) <= 120
    assert len(BLOCKS) == 1
    assert len(re.findall(r"^!\[", README, flags=re.MULTILINE)) == 1
    assert len(re.findall(r"^\|[-:|]+\|$", README, flags=re.MULTILINE)) == 1


def test_every_command_is_listed() -> None:
    assert set(COMMANDS) == set(MODULES)


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_listed_command_exists(command: str) -> None:
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


def claim_of(run: Path) -> str:
    manifest = read_json(run / "manifest.json")
    kind = kind_of(manifest)
    assert kind is not None
    return kind.claim(manifest)


def test_the_figures_of_the_engine_are_those_of_its_table() -> None:
    rows = read_json(ROOT / "reports" / "engine" / "coverage.json")["networks"]
    page = (ROOT / "reports" / "engine" / "coverage.md").read_text(encoding="utf-8")
    assert f"Measured on {len(rows)} networks" in README
    (most,) = re.findall(rf"at least 0\.9 of the MACs prunable: (\d+) of {len(rows)}\n", page)
    (right,) = re.findall(rf"same after reloading: (\d+) of {len(rows)}\n", page)
    text = " ".join(README.split())
    assert f"in {most}, at least 0.9 of the MACs can be pruned, and all {right} compute the same" in text


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_configuration_that_a_page_shows_is_its_recipe(run: Path, tmp_path: Path) -> None:
    section = again(read_manifest(run))
    (commands,) = [block for block in section.blocks if isinstance(block, Code)]
    (fold,) = [block for block in section.blocks if isinstance(block, Fold)]
    (shown,) = [block for block in fold.blocks if isinstance(block, Code)]
    recipe = tmp_path / f"{run.name}.yaml"
    recipe.write_text(shown.text)
    assert f"prunekit run {recipe.name}\n" in commands.text
    assert load_recipe(recipe).name == run.name


def test_there_are_published_runs() -> None:
    assert RUNS
