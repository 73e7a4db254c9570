"""Kill commands at random moments, start them again until they finish, and check that the bytes are the same.

``python benchmarks/kills.py [--kills 20] [--only run]`` writes ``reports/safety/kills.json`` and ``kills.md``. Every second kill is
Ctrl-C (SIGINT), the others are SIGKILL. A case is set up once, and each kill starts from a fresh copy of it. Then the same
command runs to its end, and every file that it wrote is compared with those of an undisturbed run. Times, and facts that contain
a time, are not compared.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from _manifest import REPORTS, markdown_table, publish

from prunekit.cli import main

NETWORK = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
}
RECIPE = {
    "name": "small",
    "base": {"model": {"class": NETWORK["_class_name"], "config": {k: v for k, v in NETWORK.items() if k[0] != "_"}}},
    "groups": {"count": 2},
    "allocation": {"budget": 0.8, "steps": 5},
    "prune": {"samples": 16, "batch_size": 16, "search": {"rounds": 3}},
    "finetune": {"train": {"steps": 60, "batch_size": 8, "log_every": 5, "checkpoint_every": 10}},
    "evaluation": {"samples": 32, "loss_samples": 64, "grid": 4},
}
RECIPE["base"]["train"] = {"steps": 60, "batch_size": 8, "log_every": 5, "checkpoint_every": 10}  # type: ignore[index]
_TIMES = {"seconds", "created", "commit", "mtime_ns", "threads", "rate"}
_PASSING = (".lock", ".part", ".partial")


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Args:
        line: the command line.
        before: command lines that prepare its folder.
        outputs: the files and folders that are compared; everything below a folder.
    """

    line: str
    before: tuple[str, ...]
    outputs: tuple[str, ...]


_TRAIN = "prunekit train --config net.json --max-train-steps 120 --train-batch-size 16 --checkpointing-steps 20"
_PREPARED = (
    f"{_TRAIN} --output base.pt",
    "prunekit groups --groups 2",
    "prunekit allocate --budget 0.8",
)
CASES = {
    "train": Case(f"{_TRAIN} --output base.pt", (), ("base.pt",)),
    "prune": Case("prunekit prune base.pt --samples 16", _PREPARED, ("slim",)),
    "finetune": Case(
        "prunekit finetune slim/group-1 --output tuned --max-train-steps 120 --train-batch-size 16 --checkpointing-steps 20",
        (*_PREPARED, "prunekit prune base.pt --samples 16 --proposer oneshot"),
        ("tuned",),
    ),
    "assemble": Case(
        "prunekit assemble slim", (*_PREPARED, "prunekit prune base.pt --samples 16 --proposer oneshot"), ("experts",)
    ),
    "run": Case("prunekit run small.yaml", (), ("runs/small",)),
}


def typed(line: str, folder: Path) -> int:
    """Start a command line in its own process; returns its process id."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        sys.argv = line.split()
        code = 1
        with (folder / ".log").open("a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException as error:
                print(f"traceback: {error!r}", file=log)
        os._exit(code)
    return child


def finished(child: int) -> int:
    """Exit code of a process, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole(line: str, folder: Path) -> None:
    """Run a command line that must succeed."""
    code = finished(typed(line, folder))
    if code:
        raise SystemExit(f"{line} ended with {code}:\n{(folder / '.log').read_text()}")


def content(folder: Path, outputs: tuple[str, ...]) -> dict[str, str]:
    """Every output file by name, with a hash of its bytes. In JSON and pages with times, the times are not hashed."""
    files = [
        file
        for name in outputs
        for file in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
    ]
    kept = [file for file in files if file.is_file() and not file.name.endswith(_PASSING) and file.name != ".log"]
    return {
        str(file.relative_to(folder)): _hash(file) for file in kept if "report" not in file.relative_to(folder).parts
    }


