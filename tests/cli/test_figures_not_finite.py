"""Models, images and options that are not finite end in one sentence and exit code 2, and nothing is written."""

import inspect
import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from command_line import TINY, Typed, listing, typed

from prunekit.checkpoint import Base, ModelSpec, save_base
from prunekit.cli.app import MODULES, command
from prunekit.cli.flags import flag_of
from prunekit.schedule import Parameterization
from prunekit.steps.bases import open_base, seeded_weights


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``nan.pt`` has a weight that is NaN; ``large.pt`` has finite ones, and activations that overflow."""
    folder = tmp_path_factory.mktemp("shelf")
    spec, digits = ModelSpec.from_json(TINY), open_base("embedded:digits")
    with seeded_weights(0):  # whether every sample overflows depends on the weights
        base = Base(spec.build(), spec, Parameterization(digits.schedule), data=digits.data)
    with torch.no_grad():
        base.model.conv_out.weight.mul_(1e38)
        base.model.conv_out.bias.fill_(3e38)
        save_base(base, folder / "large.pt")
        base.model.conv_in.weight[0, 0, 1, 1] = math.nan
        save_base(base, folder / "nan.pt")
    (folder / "model.json").write_text(json.dumps(TINY))
    return folder


def test_the_table_below_has_every_option_that_takes_a_float():
    listed = {(line.split()[0], option) for line, options in NUMBERS.items() for option in options}
    for name in MODULES:
        parameters = inspect.signature(command(name)).parameters.values()
        floats = [each for each in parameters if get_args(each.annotation)[:1] in ((float,), (float | None,))]
        found = {(name, flag_of(each).removeprefix("--")) for each in floats}
        assert found <= listed | {("finetune", option) for option in NUMBERS["train"]}


def refused(line: str, said: str, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf)
    before = listing(shelf)
    result: Typed = typed(line)
    assert result.code == 2, result.err
    lines = [each for each in result.err.splitlines() if each.startswith("prunekit: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in result.err
    assert listing(shelf) == before


@pytest.mark.parametrize(
    "line",
    [
        "prunekit sample nan.pt --count 4 --num-inference-steps 2",
        "prunekit evaluate nan.pt --data digits --count 4 --num-inference-steps 2",
        "prunekit prune nan.pt --data digits --target 0.8",
        "prunekit importance nan.pt --data digits --samples 8",
        "prunekit groups --method gradient --base nan.pt --data digits",
        "prunekit consistency nan.pt large.pt --count 4 --num-inference-steps 2",
        "prunekit export nan.pt",
    ],
    ids=lambda line: line.split()[1],
)
def test_a_base_with_a_weight_that_is_nan_is_refused_by_its_tensor(line, shelf, monkeypatch):
    refused(line, "conv_in.weight holds nan in nan.pt; expected finite weights", shelf, monkeypatch)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "prunekit sample large.pt --count 4 --num-inference-steps 3",
            "4 of 4 samples are not finite after evaluation 1 of 3 (timestep 666)",
        ),
        (
            "prunekit evaluate large.pt --data digits --count 4 --num-inference-steps 2 --loss-samples 8",
            "losses of 8 of 8 samples are not finite in timestep group 0 (timesteps 0 to 199)",
        ),
        (
            "prunekit importance large.pt --data digits --samples 8",
            "are not finite",
        ),
        (
            "prunekit prune large.pt --data digits --target 0.8 --samples 8 --criterion magnitude --group 1",
            "loss on timesteps 200 to 399 is no number",
        ),
    ],
    ids=lambda text: text.split()[1],
)
def test_activations_that_overflow_are_reported_where_they_do(line, said, shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    result = typed(line)
    assert result.code == 2, result.err
    assert said in result.err
    assert "Traceback" not in result.err


NUMBERS = {
    "train": [
        "learning-rate",
        "curriculum-share",
        "curriculum-center",
        "curriculum-width",
        "momentum-floor",
        "adam-weight-decay",
        "label-dropout",
        "max-grad-norm",
        "ema-max-decay",
        "checkpointing-minutes",
    ],
    "finetune slim/group-3": ["learning-rate", "distillation-weight", "variance-weight", "ema-max-decay"],
    "prune embedded:digits": ["target", "floor", "negligible"],
    "encode pipe pictures": ["guidance-scale"],
    "sample embedded:digits": ["guidance-scale"],
    "evaluate embedded:digits": ["guidance-scale"],
    "allocate": ["budget"],
    "allocate --budget 0.8": ["floor"],
    "groups --method similarity --data digits": ["eta", "alpha"],
    "sensitivity embedded:digits": ["size", "guidance-scale"],
    "recover embedded:digits frontiers": ["learning-rate"],
    "export embedded:digits": ["tolerance"],
    "assemble slim": ["tolerance"],
    "estimate recipe.yaml": ["utilisation"],
}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize(("command", "option"), [(c, option) for c, options in NUMBERS.items() for option in options])
def test_numbers_that_are_not_finite_are_refused_by_their_options(command, option, value, shelf, monkeypatch):
    line = f"prunekit {command} --{option}={value}"
    refused(line, f"Got --{option} {float(value)}; expected a finite number", shelf, monkeypatch)


def test_a_negative_learning_rate_is_refused(shelf, monkeypatch):
    refused("prunekit train --learning-rate -1", "Got learning_rate -1", shelf, monkeypatch)


RECIPE: dict[str, Any] = {
    "name": "mine",
    "base": {"model": {"class": "UNet2DModel", "config": {}}, "train": {}},
    "groups": {},
    "allocation": {},
    "prune": {"search": {}},
    "finetune": {"train": {}, "distillation": {}},
}
KEYS = [
    "base.train.learning_rate",
    "base.train.ema_decay",
    "base.train.weight_decay",
    "base.train.checkpoint_minutes",
    "base.model.config.norm_eps",
    "base.noise_schedule.beta_start",
    "groups.eta",
    "groups.alpha",
    "allocation.budget",
    "allocation.floor",
    "allocation.frontier_floor",
    "prune.floor",
    "prune.search.tolerance",
    "prune.search.bite",
    "finetune.train.max_grad_norm",
    "finetune.distillation.weight",
    "finetune.distillation.feature_weight",
]


@pytest.mark.parametrize("value", [".nan", ".inf", '"nan"', '"1e999"', "1.0e+999"])
@pytest.mark.parametrize("key", KEYS)
def test_a_recipe_with_a_number_that_is_not_finite_is_refused(key, value, tmp_path, monkeypatch):
    data = json.loads(json.dumps(RECIPE))
    place = data
    *parents, last = key.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    if key.startswith("base.noise_schedule"):
        place |= {"kind": "linear", "num_timesteps": 1000}
    if key == "base.model.config.norm_eps" and value.startswith('"'):
        pytest.skip("a string there is none of a number's")
    if key == "groups.alpha":
        place |= {"method": "similarity", "count": 3}
    place[last] = "THE VALUE"
    text = yaml.safe_dump(data).replace("THE VALUE", value)
    (tmp_path / "mine.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    before = listing(tmp_path)
    result = typed("prunekit run mine.yaml")
    assert result.code == 2, result.err
    assert last in result.err
    assert "Traceback" not in result.err
    assert listing(tmp_path) == before
