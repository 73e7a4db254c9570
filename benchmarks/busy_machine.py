"""What the command line's settings for threads and memory are worth: on a quiet machine, and beside other programs.

Train steps and forward passes of the embedded Fashion-MNIST base in fresh processes, with torch's defaults and with prunekit's
settings, in turn; for the second half beside one busy program more than there are cores, each in a session of its own. About three
minutes. Writes reports/engine/busy_machine.json and .md; stop other programs first:

    python benchmarks/busy_machine.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.resources import as_file, files

import torch
from _manifest import REPORTS, markdown_table, publish

from prunekit import load_base
from prunekit._files import atomic_path

ROUNDS, TRAINED, SAMPLED = 2, 32, 256


def measure(settings: bool, repeats: int) -> None:
    """Print the seconds of a train step and of a forward pass, with or without the settings; torch is loaded already here."""
    with as_file(files("prunekit") / "assets" / "fashion-base.safetensors") as path:
        model = load_base(path).model.eval()
    told = {"settings": settings, "threads": torch.get_num_threads()}
    for name, batch in (("train step", TRAINED), ("forward pass", SAMPLED)):
        inputs, taken = (torch.randn(batch, 1, 16, 16), torch.full((batch,), 500)), []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            if name == "train step":
                model(*inputs).sample.square().mean().backward()
                model.zero_grad()
            else:
                with torch.inference_mode():
                    model(*inputs)
            taken.append(time.perf_counter() - started)
        told[name] = statistics.median(taken[1:])
    print(json.dumps(told))


def fresh(settings: bool, threads: int, repeats: int) -> dict[str, float]:
    """The seconds in a process of its own."""
    call = "from prunekit.cli.cpu_settings import set_up; set_up(); " if settings else ""
    code = f"{call}import sys; sys.argv = ['x']; import busy_machine; busy_machine.measure({settings}, {repeats})"
    own = {"OMP_NUM_THREADS": str(threads)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP", "MALLOC"))}
    done = subprocess.run(  # noqa: S603 - a process of this project
        [sys.executable, "-c", code], env=clean | own, cwd=os.path.dirname(__file__), capture_output=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    cores = os.cpu_count() or 1
    rows = []
    for busy in (0, cores + 1):
        spin = [sys.executable, "-c", "while True: pass"]
        others = [subprocess.Popen(spin, start_new_session=True) for _ in range(busy)]  # noqa: S603
        try:
            found: dict[tuple[int, bool], list[dict[str, float]]] = {}
            for _ in range(ROUNDS):
                for threads in sorted({1, cores}):
                    for settings in (False, True):
                        found.setdefault((threads, settings), []).append(fresh(settings, threads, 2 if busy else 12))
        finally:
            for other in others:
                other.kill()
        for (threads, settings), own in found.items():
            rows.append(
                {
                    "other programs": busy,
                    "threads": threads,
                    "settings": "prunekit's" if settings else "torch's",
                    **{name: statistics.median(each[name] for each in own) for name in ("train step", "forward pass")},
                }
            )
    publish("busy_machine", {"rows": rows})
    table = [
        [
            str(row["settings"]),
            str(row["threads"]),
            str(row["other programs"]),
            f"{1000 * row['train step']:.0f}",
            f"{1000 * row['forward pass']:.0f}",
        ]
        for row in rows
    ]
    header = ["settings", "threads", "busy programs beside it", "train step, ms", "forward pass, ms"]
    said = (
        "# Threads and memory on a CPU\n\n"
        f"Embedded Fashion-MNIST base on {cores} cores: a train step of {TRAINED} images and a forward pass of {SAMPLED}; "
        f"medians of {ROUNDS} processes each, in turn. Made by `python benchmarks/busy_machine.py`.\n\n"
    )
    with atomic_path(REPORTS / "busy_machine.md") as part:
        part.write_text(said + markdown_table(header, table), encoding="utf-8")


if __name__ == "__main__":
    main()
