"""Runs for worker processes, which import them from here: two groups whose stages take no time, and a preempted training."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.errors import InputError
from prunekit.recipe import FinetuneOptions
from prunekit.runs.experts_run import Run
from prunekit.runs.resumable import ResumableRun


class SmallRun(ResumableRun):
    """Makes ``a-0`` and ``b-0`` from it, ``a-1`` and ``b-1``. ``plan.json`` says what goes wrong, by stage and start."""

    def execute(self) -> Path:
        chains = {}
        for i in range(2):
            first = self._planned(f"a {i}", {}, [f"a-{i}.json"], partial(self._make, "a", i))
            second = self._planned(f"b {i}", {}, [f"b-{i}.json"], partial(self._make, "b", i), first.name)
            chains[f"group {i}"] = [first, second]
        self._apart(chains)
        write_json(self.folder / "manifest.json", {name: stage.facts for name, stage in self.done.items()})
        return self.folder / "manifest.json"

    def _make(self, letter: str, index: int) -> dict[str, Any]:
        name = f"{letter}-{index}"
        with (self.folder / f"{name}.starts").open("a") as file:
            file.write(f"{os.getpid()}\n")
        starts = len((self.folder / f"{name}.starts").read_text().splitlines())
        plan = json.loads((self.folder / "plan.json").read_text()).get(name, [])
        match plan[starts - 1] if starts <= len(plan) else "fine":
            case "breaks":
                raise RuntimeError("the disk went away")
            case "mistake":
                raise InputError("Got nonsense; expected sense.")
            case "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            case "preempted":
                os.kill(os.getpid(), signal.SIGUSR2)
                time.sleep(30)  # nothing comes after
            case "waits":
                time.sleep(60)
        self.observer.progress(name, 1, 1, "made")
        write_json(
            self.folder / f"{name}.json", {"from": read_json(self.folder / f"a-{index}.json") if letter == "b" else {}}
        )
        return {"made": name}


class PreemptedRun(Run):
    """A run whose second group's training is preempted at its second step, once."""

    def _finetune(self, index: int, options: FinetuneOptions) -> dict[str, Any]:
        mark, observer = self.folder / "preempted", self.observer

        class Preempting:
            def stage(self, name: str, kept: bool) -> None:
                observer.stage(name, kept)

            def progress(self, label: str, done: int, total: int, note: str) -> None:
                observer.progress(label, done, total, note)
                if index == 1 and done == 2 and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGUSR2)

        self.observer = Preempting()
        try:
            return super()._finetune(index, options)
        finally:
            self.observer = observer
