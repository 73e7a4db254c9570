"""A run of a recipe: a folder, and stages that are kept once they are finished and run again when their inputs change."""

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import prunekit
from prunekit._files import json_hash, read_json, write_json
from prunekit.data import ImageSplit, load_images
from prunekit.errors import FileFormatError
from prunekit.pipeline.observing import Observer, Silent
from prunekit.recipe import Recipe

__all__ = ["ResumableRun"]


class ResumableRun(ABC):
    """One recipe in one folder.

    Args:
        recipe: what to do.
        folder: where everything is written; a folder of an earlier run of the recipe is gone on with.
        observer: told what happens.
    """

    def __init__(self, recipe: Recipe, folder: Path, observer: Observer | None = None) -> None:
        self.recipe = recipe
        self.folder = folder
        self.observer = observer or Silent()
        self.key = ""  # of the stage that runs: hash of all that it is made from
        self.state: dict[str, dict[str, Any]] = {}  # every stage that ever finished here
        self.done: dict[str, dict[str, Any]] = {}  # those that are part of this run
        state_file = folder / "state.json"
        if state_file.is_file():
            stages = read_json(state_file, "prunekit-state/1").get("stages")
            if not isinstance(stages, dict):
                raise FileFormatError(f"{state_file} holds no stages; remove it to run every stage again.")
            self.state = dict(stages)

    @abstractmethod
    def execute(self) -> Path:
        """Run every stage that the recipe has a section for; returns the manifest's path."""

    @cached_property
    def images(self) -> ImageSplit:
        """The recipe's images."""
        return load_images(self.recipe.data.source, self.recipe.data.resolution)

    def _data_hash(self) -> str:
        return json_hash([self.images.train.sha256, self.images.held_out.sha256])

    def _stage(
        self,
        name: str,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        action: Callable[[], dict[str, Any]],
        after: str | Sequence[str] = (),
    ) -> None:
        """Run ``action`` unless its outputs are there and were made from the same inputs."""
        before = [after] if isinstance(after, str) else after
        described = self.recipe.model_dump(mode="json", include=set(inputs))
        extra = {key: value for key, value in inputs.items() if key not in described}
        key = json_hash(
            {
                "stage": name,
                "prunekit": prunekit.__version__,
                "inputs": described,
                "extra": extra,
                "after": [self.done[stage]["key"] for stage in before],
            }
        )
        kept = self.state.get(name, {}).get("key") == key and all((self.folder / path).exists() for path in outputs)
        self.observer.stage(name, kept)
        if not kept:
            if self.state.pop(name, None) is not None:  # should it stop midway, what it has written is nobody's output
                self._write_state()
            started, self.key = time.perf_counter(), key
            facts = action()
            self.state[name] = {"key": key, "seconds": round(time.perf_counter() - started, 3), "facts": facts}
            self._write_state()
        self.done[name] = self.state[name]

    def _write_state(self) -> None:
        write_json(self.folder / "state.json", {"format": "prunekit-state/1", "stages": self.state})

    def _checkpoints(self, name: str) -> Path:
        """Folder for a training's checkpoints: another for other options, so that a changed recipe starts it anew."""
        return self.folder / "checkpoints" / f"{name}-{self.key[:16]}"

    def _drop_checkpoints(self, name: str) -> None:
        for folder in (self.folder / "checkpoints").glob(f"{name}-*"):
            shutil.rmtree(folder, ignore_errors=True)
