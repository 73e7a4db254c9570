"""The table pipeline × check of experts in tiny pipelines of diffusers' own classes: reports/pipelines/table.md.

Run: ``python benchmarks/pipelines.py`` (about three minutes on two cores; needs the packages of the tests).
"""

import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from _manifest import REPORTS, publish

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # pipelines and checks that the tests share
from diffusers.utils import logging
from pipeline_checks import CHECKS
from tiny_pipelines import NAMES, tiny_pipeline

FOLDER = REPORTS.parent / "pipelines"
_TITLE = """# Experts in pipelines

Timestep experts take the place of the denoiser in a pipeline of diffusers, built tiny from its own classes with random weights.
Each cell says yes, or what holds instead of it. `python benchmarks/pipelines.py` makes this page, and
`tests/nets/test_pipelines_table.py` tests each cell. The CPU stands for the accelerator in the check of offloading: hooks,
meta tensors and the order of loading are real, copies to a GPU are not.

"""


def _cell(check: str, name: str) -> tuple[str, float]:
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        try:
            said = CHECKS[check](name, Path(folder)) or "yes"
        except Exception as error:  # a cell that fails is a finding, not the end of the table
            said = f"no: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
    return said, round(time.process_time() - start, 1)


def main() -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows, seconds = {}, {}
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            kind = type(tiny_pipeline(name, Path(folder))).__name__
        cells = {check: _cell(check, name) for check in CHECKS}
        rows[kind] = {check: said for check, (said, _) in cells.items()}
        seconds[kind] = {check: took for check, (_, took) in cells.items()}
        print(kind, rows[kind], flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "table.md").write_text(_TITLE + _table(rows) + "\n" + _legend(), encoding="utf-8")
    packages = {name: version(name) for name in ("accelerate", "peft", "transformers")}
    publish("table", {"cells": rows, "processor_seconds": seconds, "packages": packages}, FOLDER)


def _table(rows: dict[str, dict[str, str]]) -> str:
    lines = [["pipeline", *CHECKS], ["---"] * (len(CHECKS) + 1)]
    lines += [[kind, *cells.values()] for kind, cells in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _legend() -> str:
    told = {name: (check.__doc__ or "").strip() for name, check in CHECKS.items()}
    return "\n".join(f"- **{name}**: {text}" for name, text in told.items()) + "\n"


if __name__ == "__main__":
    main()
