"""Runs jobs with submitit: locally, or as a SLURM job array whose jobs are requeued when they are preempted or time out."""

import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from prunekit._files import write_json
from prunekit._json import Many, read_document
from prunekit.choices import Cluster
from prunekit.errors import FileFormatError, InputError
from prunekit.results.formats import JOB
from prunekit.runs.executors import checked_retries, last_line, shared_threads
from prunekit.runs.jobs import Job

if TYPE_CHECKING:
    import submitit

__all__ = ["Cluster", "Submitit", "parsed_options"]

_MINUTES = {"local": 60 * 24 * 365, "slurm": 240}  # submitit's defaults are 2 and 5
_LEAST = {"timeout_min": 1, "mem_gb": 0.001, "cpus_per_task": 1, "gpus_per_node": 0, "signal_delay_s": 0}
_LISTS = ("setup", "teardown", "srun_args")  # each time that such an option is named adds one text
_OF_THE_RUN = ("nodes", "tasks_per_node", "name", "num_gpus", "map_count")
_REQUEUES = 100  # after timeouts; each start resumes from the one before
_ALIVE = ("PENDING", "RUNNING", "REQUEUED", "CONFIGURING", "COMPLETING", "SUSPENDED", "PREEMPTED")


class _RecordForm(TypedDict):
    cluster: str
    id: str
    diary: str
    keys: Many[str]


class Submitit:
    """An executor that submits jobs to one cluster with submitit.

    Args:
        cluster: ``local`` or ``slurm``.
        folder: the run's folder; jobs' files go to ``jobs/`` in it. The machines of the cluster must share it.
        options: submitit's parameters: ``timeout_min``, ``gpus_per_node``, ``cpus_per_task``, ``mem_gb``, and SLURM's own such as
            ``partition``, ``account``, ``qos``, ``constraint``.
        width: how many jobs run at the same time; all if missing. On one machine they share its threads.
        retries: how often a failed job is started again.

    Raises:
        InputError: submitit is not installed, this machine cannot submit to SLURM, or an option is unknown or too small.
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        options: Mapping[str, Any] | None = None,
        width: int | None = None,
        retries: int = 1,
    ) -> None:
        self.cluster, self.retries, self._folder = cluster, checked_retries(retries), folder.resolve() / "jobs"
        threads = None if width is None else shared_threads(width)  # refuses a width below one
        self.width = None if cluster == "slurm" else width  # SLURM itself limits the number
        self.threads = threads if cluster == "local" else None
        parameters = {"timeout_min": _MINUTES[cluster], "slurm_job_name": "prunekit", **_named(cluster, options or {})}
        if width is not None and cluster == "slurm":
            parameters["slurm_array_parallelism"] = width
        self._executor = _executor(cluster, self._folder / "submitit", parameters)

    def start(self, jobs: Sequence[Job]) -> list["_Submitted"]:
        """See :class:`~prunekit.runs.executors.Executor`; jobs that SLURM still has from an earlier run are not submitted again.

        Raises:
            InputError: the cluster did not take the jobs.
        """
        found = {job.name: self._submitted_before(job) for job in jobs}
        new = [job for job in jobs if found[job.name] is None]
        try:
            handles = self._executor.submit_array(new) if new else []
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise InputError(f"The cluster did not take the jobs ({' '.join(str(error).split())}).") from error
        for job, handle in zip(new, handles, strict=True):
            found[job.name] = made = _Submitted(handle, _diary(job), self.cluster)
            self._write(job, made)
        return [handle for handle in found.values() if handle is not None]

    def _write(self, job: Job, handle: "_Submitted") -> None:
        keys = [stage.key for stage in job.stages]
        about = {"cluster": self.cluster, "id": handle.job.job_id, "diary": handle.diary.name, "keys": keys}
        write_json(self._record(job), {"format": JOB, **about})

    def _submitted_before(self, job: Job) -> "_Submitted | None":
        """The same job if SLURM still has it from a run that ended before the job did."""
        path = self._record(job)
        if self.cluster != "slurm" or not path.is_file():
            return None
        known = read_document(path, _RecordForm, JOB, "remove it, and look whether its job still runs")
        if not re.fullmatch(r"\d+(_\d+)?", known["id"]):  # it becomes a word of a command line
            raise FileFormatError(f"{path} names job {known['id'][:80]!r}; expected SLURM's number: remove the file.")
        if known["cluster"] != "slurm" or not {stage.key for stage in job.stages} <= set(known["keys"]):
            return None
        from submitit import SlurmJob  # noqa: PLC0415 - an extra

        handle: SlurmJob[None] = SlurmJob(self._executor.folder, known["id"])
        state = str(handle.get_info(mode="force").get("State", ""))
        if handle.paths.result_pickle.exists() or not state.startswith(_ALIVE):
            return None
        return _Submitted(handle, self._folder / Path(known["diary"]).name, "slurm")

    def _record(self, job: Job) -> Path:
        return self._folder / f"{job.slug}.json"


@dataclass(frozen=True, eq=False)
class _Submitted:
    """A submitted job."""

    job: "submitit.Job[None]"
    diary: Path
    cluster: Cluster

    def ended(self) -> bool:
        """See :class:`~prunekit.runs.executors.Handle`."""
        return self.job.done()

    def cause(self) -> str:
        """See :class:`~prunekit.runs.executors.Handle`."""
        return f"job {self.job.job_id} ended, {self.job.state.lower()}{last_line(self.job.paths.stderr)}"

    def stop(self) -> bool:
        """See :class:`~prunekit.runs.executors.Handle`. SLURM's jobs continue without this process; the next run finds them."""
        if self.cluster == "local":
            self.job.cancel()
        return self.cluster == "local"


