"""Jobs whose rows are kept as soon as they are measured, so that a command that is killed loses one job at most."""

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunekit._files import atomic_path
from prunekit.errors import InputError

Row = dict[str, Any]
Key = Mapping[str, str | int | float | bool]


class Unfinished(Exception):
    """A job used up its time; a later command continues it."""


@dataclass(frozen=True)
class Job:
    """One measurement.

    Args:
        key: what tells its row from all others.
        measure: returns the rest of the row; it is given the seconds that are left.
    """

    key: Key
    measure: Callable[[float], Row]

    @classmethod
    def whole(cls, key: Key, measure: Callable[[], Row]) -> "Job":
        """A job that takes as long as it takes."""
        return cls(key, lambda _: measure())

    @property
    def name(self) -> str:
        """The key in words."""
        return ", ".join(f"{name} {value}" for name, value in self.key.items())


@dataclass(frozen=True)
class Rows:
    """The rows of one part on one machine: a file of JSON lines, of which the first says where they were measured.

    Args:
        path: the file.
        about: machine and size.
    """

    path: Path
    about: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any]) -> "Rows":
        """The rows that are there; a line that a kill cut short is dropped.

        Raises:
            InputError: they were measured on another machine, by another version of torch, or at another size.
        """
        whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not whole:
            whole = json.dumps({"about": about}).encode()
        if not path.is_file() or path.stat().st_size != len(whole) + 1:
            with atomic_path(path) as part:
                part.write_bytes(whole + b"\n")
        try:
            first, *rows = [json.loads(line) for line in whole.decode().splitlines()]
            known = first["about"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} cannot be read ({error}); expected a row in each line: remove the file."
            ) from error
        if known != about:
            raise InputError(
                f"{path} has rows of {_told(known)}, and this command measures {_told(about)}; expected the same: name another "
                "--output, or remove the file."
            )
        return cls(path, about, rows)

    def find(self, key: Key) -> Row | None:
        """The newest row of a key."""
        return next((row for row in reversed(self.rows) if key.items() <= row.items()), None)

    def newest(self) -> list[Row]:
        """The newest row of each job."""
        return list({json.dumps(row["key"]): row for row in self.rows}.values())

    def having(self, **values: str | float | bool) -> Iterator[Row]:
        """The newest rows with these values, without those that failed."""
        return (row for row in self.newest() if values.items() <= row.items() and "error" not in row)

    def append(self, row: Row) -> None:
        """Keep a row."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
        self.rows.append(row)


def _told(about: Any) -> str:
    if not isinstance(about, Mapping) or not isinstance(machine := about.get("machine"), Mapping):
        return "an unknown machine"
    size = "tiny size" if about.get("tiny") else "full size"
    return f"{machine.get('processor')} ({machine.get('device')}, torch {machine.get('torch')}, {size})"


def left(jobs: Sequence[Job], rows: Rows, retry: bool = False) -> list[Job]:
    """The jobs without a row, and with ``retry`` those that failed."""

    def is_left(job: Job) -> bool:
        row = rows.find(job.key)
        return row is None or (retry and "error" in row)

    return [job for job in jobs if is_left(job)]


def work(jobs: Sequence[Job], rows: Rows, minutes: float, commit: str | None) -> int:
    """Do the jobs one after the other until the time is over, at least one; returns how many have a row now.

    A job that fails leaves the reason as its row, so that it does not keep the others from their turn.
    """
    started, done = time.monotonic(), 0
    for job in jobs:
        began = time.monotonic()
        rest = 60 * minutes - (began - started)
        if done and rest <= 0:
            break
        try:
            found = job.measure(rest)
        except Unfinished as why:
            print(f"{job.name}: {why}", flush=True)
            break
        except Exception as error:  # whatever a network or a library does here is a result
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        rows.append(
            {"key": dict(job.key), **job.key, **found, "job_seconds": time.monotonic() - began, "commit": commit}
        )
        done += 1
        print(f"{job.name}: {found.get('error', 'measured')}", flush=True)
    return done
