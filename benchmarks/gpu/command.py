"""The command line of all parts: which jobs are left, how long to work, and what is written at the end."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _manifest import REPORTS

from prunekit._files import atomic_path, write_json
from prunekit.errors import PrunekitError

from .jobs import Job, Rows, left, work
from .machine import chosen_device, identity, record

ROOT = REPORTS.parents[1]
PARTS = ("speed", "latency", "evidence", "large")


@dataclass(frozen=True)
class Setting:
    """Where and at which size a part measures.

    Args:
        device: the device.
        tiny: networks that a CPU runs within seconds.
        output: folder of all files.
        images: folder of the evidence run's pictures; the recipe's if missing.
    """

    device: torch.device
    tiny: bool
    output: Path
    images: Path | None = None


@dataclass(frozen=True)
class Part:
    """A table of measurements.

    Args:
        title: of its page.
        jobs: all jobs of a setting, those first whose rows matter most; they find the rows of jobs before them.
        table: Markdown of the rows.
    """

    title: str
    jobs: Callable[[Setting, Rows], list[Job]]
    table: Callable[[Rows], str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is left of a part for some minutes; 0 if all of it is measured then.

    Otherwise 1 if jobs failed, 2 if nothing can be measured here, and 3 if jobs are left for a later command.
    """
    args = _parser().parse_args(arguments)
    try:
        return _Command(args).run()
    except PrunekitError as error:
        print(error)
        return 2


@dataclass(frozen=True)
class _Command:
    args: argparse.Namespace

    def run(self) -> int:
        args, setting = self.args, self.setting
        part: Part = import_module(f"gpu.{args.part}").PART
        manifest = record(setting.device)
        about = {"part": args.part, "machine": identity(setting.device), "tiny": setting.tiny}
        rows = Rows.open(setting.output / f"{args.part}.jsonl", about)
        jobs = part.jobs(setting, rows)
        asked = [job for job in jobs if all(words in job.name for words in args.only)]
        if args.list:
            print("\n".join(job.name for job in left(asked, rows, args.retry)))
            return 0
        work(left(asked, rows, args.retry), rows, args.minutes, manifest["commit"])
        missing = len(left(jobs, rows))
        figures = {"tiny": setting.tiny, "jobs": len(jobs), "left": missing, "rows": rows.rows}
        write_json(
            setting.output / f"{args.part}.json", {"format": "prunekit-benchmark/1", "manifest": manifest, **figures}
        )
        with atomic_path(setting.output / f"{args.part}.md") as path:
            path.write_text(self._page(part, manifest, rows, missing), encoding="utf-8")
        still = left(asked, rows)
        print(f"{len(jobs) - missing} of {len(jobs)} rows are in {rows.path}.")
        if still:
            print(f"{len(still)} are left: repeat the command to continue, beginning with {still[0].name}.")
        failed = [row for row in map(rows.find, (job.key for job in asked)) if row and "error" in row]
        return 3 if still else int(bool(failed))

    @cached_property
    def setting(self) -> Setting:
        args = self.args
        folder = args.output or (ROOT / "runs" / "gpu-tiny" if args.tiny else ROOT / "reports" / "gpu")
        return Setting(chosen_device(args.device), args.tiny, folder, args.images)

    def _page(self, part: Part, manifest: dict[str, Any], rows: Rows, missing: int) -> str:
        """The table with what it was measured on, and the jobs that failed."""
        name, machine = self.args.part, manifest["machine"]
        said = [f"{machine['processor']} ({machine['device']})", f"torch {machine['torch']}"]
        said += [f"{key} {manifest[key]}" for key in ("driver", "cudnn") if manifest.get(key)]
        said += [f"CUDA {machine['cuda']}"] if machine.get("cuda") else []
        failed = [row for row in rows.newest() if "error" in row]
        size = "Tiny networks that show only that the command works. " if self.setting.tiny else ""
        unfinished = f"{missing} rows are still missing. " if missing else ""
        reasons = "".join(f"- {json.dumps(row['key'])}: {row['error']}\n" for row in failed)
        tail = f"\n## Jobs that failed\n{reasons}" if failed else ""
        return (
            f"# {part.title}\n\n{size}{unfinished}Measured on {', '.join(said)}. Made by `python benchmarks/gpu {name}`; the rows "
            f"are in `{name}.jsonl`, the manifest in `{name}.json`.\n\n{part.table(rows)}{tail}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=9.0, help="no job begins later than this; default 9")
    parser.add_argument("--tiny", action="store_true", help="networks that a CPU runs within seconds")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is a GPU")
    parser.add_argument("--output", type=Path, help="folder; default reports/gpu, with --tiny runs/gpu-tiny")
    parser.add_argument("--only", action="append", default=[], metavar="WORDS", help="jobs whose name has these words")
    parser.add_argument("--retry", action="store_true", help="repeat jobs that failed, too")
    parser.add_argument("--list", action="store_true", help="print the jobs that are left, and measure nothing")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="evidence: Fashion-MNIST's idx files")
    return parser
