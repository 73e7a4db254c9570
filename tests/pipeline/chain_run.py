"""A run whose four stages take no time: ``one`` is a file, ``two`` a folder made from it, ``three`` and ``apart`` a file each."""

from functools import partial
from pathlib import Path
from typing import Any

from prunekit._files import write_json
from prunekit._json import read_json
from prunekit.runs.resumable import ResumableRun


class ChainRun(ResumableRun):
    """``three`` is made from ``two``, ``apart`` from nothing. ``words`` stands for a version that computes something else."""

    words = "words"

    def execute(self) -> Path:
        self._stage("one", {}, ["one.json"], self._one, extras=["one.png"])
        second = self._planned("two", {}, ["two"], self._two, "one")
        third = self._planned("three", {}, ["three.json"], partial(self._three, "b"), "two")
        apart = self._planned("apart", {}, ["apart.json"], self._apart_from_all)
        self._apart({"chain": [second, third], "apart": [apart]})
        write_json(self.folder / "manifest.json", {name: stage.facts for name, stage in self.done.items()})
        return self.folder / "manifest.json"

    def _one(self) -> dict[str, Any]:
        write_json(self.folder / "one.json", {"words": self.words})
        (self.folder / "one.png").write_bytes(b"picture")
        return {"length": len(self.words)}

    def _two(self) -> dict[str, Any]:
        for name in ("a", "b"):
            write_json(self.folder / "two" / f"{name}.json", {name: read_json(self.folder / "one.json")})
        return {}

    def _three(self, name: str) -> dict[str, Any]:
        write_json(self.folder / "three.json", read_json(self.folder / "two" / f"{name}.json"))
        return {}

    def _apart_from_all(self) -> dict[str, Any]:
        write_json(self.folder / "apart.json", {})
        return {}