def _hash(file: Path) -> str:
    raw = file.read_bytes()
    if file.suffix == ".json":
        value = json.loads(raw)
        if (
            file.parent.name == "stages"
        ):  # hashes of files with times, and of the record itself; the files are compared one by one
            value = {
                key: list(inner) if key in ("outputs", "inputs") else inner
                for key, inner in value.items()
                if key != "sha256"
            }
        raw = json.dumps(_timeless(value), sort_keys=True).encode()
    return hashlib.sha256(raw).hexdigest()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not any(word in key for word in _TIMES)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def measure(name: str, case: Case, kills: int, moments: random.Random, where: Path) -> dict[str, Any]:
    """Kill a case this many times, and count the results."""
    prepared = where / name
    prepared.mkdir()
    (prepared / "net.json").write_text(json.dumps(NETWORK))
    (prepared / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    for line in case.before:
        whole(line, prepared)
    undisturbed = where / f"{name}-whole"
    shutil.copytree(prepared, undisturbed)
    began = time.monotonic()
    whole(case.line, undisturbed)
    took = time.monotonic() - began
    expected = content(undisturbed, case.outputs)
    result: dict[str, Any] = {
        "seconds": round(took, 2),
        "kills": 0,
        "ctrl_c": 0,
        "equal": 0,
        "codes": {},
        "differing": [],
    }
    tries = 0
    while result["kills"] < kills and tries < 3 * kills:
        tries += 1
        folder = where / f"{name}-killed"
        shutil.copytree(prepared, folder)
        sent = signal.SIGINT if result["kills"] % 2 else signal.SIGKILL
        child = typed(case.line, folder)
        time.sleep(moments.uniform(0.02, took))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, sent)
        code = finished(child)
        if code != 0:  # it was not through already
            result["kills"] += 1
            result["ctrl_c"] += sent == signal.SIGINT
            key = f"{signal.Signals(sent).name}: {code}"
            result["codes"][key] = result["codes"].get(key, 0) + 1
            whole(case.line, folder)
            found = content(folder, case.outputs)
            differing = sorted(file for file in {*found, *expected} if found.get(file) != expected.get(file))
            result["equal"] += not differing
            result["differing"] += differing
        shutil.rmtree(folder)
    print(
        name, {key: value for key, value in result.items() if key != "differing"}, result["differing"][:5], flush=True
    )
    return result


def measure_all(names: list[str], kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill every named case."""
    torch.set_num_threads(1)
    moments = random.Random(seed)  # noqa: S311 - moments of kills
    with tempfile.TemporaryDirectory() as where:
        warm = Path(where) / "warm"
        warm.mkdir()
        (warm / "net.json").write_text(json.dumps(NETWORK))
        _import_everything()
        return {name: measure(name, CASES[name], kills, moments, Path(where)) for name in names}


def _import_everything() -> None:
    """Import everything that the commands need before forking, so that the kills hit their work and not Python's start."""
    import diffusers  # noqa: F401, PLC0415
    import matplotlib.pyplot  # noqa: F401, PLC0415
    from diffusers import UNet2DModel  # noqa: F401, PLC0415

    import prunekit.runs.experts_run  # noqa: F401, PLC0415


def main_() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", choices=sorted(CASES), action="append")
    options = parser.parse_args()
    figures = measure_all(options.only or list(CASES), options.kills)
    if options.only:  # a look at some commands is no figure to publish
        sys.exit(any(row["kills"] < options.kills or row["equal"] < row["kills"] for row in figures.values()))
    rows = [
        [name, f"{row['seconds']:.1f}", str(row["kills"]), str(row["ctrl_c"]), str(row["equal"])]
        for name, row in figures.items()
    ]
    folder = REPORTS.parent / "safety"
    publish("kills", {"commands": figures}, folder)
    table = markdown_table(["command", "seconds undisturbed", "kills", "of them Ctrl-C", "same bytes in the end"], rows)
    (folder / "kills.md").write_text(f"# Commands that were killed and started again\n\n{table}")


if __name__ == "__main__":
    main_()