def _diary(job: Job) -> Path:
    if job.diary is None:
        raise AssertionError("a job needs a diary before it is started")
    return job.diary


def _named(cluster: Cluster, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under the names of submitit's AutoExecutor: those of a single cluster are prefixed with the cluster's name."""
    shared = ("timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
    for name in _OF_THE_RUN:
        if name in options:
            raise InputError(f"Got executor option {name}; a job is one process on one machine, named by the run.")
    for name, least in _LEAST.items():
        got = options.get(name, least)
        if isinstance(got, (int, float)) and got < least:
            raise InputError(f"Got executor option {name}={got}; expected at least {least}.")
    return {name if name in shared else f"{cluster}_{name}": value for name, value in options.items()}


def _executor(cluster: Cluster, folder: Path, parameters: dict[str, object]) -> "submitit.AutoExecutor":
    try:
        from submitit import AutoExecutor  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise InputError(
            "Executors local and slurm need submitit; install it with `pip install 'prunekit[cluster]'`, or use `jobs` alone."
        ) from error
    limit = {f"{cluster}_max_num_timeout": _REQUEUES}
    try:
        with TemporaryDirectory() as trial:  # an executor makes its folder, which refused options must not leave behind
            AutoExecutor(trial, cluster=cluster, **limit).update_parameters(**parameters)
        executor = AutoExecutor(folder, cluster=cluster, **limit)
        executor.update_parameters(**parameters)
    except RuntimeError as error:
        raise InputError(
            f"Executor {cluster} cannot be used here ({error}); expected a machine with SLURM's srun."
        ) from error
    except (AssertionError, NameError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split("Known executors")[0].split()).rstrip(".")
        raise InputError(f"The executor options do not fit {cluster} ({reason}); mend `executor_option`.") from error
    return executor


def parsed_options(pairs: Sequence[str]) -> dict[str, object]:
    """Options from texts ``name=value``; values that are numbers, true or false get that type.

    The texts of ``setup``, ``teardown`` and ``srun_args`` are kept as they are, in lists: each pair adds one.

    Raises:
        InputError: a pair has no ``=``, or no name.

    Example:
        >>> parsed_options(["partition=gpu", "timeout_min=90", "mem_gb=7.5", "exclusive=true"])
        {'partition': 'gpu', 'timeout_min': 90, 'mem_gb': 7.5, 'exclusive': True}
        >>> parsed_options(["setup=module load cuda", "setup=export A=1"])
        {'setup': ['module load cuda', 'export A=1']}
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not name.isidentifier() or not equals:
            raise InputError(f"Got executor option {pair!r}; expected name=value, such as partition=gpu.")
        options[name] = [*options.get(name, []), text] if name in _LISTS else _value(text)
    return options


def _value(text: str) -> object:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        if not math.isfinite(value):
            raise InputError(f"Got executor option {text}; expected a finite number.")
        return value
    return text
