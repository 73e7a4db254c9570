"""Fine-tunes slim models, each from its folder into a folder: one by one, or several at the same time in processes."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from prunekit._files import write_json
from prunekit._json import JsonDict, read_json
from prunekit.checkpoint import Asked
from prunekit.data import ImageSplit, note_place
from prunekit.errors import InputError
from prunekit.recipe import DataOptions, FinetuneOptions
from prunekit.runs.book import Stage
from prunekit.runs.executors import Executor, fan_out
from prunekit.runs.jobs import Job
from prunekit.runs.observing import Observer, Silent, training_reporter
from prunekit.slim import SlimModel, load_slim, save_slim
from prunekit.steps.bases import open_base
from prunekit.steps.finetuning import finetune_slim
from prunekit.steps.image_choice import images_of_slim, said_of_images
from prunekit.training import Reporter, TrainResult
from prunekit.training.checkpoints import drop_checkpoints

__all__ = ["Tuned", "Tuning", "same_origin", "tune_together"]

_FINETUNING = ("finetuned_steps", "finetune_seed", "from_scratch")  # provenance that a fine-tuning adds


@dataclass(frozen=True)
class Tuning:
    """The fine-tuning of one slim model.

    Args:
        slim: folder of the slim model.
        target: folder to write; it may be the same.
        options: how to train.
        data: other images than those that the slim model's base was trained on.
        teacher: path of the base that teaches it, if the options ask for one.
        asked: how to read the teacher.
        config: architecture of a teacher that is a bare state dict.
    """

    slim: Path
    target: Path
    options: FinetuneOptions
    data: DataOptions | None = None
    teacher: str | None = None
    asked: Asked | None = None
    config: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the training's checkpoints."""
        return self.target.with_name(f".{self.target.name}.checkpoints")

    def train(self, report: Reporter | None = None) -> "Tuned":
        """Train; nothing is written except checkpoints, from which another call resumes.

        Raises:
            InputError: the images or the teacher do not fit the slim model.
        """
        loaded = load_slim(self.slim)
        images = images_of_slim(loaded, self.data, self.slim)
        said = said_of_images(loaded.about.get("data", {}), images, self.data)
        loaded = replace(loaded, about={**loaded.about, "data": said} if said else loaded.about)
        base = open_base(self.teacher, self.config, asked=self.asked) if self.teacher else None
        tuned, result = finetune_slim(loaded, images.train, self.options, self.checkpoints, report, base)
        return Tuned(self, tuned, result, images, said)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A fine-tuned slim model that is not written yet.

    Args:
        tuning: how it was made.
        slim: the slim model.
        result: the training's result.
        images: the images that it was trained on.
        said: what it records of them.
    """

    tuning: Tuning
    slim: SlimModel
    result: TrainResult
    images: ImageSplit
    said: JsonDict

    def write(self) -> None:
        """Write the slim model, and drop the checkpoints."""
        save_slim(self.slim, self.tuning.target)
        if "sha256" in self.said and self.said["sha256"] == self.images.sha256:
            note_place(self.images, self.tuning.target.parent)
        drop_checkpoints(self.tuning.checkpoints)

    @property
    def facts(self) -> dict[str, object]:
        """What the training came to."""
        steps = self.tuning.options.train.steps
        return {"steps": steps, "loss": self.result.losses[-1][1], "seconds": self.result.seconds}


@dataclass(eq=False)
class _Together:
    """Tunings by the names of their stages, as a run for jobs in other processes."""

    tunings: Mapping[str, Tuning]
    folder: Path
    observer: Observer = field(default_factory=Silent)

    def make(self, stage: Stage) -> None:
        """Train and write one slim model, and its facts for the process that waits."""
        tuned = self.tunings[stage.name].train(training_reporter(self.observer, stage.name))
        tuned.write()
        write_json(_facts_file(self.folder, stage.name), tuned.facts)


def tune_together(
    tunings: Sequence[Tuning], executor: Executor, folder: Path, observer: Observer
) -> dict[Path, dict[str, object]]:
    """Fine-tune slim models at the same time, each in a process of its own.

    Args:
        tunings: what to train; no two may write the same folder.
        executor: where they run.
        folder: for the processes' files; removed at the end.
        observer: is told the progress.

    Returns:
        By target, the facts of its training.

    Raises:
        InputError: two targets have the same name.
        UnfinishedError: trainings failed; the results of the others are written.
    """
    named = _named(tunings)
    run = _Together(named, folder)
    stages = {name: Stage(name, "", (), partial(dict)) for name in named}
    jobs = [Job(run, name, (stage,)) for name, stage in stages.items()]
    fan_out(executor, jobs, folder, observer)
    found = {}
    for name, tuning in named.items():
        file = _facts_file(folder, name)
        found[tuning.target] = dict(read_json(file))
        file.unlink()
    with suppress(OSError):  # something else is in it
        os.rmdir(folder)
    return found


def _named(tunings: Sequence[Tuning]) -> dict[str, Tuning]:
    """Tunings by their jobs' names: the targets' paths from the folder that has them all."""
    shared = os.path.commonpath([tuning.target.absolute().parent for tuning in tunings])
    named: dict[str, Tuning] = {}
    for tuning in tunings:
        name = " ".join(tuning.target.absolute().relative_to(shared).parts).replace("-", " ")
        if name in named:
            raise InputError(
                f"{named[name].target} and {tuning.target} would both be called {name!r}; expected other names of folders, or "
                "fine-tune them one after the other."
            )
        named[name] = tuning
    return named


def _facts_file(folder: Path, name: str) -> Path:
    return folder / f"facts-{name.replace(' ', '-')}.json"


def same_origin(tuned: Path, slim: Path) -> bool:
    """Whether a fine-tuned slim model was made from the pruning that another folder has."""

    def origin(folder: Path) -> str:
        config = read_json(folder / "config.json")
        made = {key: value for key, value in config.get("provenance", {}).items() if key not in _FINETUNING}
        return json.dumps([config.get("plan"), config.get("timestep_group"), made], sort_keys=True)

    return origin(tuned) == origin(slim)
