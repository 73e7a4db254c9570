"""Part (b): the evidence run at 32×32 with a network of 9 million parameters, in pieces.

`prunekit run recipes/fashion32-tdc.yaml` resumes by itself. So this command starts it, ends it by SIGTERM when the time is over,
and makes a row of its manifest once it is finished. The run's folder is runs/fashion32-tdc; its report is published to reports/.
"""

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from _manifest import REPORTS, markdown_table

from prunekit._json import read_json
from prunekit.errors import InputError
from prunekit.report.evidence import evidence_claim

from .command import Part, Setting
from .jobs import Job, Row, Rows, Unfinished

ROOT = REPORTS.parents[1]
RECIPE = ROOT / "recipes" / "fashion32-tdc.yaml"
GRACE = 45.0  # seconds for a train step and its checkpoint after SIGTERM; then the process is killed, which loses a little more
_TRAIN = {
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "log_every": 1,
    "mixed_precision": "no",
}
TINY: dict[str, Any] = {
    "data": {"source": "embedded:fashion", "resolution": 16},
    "base": {
        "model": {
            "config": {
                "sample_size": 16,
                "block_out_channels": [8, 8],
                "down_block_types": ["DownBlock2D", "DownBlock2D"],
                "up_block_types": ["UpBlock2D", "UpBlock2D"],
                "norm_num_groups": 4,
                "add_attention": False,
            }
        },
        "train": _TRAIN | {"steps": 24},
    },
    "groups": {"count": 2},
    "allocation": {"rule": "uniform", "steps": 2},
    "prune": {"samples": 2, "batch_size": 2, "search": {"rounds": 1, "shortlist": 1}},
    "finetune": {"train": {key: value for key, value in _TRAIN.items() if key != "steps"}},
    "evaluation": {"samples": 4, "loss_samples": 8, "features": "auto", "grid": 4},
    "evidence": {"training": 0.4, "seeds": [0], "loss_groups": 2, "timed_images": 1},
}


def jobs(setting: Setting, _: Rows) -> list[Job]:
    """The run is one job."""
    return [Job({"stage": "run", "recipe": RECIPE.stem}, lambda seconds: run(setting, seconds))]


def run(setting: Setting, seconds: float) -> Row:
    """Continue the run for some seconds.

    Raises:
        Unfinished: the time is over.
        InputError: the run ended with an error.
    """
    folder = setting.output / "run" if setting.tiny else ROOT / "runs" / RECIPE.stem
    published = setting.output if setting.tiny else REPORTS.parent
    told = ["run", str(recipe_for(setting)), "--output", str(folder), "--publish", str(published)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if setting.device.type == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    code = ended([sys.executable, "-c", "from prunekit.cli import main; main()", *told], environment, seconds)
    if code is None:
        raise Unfinished(f"the time is over; what the run has made is in {folder}")
    if code:
        raise InputError(
            f"`prunekit run` ended with exit code {code}; its own message says why: repeat with --retry then."
        )
    manifest = read_json(folder / "manifest.json")
    return {
        "claim": evidence_claim(manifest),
        "report": str(published / RECIPE.stem),
        "seconds": manifest["seconds"],
        "base": {name: manifest["base"][name] for name in ("macs", "params")},
    }


def ended(command: list[str], environment: dict[str, str], seconds: float) -> int | None:
    """The exit code of a command; None if the time was over first, and it was asked to end."""
    process = subprocess.Popen(command, env=environment)  # noqa: S603
    try:
        return process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    finally:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return None


def recipe_for(setting: Setting) -> Path:
    """The recipe's file; a changed copy for other images and for the tiny size."""
    if not setting.tiny and setting.images is None:
        return RECIPE
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    if setting.tiny:
        recipe = merged(recipe, TINY)
        entries = recipe["evidence"]["entries"]
        recipe["evidence"]["entries"] = {name: entries[name] for name in ("experts 0.8", "one network, searched 0.8")}
    if setting.images is not None:
        recipe["data"]["source"] = str(setting.images.resolve())
    path = setting.output / f"{RECIPE.stem}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def merged(recipe: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe with other values for some keys, at any depth."""
    found = copy.deepcopy(recipe)
    for key, value in changes.items():
        found[key] = (
            merged(found[key], value) if isinstance(value, dict) and isinstance(found.get(key), dict) else value
        )
    return found


def table(rows: Rows) -> str:
    """The run's claim, and what took how long."""
    found = rows.find({"stage": "run"})
    if found is None or "error" in found:
        return "The run is not finished.\n"
    seconds = [[name, f"{spent:.0f}"] for name, spent in found["seconds"].items()]
    return (
        f"A base with {found['base']['params'] / 1e6:.2f} million parameters and {found['base']['macs'] / 1e9:.2f} GMACs. "
        f"{found['claim']}\n\nThe report is in `{Path(found['report']).name}`.\n\n{markdown_table(['stage', 'seconds'], seconds)}"
    )


PART = Part("The evidence run at 32×32", jobs, table)
